"""The residual network with a feature pyramid that LoFTR looks through (Sun et al., CVPR 2021, section 3.1)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tiepoint.networks.folding import channels_last
from tiepoint.networks.winograd import faster


class FeatureMaps(NamedTuple):
    """What the backbone sees in one image or batch of images of (H, W) pixels, both multiples of 8.

    coarse: (B, widths[2], H / 8, W / 8).
    fine: (B, widths[0], H / 2, W / 2).
    """

    coarse: Tensor
    fine: Tensor


class ResNetFPN(nn.Module):
    """Grey (B, 1, H, W) in [0, 1] to the maps at 1/8 and at 1/2 of the size.

    widths: channels at 1/2, 1/4 and 1/8 of the size; those of the published network by default. The names of
    the parts are those of the published checkpoints.
    """

    def __init__(self, widths: tuple[int, int, int] = (128, 196, 256)) -> None:
        super().__init__()
        at2, at4, at8 = widths
        self.conv1 = nn.Conv2d(1, at2, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(at2)
        self.layer1 = nn.Sequential(BasicBlock(at2, at2), BasicBlock(at2, at2))
        self.layer2 = nn.Sequential(BasicBlock(at2, at4, stride=2), BasicBlock(at4, at4))
        self.layer3 = nn.Sequential(BasicBlock(at4, at8, stride=2), BasicBlock(at8, at8))
        self.layer3_outconv = nn.Conv2d(at8, at8, 1, bias=False)
        self.layer2_outconv = nn.Conv2d(at4, at8, 1, bias=False)
        self.layer2_outconv2 = merging_block(at8, at4)
        self.layer1_outconv = nn.Conv2d(at2, at4, 1, bias=False)
        self.layer1_outconv2 = merging_block(at4, at2)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, gray: Tensor) -> FeatureMaps:
        half = self.layer1(F.relu(self.bn1(self.conv1(gray))))
        quarter = self.layer2(half)
        coarse = self.layer3_outconv(self.layer3(quarter))
        middle = self.layer2_outconv2(self.layer2_outconv(quarter) + doubled(coarse))
        fine = self.layer1_outconv2(self.layer1_outconv(half) + doubled(middle))
        return FeatureMaps(coarse, fine)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a skip, which is a 1 x 1 convolution where the block changes the size."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        skip = x if self.downsample is None else self.downsample(x)
        return F.relu(skip + y)


def merging_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """What smooths the sum of a finer map and the doubled coarser one."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.LeakyReLU(0.01),
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
    )


def doubled(x: Tensor) -> Tensor:
    """`x` (B, C, h, w) at (B, C, 2 h, 2 w), bilinear.

    Corner cells are laid over corner cells, so the two grids drift apart by up to half a cell; the published
    weights were trained with it.
    """
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class Pyramid(NamedTuple):
    """What the fast form keeps of an image: all but the fine map, which is made where it is asked for.

    coarse: (B, widths[2], H / 8, W / 8), as in FeatureMaps.
    middle: (B, widths[1], H / 4, W / 4) and half: (B, widths[0], H / 2, W / 2), what the fine map is made of.
    """

    coarse: Tensor
    middle: Tensor
    half: Tensor


