"""3 x 3 convolutions with half the multiplications: Winograd's minimal filtering (Lavin and Gray, CVPR 2016).

F(4, 3), section 4.1: four outputs y of a filter g of three taps over six inputs d take six products, not twelve,

    y = Aᵀ [(G g) * (Bᵀ d)],

because a product of polynomials is known from its values at six points, here 0, 1, -1, 2, -2 and infinity. It is
laid down the columns of the image alone: four rows come of six 1 x 3 convolutions, each of one sum of six rows.
Nested in both directions it would save half of the products again, for three times the sums, which are bound by
memory. Rounding errors are about three times those of the plain convolution, a few 1e-5 of the values' spread at most.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 4  # that come of one set of products
MIN_CHANNELS = 64  # among fewer the sums cost what the products save
STRIP_BYTES = 6 << 20  # of input worked on at a time, for the caches
_G = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)


def faster(conv: nn.Conv2d) -> nn.Module:
    """`conv`, or where that gains its `WinogradConv2d`: for inference on the device and in the type it has now."""
    plain = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    fits = plain and conv.kernel_size == (3, 3) and conv.padding == (1, 1)
    return WinogradConv2d(conv.weight, conv.bias) if fits and pays(conv.weight) else conv


def make_faster(network: nn.Module) -> None:
    """`faster` for each convolution in `network`, in place."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, faster(child))


def pays(weight: Tensor) -> bool:
    """Whether a convolution of stride 1 by `weight` (D, C, h, w) can be a `WinogradConv2d`, and is faster so."""
    if weight.shape[2:] != (3, 3):
        return False
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and min(weight.shape[:2]) >= MIN_CHANNELS


class WinogradConv2d(nn.Module):
    """The convolution of stride 1 with weight (D, C, 3, 3) and bias (D,) or None, without a gradient.

    filters: (6, D, 1, 3, C), the rows of the weight at each point.
    """

    filters: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        filters = torch.einsum("pr,dcrx->pdxc", _G, weight.detach().double()).to(weight.dtype)
        self.register_buffer("filters", filters[:, :, None].contiguous(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Tensor, row_padding: int = 1) -> Tensor:
        """x (B, C, H, W) to (B, D, H - 2 + 2 row_padding, W), both channels-last; columns are padded by one."""
        batch, _, height, width = x.shape
        num_out = height - 2 + 2 * row_padding
        num_steps = -(-num_out // ROWS)
        out = x.new_empty(batch, ROWS * num_steps, width, self.filters.shape[1])
        num_strips = max(1, -(-x.nbytes // STRIP_BYTES))
        at_once = -(-num_steps // num_strips)
        for step in range(0, num_steps, at_once):
            first = ROWS * step
            last = ROWS * min(step + at_once, num_steps)
            strip = _rows(x, first - row_padding, last + 2 - row_padding)
            self._convolve(strip, out[:, first:last])
        return out[:, :num_out].permute(0, 3, 1, 2)

    def _convolve(self, x: Tensor, out: Tensor) -> None:
        """x (B, C, 4 n + 2, W) to out (B, 4 n, W, D)."""
        height = x.shape[2]
        d0, d1, d2, d3, d4, d5 = (x[:, :, i : height - 5 + i : ROWS] for i in range(6))
        products = (self._product(point, sums) for point, sums in enumerate(_at_points(d0, d1, d2, d3, d4, d5)))
        m0, m1, m2, m3, m4, m5 = products
        y0, y1, y2, y3 = (out[:, i::ROWS] for i in range(ROWS))
        even1, odd1 = m1 + m2, m1.sub_(m2)
        even2, odd2 = m3 + m4, m3.sub_(m4)
        torch.add(even1, even2, out=y0).add_(m0)
        torch.add(odd1, odd2, alpha=2, out=y1)
        torch.add(even1, even2, alpha=4, out=y2)
        torch.add(odd1, odd2, alpha=8, out=y3).add_(m5)

    def _product(self, point: int, sums: Tensor) -> Tensor:
        """Sums of rows (B, C, n, W) to (B, n, W, D)."""
        bias = self.bias if point == 1 else None  # there it is the bias of all four rows
        return F.conv2d(sums, self.filters[point].permute(0, 3, 1, 2), bias, padding=(0, 1)).permute(0, 2, 3, 1)


def _at_points(d0: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, d4: Tensor, d5: Tensor) -> Iterator[Tensor]:
    """The rows of Bᵀ d, each when it is asked for, so that it is still in the cache when it is convolved."""
    yield torch.add(d4, d2, alpha=-5).add_(d0, alpha=4)
    even, odd = torch.sub(d4, d2, alpha=4), torch.sub(d3, d1, alpha=4)
    yield even + odd
    yield even.sub_(odd)
    even, odd = d4 - d2, d3 - d1
    yield torch.add(even, odd, alpha=2)
    yield even.sub_(odd, alpha=2)
    yield torch.add(d5, d3, alpha=-5).add_(d1, alpha=4)


def _rows(x: Tensor, first: int, last: int) -> Tensor:
    """Rows first to last of `x` (B, C, H, W), zero where there are none."""
    above, below = max(-first, 0), max(last - x.shape[2], 0)
    there = x[:, :, max(first, 0) : last]
    return F.pad(there, (0, 0, above, below)) if above or below else there
