"""Turning a trained network into one that computes the same with fewer passes over memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch normalisation that follows a convolution in a Sequential into it, in place.

    For a network in evaluation mode only; its tensor names change.
    """
    for module in list(network.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for i in range(len(module) - 1):
            convolution, norm = module[i], module[i + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[i], module[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()


def channels_last(x: Tensor) -> Tensor:
    """`x` (B, C, H, W) laid out channels-last, so that what a network makes of it is too.

    Where C is 1 torch holds every layout for that one and would go on with (B, H, W) planes.
    """
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