class FastResNetFPN:
    """`ResNetFPN` for inference: normalisation folded, channels-last, activations and sums in place.

    The last stage at 1/2 of the size is 30 % of all operations, and only what lies around matches is looked at;
    so `pyramid` stops before it, and `fine_squares` computes squares of the fine map.

    dtype: of the maps and the products. The first layer and the fine squares are float32 all the same: they cost
        little, and in bf16 they would make half of the error in where points are put.
    """

    def __init__(self, network: ResNetFPN, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.stem = folded(torch.float32, network.conv1, network.bn1)
        self.layers = [
            [FastBasicBlock(block, dtype) for block in layer if isinstance(block, BasicBlock)]
            for layer in (network.layer1, network.layer2, network.layer3)
        ]
        self.coarse = folded(dtype, network.layer3_outconv)
        self.quarter = folded(dtype, network.layer2_outconv)
        self.middle = faster(folded(dtype, network.layer2_outconv2[0], network.layer2_outconv2[1]))
        self.middle_out = faster(folded(dtype, network.layer2_outconv2[3]))
        self.half = folded(torch.float32, network.layer1_outconv)
        self.fine = folded(torch.float32, network.layer1_outconv2[0], network.layer1_outconv2[1])
        self.fine_out = folded(torch.float32, network.layer1_outconv2[3])

    def pyramid(self, gray: Tensor) -> Pyramid:
        """Of grey (B, 1, H, W) in [0, 1], H and W multiples of 8."""
        x = F.relu_(self.stem(channels_last(gray))).to(self.dtype)
        at_sizes = []
        for layer in self.layers:
            for block in layer:
                x = block(x)
            at_sizes.append(x)
        half, quarter, eighth = at_sizes
        coarse = self.coarse(eighth)
        middle = F.leaky_relu_(self.middle(self.quarter(quarter).add_(doubled(coarse))), 0.01)
        return Pyramid(coarse, self.middle_out(middle), half)

    def fine_squares(self, middle: Tensor, half: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
        """(K, C, side, side) float32: squares of one image's fine map, which is zero outside of the image.

        middle (1, C4, H / 4, W / 4), half (1, C2, H / 2, W / 2); top, left: (K,) int64, of each square's first
        cell of the fine map; they may lie outside.
        """
        height, width = half.shape[2:]
        around = torch.arange(-2, side + 2, device=top.device)  # with what two 3 x 3 kernels reach beyond
        rows, columns = top[:, None] + around, left[:, None] + around
        inside_y, inside_x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        inside = (inside_y[:, :, None] & inside_x[:, None, :]).unsqueeze(1)
        squares = take_squares(half, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
        x = self.half(squares).add_(doubled_squares(middle, rows, columns)).mul_(inside)
        x = F.leaky_relu_(unpadded(self.fine, x), 0.01).mul_(inside[..., 1:-1, 1:-1])
        return unpadded(self.fine_out, x).mul_(inside[..., 2:-2, 2:-2])


class FastBasicBlock:
    def __init__(self, block: BasicBlock, dtype: torch.dtype) -> None:
        self.conv1 = faster(folded(dtype, block.conv1, block.bn1))
        self.conv2 = faster(folded(dtype, block.conv2, block.bn2))
        self.downsample = folded(dtype, *block.downsample) if isinstance(block.downsample, nn.Sequential) else None

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.relu_(self.conv1(x)))
        return F.relu_(y.add_(x if self.downsample is None else self.downsample(x)))


def folded(dtype: torch.dtype, conv: nn.Module, norm: nn.Module | None = None) -> nn.Conv2d:
    """A convolution and the normalisation after it as one of number type `dtype`, its weight channels-last."""
    assert isinstance(conv, nn.Conv2d)
    assert norm is None or isinstance(norm, nn.BatchNorm2d)
    fused = copy.deepcopy(conv) if norm is None else fuse_conv_bn_eval(conv, norm)
    fused = fused.to(dtype).requires_grad_(False)
    fused.weight.data = fused.weight.data.contiguous(memory_format=torch.channels_last)
    return fused


def unpadded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv` where it needs nothing from outside of `x`."""
    return F.conv2d(x, conv.weight, conv.bias)


def take_squares(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(K, C, h, w) float32, channels-last: the cells (rows[k], columns[k]) of x (1, C, H, W).

    rows (K, h), columns (K, w), all of them within the map.
    """
    flat = x[0].permute(1, 2, 0).reshape(-1, x.shape[1])
    index = rows[:, :, None] * x.shape[3] + columns[:, None, :]
    return flat[index.flatten()].view(*index.shape, -1).permute(0, 3, 1, 2).float()


def doubled_squares(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(K, C, h, w) float32, channels-last: the cells (rows[k], columns[k]) of `doubled(x)`, x (1, C, H, W).

    rows (K, h) and columns (K, w) are consecutive. Cells outside of the doubled map get any finite value.
    """
    from_rows, weight_y = _between(rows, x.shape[2])
    from_columns, weight_x = _between(columns, x.shape[3])
    squares = take_squares(x, from_rows, from_columns).permute(0, 2, 3, 1)  # (K, m, m, C)
    count, m, n, channels = squares.shape
    squares = (weight_y @ squares.reshape(count, m, n * channels)).view(count, -1, n, channels)
    return (weight_x.unsqueeze(1) @ squares).permute(0, 3, 1, 2)


def _between(places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where cells `places` (K, n) of a doubled axis lie on the axis of `size` cells.

    Returns the cells they lie between, (K, m) int64, and the weight of each, (K, n, m): its distance in cells,
    taken from 1.
    """
    scale = torch.tensor((size - 1) / (2 * size - 1), dtype=torch.float32, device=places.device)
    position = places.clamp(0, 2 * size - 1) * scale
    around = position[:, :1].floor() + torch.arange(places.shape[1] // 2 + 2, device=places.device)  # (K, m)
    weight = (1 - (position[:, :, None] - around[:, None, :]).abs()).clamp(min=0)
    return around.long().clamp(max=size - 1), weight
