"""The moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """A copy of a network whose weights and running statistics follow it slowly.

    decay: weight of the old average at each update; smaller in the first steps, (1 + k) / (10 + k) after k, so
    that the random initial weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        own, other = self.network.state_dict(), network.state_dict()
        floating = [name for name, tensor in own.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([own[n] for n in floating], [other[n] for n in floating], weight)
        for name in own.keys() - set(floating):
            own[name].copy_(other[name])
