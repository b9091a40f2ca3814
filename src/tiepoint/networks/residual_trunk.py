"""A small trunk of residual blocks and attention to stride 16, trainable from nothing on one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from tiepoint.networks.vit import Block


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Widths of the stages at strides 2, 4, 8 and 16, and the attention that follows the last.

    Position enters by the convolutions' zero padding alone, so that any image size will do.
    """

    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    attention_blocks: int = 2
    num_heads: int = 4


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, added to their input (He et al. 2016), halving its sides."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.skip = nn.Sequential(nn.Conv2d(channels, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.skip(x))


class ResidualTrunk(nn.Module):
    """Images (B, 3, H, W), H and W multiples of 16, to features (B, widths[-1], H / 16, W / 16)."""

    stride = 16

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.dim = config.widths[-1]
        # The first stage has no skip: torch 2.13 corrupts memory in the weight gradient of a strided 1 x 1
        # convolution from three channels, channels last, on the CPU.
        stem = nn.Sequential(
            nn.Conv2d(3, config.widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(config.widths[0]),
            nn.ReLU(inplace=True),
        )
        residual = (ResidualBlock(a, b) for a, b in zip(config.widths[:-1], config.widths[1:], strict=True))
        self.stages = nn.Sequential(stem, *residual)
        self.blocks = nn.ModuleList(
            Block(self.dim, config.num_heads, qkv_bias=True, layer_scale=False)
            for _ in range(config.attention_blocks)
        )
        self.norm = nn.LayerNorm(self.dim)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stages(images)
        tokens = maps.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return cast(Tensor, self.norm(tokens).transpose(1, 2).unflatten(2, maps.shape[-2:]))
