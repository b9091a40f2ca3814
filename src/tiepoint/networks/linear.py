"""A linear layer whose product runs at the processor's full speed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """torch's linear layer, computed as a 1 x 1 convolution where that is faster: float32 on a CPU.

    torch hands float32 products to MKL, which runs at about half speed on processors not made by Intel, and
    1 x 1 convolutions to oneDNN, which does not; both compute in float32 (`docs/roma.md`, speed).
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or input.dtype != torch.float32 or torch.is_grad_enabled():
            return super().forward(input)
        rows = input.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # (1, C, rows, 1), channels last
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)
