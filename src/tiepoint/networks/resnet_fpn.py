"""The residual network with a feature pyramid that LoFTR looks through (Sun et al., CVPR 2021, section 3.1)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


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
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
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
