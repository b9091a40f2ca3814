"""Convolutions that commute with the rotations C_N of the plane, and the plain network they expand to.

Channel = field * N + group element. Turning the input by +360 / N degrees, counter-clockwise as displayed, turns
every map and moves each regular field by one: `roll(+1)` over the group elements.

A network is trained in its coefficients (`GroupConv2d`, `FieldBatchNorm`) and run as ordinary convolutions:
`inference_form` makes the second from the first.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiepoint.networks.steerable_basis import Field, SteerableKernels

Network = TypeVar("Network", bound=nn.Module)


class GroupConv2d(nn.Module):
    """Equivariant convolution from `in_fields` to `out_fields`: a lifting one when `source` is "trivial", a group
    convolution when it is "regular". Padding keeps the size, a stride keeps every stride-th pixel; no bias.

    weights: flat, ordered (output field, input field, basis element).
    basis: (elements, target channels, source channels, kernel_size^2). Part of the state dict in e2cnn's
        parametrisation, as in the published files; recomputed otherwise.
    """

    basis: Tensor

    def __init__(
        self,
        kernels: SteerableKernels,
        in_fields: int,
        out_fields: int,
        kernel_size: int,
        *,
        source: Field = "regular",
        target: Field = "regular",
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.fields = out_fields, in_fields
        self.kernel_size = kernel_size
        self.stride = stride
        basis = torch.from_numpy(kernels.basis(kernel_size, source, target))
        self.register_buffer("basis", basis, persistent=kernels.parametrisation == "e2cnn")
        # He's rule for the expanded kernel: the squared entries that feed one output channel sum to 2.
        power = in_fields * float((basis**2).sum()) / basis.shape[1]
        self.weights = nn.Parameter(torch.randn(out_fields * in_fields * len(basis)) * math.sqrt(2 / power))

    def filter(self) -> Tensor:
        """The plain kernel, (out channels, in channels, kernel_size, kernel_size): sum of weights times basis."""
        elements, target, source, _ = self.basis.shape
        coefficients = self.weights.view(-1, elements)
        kernel = coefficients @ self.basis.reshape(elements, -1)  # (out fields * in fields, target * source * k^2)
        out_fields, in_fields = self.fields
        kernel = kernel.view(out_fields, in_fields, target, source, -1).transpose(1, 2)
        k = self.kernel_size
        return kernel.reshape(out_fields * target, in_fields * source, k, k)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.filter(), stride=self.stride, padding=self.kernel_size // 2)

    def plain(self) -> nn.Conv2d:
        """The same as an ordinary channels-last convolution, with a bias of zero."""
        kernel = self.filter().detach().contiguous(memory_format=torch.channels_last)
        out_channels, in_channels, k, _ = kernel.shape
        # made on "meta" and filled by assignment: drawing initial values to throw away is slow
        conv = nn.Conv2d(in_channels, out_channels, k, self.stride, k // 2, device="meta")
        conv.weight = nn.Parameter(kernel, requires_grad=False)
        conv.bias = nn.Parameter(kernel.new_zeros(out_channels), requires_grad=False)
        return conv


class FieldBatchNorm(nn.BatchNorm3d):
    """Batch normalisation with one mean, variance, scale and shift for each field of `order` channels."""

    def __init__(self, fields: int, order: int) -> None:
        super().__init__(fields)
        self.order = order

    def forward(self, input: Tensor) -> Tensor:
        batch, _, height, width = input.shape
        fields = input.view(batch, self.num_features, self.order, height, width)
        return super().forward(fields).reshape(input.shape)

    def affine_map(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of every channel in evaluation, each (fields * order,)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight / torch.sqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return scale.detach().repeat_interleave(self.order), shift.detach().repeat_interleave(self.order)


class ChannelAffine(nn.Module):
    """x * scale + shift for every channel: a normalisation in evaluation with no convolution before it."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def inference_form(network: Network) -> Network:
    """A copy of `network` with plain convolutions, its normalisations folded in, in evaluation and channels-last.

    A `FieldBatchNorm` registered right after a `GroupConv2d` normalises that convolution's output and is folded
    into it; one that follows anything else becomes a `ChannelAffine`. An inference form gives a copy of itself.
    """
    plain = copy.deepcopy(network)
    _expand_children(plain)
    return plain.eval().requires_grad_(False)


def _expand_children(module: nn.Module) -> None:
    previous: nn.Module | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, GroupConv2d):
            child = child.plain()
            setattr(module, name, child)
        elif isinstance(child, FieldBatchNorm) and isinstance(previous, nn.Conv2d):
            _fold(previous, child)
            setattr(module, name, nn.Identity())
        elif isinstance(child, FieldBatchNorm):
            setattr(module, name, ChannelAffine(*child.affine_map()))
        else:
            _expand_children(child)
        previous = child


def _fold(conv: nn.Conv2d, norm: FieldBatchNorm) -> None:
    assert conv.bias is not None
    scale, shift = norm.affine_map()
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias.mul_(scale).add_(shift)
