"""The two rotation-equivariant residual networks of RELF (Lee, Kim, Kim, Cho, CVPR 2023, section 4).

Both give their maps one after the other, finest first, so that a caller can sample each and let it go.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiepoint.networks.group_convolution import FieldBatchNorm, GroupConv2d
from tiepoint.networks.steerable_basis import Field, Parametrisation, SteerableKernels


class EquivariantBackbone(nn.Module):
    """A network from (B, 3, H, W) to maps of regular fields, (B, fields * order, about H / stride, W / stride).

    strides: of the maps, in the order they are given. num_fields: their fields, likewise.
    """

    order: int
    strides: tuple[int, ...]
    num_fields: tuple[int, ...]

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """The maps, finest first, each made when asked for."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.stages(x))


class ReResNet(EquivariantBackbone):
    """ReResNet-18 with all five maps: stem 7 x 7 of stride 2, no pooling, four stages of two basic blocks.

    Maps: the stem's at stride 2, then the stages' at 2, 4, 8, 16, of 64, 64, 128, 256, 512 channels.
    Raises ValueError for an order that does not divide 64.
    """

    strides = (2, 2, 4, 8, 16)

    def __init__(self, order: int = 16, parametrisation: Parametrisation = "ring_fourier") -> None:
        super().__init__()
        if 64 % order:
            raise ValueError(f"order: expected a divisor of 64, got {order}")
        self.order = order
        self.num_fields = tuple(channels // order for channels in (64, 64, 128, 256, 512))
        kernels = SteerableKernels(order=order, cutoff_slope=3.0, parametrisation=parametrisation)
        stem, first, second, third, fourth = self.num_fields
        self.conv1 = GroupConv2d(kernels, 3, stem, 7, source="trivial", stride=2)
        self.bn1 = FieldBatchNorm(stem, order)
        self.layer1 = _stage(kernels, stem, first, stride=1)
        self.layer2 = _stage(kernels, first, second, stride=2)
        self.layer3 = _stage(kernels, second, third, stride=2)
        self.layer4 = _stage(kernels, third, fourth, stride=2)

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        x = functional.relu_(self.bn1(self.conv1(x)))
        yield x
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            yield x


def _stage(kernels: SteerableKernels, in_fields: int, fields: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(kernels, in_fields, fields, stride), BasicBlock(kernels, fields, fields, stride=1)
    )


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), 3 x 3; the shortcut is the identity where shapes allow."""

    def __init__(self, kernels: SteerableKernels, in_fields: int, fields: int, stride: int) -> None:
        super().__init__()
        self.conv1 = GroupConv2d(kernels, in_fields, fields, 3, stride=stride)
        self.bn1 = FieldBatchNorm(fields, kernels.order)
        self.conv2 = GroupConv2d(kernels, fields, fields, 3)
        self.bn2 = FieldBatchNorm(fields, kernels.order)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_fields != fields:
            shortcut = GroupConv2d(kernels, in_fields, fields, 1, stride=stride)
            self.downsample = nn.Sequential(shortcut, FieldBatchNorm(fields, kernels.order))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu_(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return functional.relu_(y)


class ReWideResNet(EquivariantBackbone):
    """Re-WideResNet-16-8 over C8: stem 5 x 5, three groups of two pre-activation blocks, 5 x 5.

    Maps: the groups' at strides 2, 4, 8, of 128, 256, 512 channels.
    published_flaw: end group 3 in 512 trivial fields, which are then read as 64 regular ones. That map does not
        turn with the image, so its orientations mean nothing; the published weights have it so. Without it the
        last block ends in regular fields and every map passes a ReLU, which makes orientation histograms
        non-negative.
    """

    strides = (2, 4, 8)
    num_fields = (16, 32, 64)
    order = 8

    def __init__(
        self, parametrisation: Parametrisation = "ring_fourier", *, published_flaw: bool = False
    ) -> None:
        super().__init__()
        slope = 0.8 * torch.pi
        kernels = SteerableKernels(
            order=8, cutoff_slope=slope, ring_width_px=0.6, parametrisation=parametrisation
        )
        self.published_flaw = published_flaw
        self.conv1 = GroupConv2d(kernels, 3, 5, 5, source="trivial")
        self.layer1 = _wide_group(kernels, 5, 16)
        self.layer2 = _wide_group(kernels, 16, 32)
        self.layer3 = _wide_group(kernels, 32, 64, trivial_end=published_flaw)

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        x = self.conv1(x)
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
            yield x if self.published_flaw else functional.relu(x)


def _wide_group(
    kernels: SteerableKernels, in_fields: int, fields: int, *, trivial_end: bool = False
) -> nn.Sequential:
    return nn.Sequential(
        PreActivationBlock(kernels, in_fields, fields, stride=2),
        PreActivationBlock(kernels, fields, fields, stride=1, trivial_end=trivial_end),
    )


class PreActivationBlock(nn.Module):
    """conv(relu(bn(conv(relu(bn(x)))))) + shortcut, 5 x 5, with the stride in the second convolution.

    The shortcut is the identity, or where shapes differ a 1 x 1 convolution of relu(bn(x)) without normalisation.
    trivial_end: end in as many trivial fields as there would be channels.
    """

    def __init__(
        self,
        kernels: SteerableKernels,
        in_fields: int,
        fields: int,
        stride: int,
        *,
        trivial_end: bool = False,
    ) -> None:
        super().__init__()
        target: Field = "trivial" if trivial_end else "regular"
        out_fields = fields * kernels.order if trivial_end else fields
        self.bn1 = FieldBatchNorm(in_fields, kernels.order)
        self.conv1 = GroupConv2d(kernels, in_fields, fields, 5)
        self.bn2 = FieldBatchNorm(fields, kernels.order)
        self.conv2 = GroupConv2d(kernels, fields, out_fields, 5, target=target, stride=stride)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_fields != fields or trivial_end:
            self.shortcut = GroupConv2d(kernels, in_fields, out_fields, 1, target=target, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu_(self.bn1(x))
        y: Tensor = self.conv2(functional.relu_(self.bn2(self.conv1(active))))
        y += x if self.shortcut is None else self.shortcut(active)
        return y
