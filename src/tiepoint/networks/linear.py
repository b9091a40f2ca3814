"""A linear layer whose product runs at the processor's full speed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """torch's linear layer in its weights' number type, by the faster of two routes.

    torch hands float32 products on a CPU to MKL, which runs at half speed on some processors not made by Intel,
    and 1 x 1 convolutions to oneDNN, which does not; both compute in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        rows = input.to(self.weight.dtype)
        if rows.device.type != "cpu" or rows.dtype != torch.float32 or torch.is_grad_enabled():
            return super().forward(rows)
        pixels = rows.reshape(1, -1, 1, self.in_features).permute(
            0, 3, 1, 2
        )  # (1, C, rows, 1), channels last
        out = F.conv2d(pixels, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)
