"""Matrix products on the fastest route."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias: (..., N, C) by (D, C) to (..., N, D), as `F.linear`.

    On the CPU it is put as a 1 x 1 convolution over a channels-last map, which torch hands to oneDNN; for large
    products that is about twice as fast as the BLAS behind `F.linear` on AMD processors, in full precision.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, C, N, 1), no copy where x is contiguous
    out = F.conv2d(pixels, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])
