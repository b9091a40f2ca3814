"""LoFTR's network in the form that matches: the same numbers as `loftr.py` with less work and memory.

The backbone is folded (`FastResNetFPN`), the first self-attention belongs to the encoding of the image, the
confidence matrix is never written down, and the fine map is computed in squares around the matches alone.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from tiepoint.networks.linear import linear
from tiepoint.networks.loftr import CELL, FINE, WINDOW, LoftrNetwork, expectation, position_code, score_scale
from tiepoint.networks.mutual_matching import MutualMatches, match_by_dual_softmax, match_by_optimal_transport
from tiepoint.networks.resnet_fpn import FastResNetFPN

STEP = CELL // FINE  # fine cells to a side of a coarse cell
MIN_CELLS = 5
WINDOWS_AT_ONCE = 1024
SQUARE_CELLS_AT_ONCE = 1 << 16  # cells of the fine map computed together: some 60 MB for each step in float32


class EncodedImage(NamedTuple):
    """One image, encoded.

    tokens: (h w, C) float32, the cells' features after the first self-attention.
    middle: (1, C4, H / 4, W / 4), half: (1, C2, H / 2, W / 2), what the fine map is made of.
    grid: (rows, columns) of cells that are image; h w of them.
    """

    tokens: Tensor
    middle: Tensor
    half: Tensor
    grid: tuple[int, int]


class CellMatches(NamedTuple):
    """Matches in the network's own frame, in which cell (column, row) is the point 8 (column, row).

    points0, points1: (K, 2) float32, pixels; points0 lie on cells.
    confidence: (K,). sigma: (K,) as in FineMatches. cells0, cells1: (K,) int64.
    """

    points0: Tensor
    points1: Tensor
    confidence: Tensor
    sigma: Tensor
    cells0: Tensor
    cells1: Tensor


class LoftrInference:
    """Encodes images and matches pairs of them with the weights a `LoftrNetwork` has now.

    dtype: of the backbone's maps and of the products in the coarse transformer. What its layers hand on, the
        scores and the refinement are float32, as is the little of the backbone that says so.
    block: rows of the confidence matrix held at a time.
    """

    def __init__(self, network: LoftrNetwork, dtype: torch.dtype = torch.float32, block: int = 256) -> None:
        self.config = network.config
        self.block = block
        self.backbone = FastResNetFPN(network.backbone, dtype)
        self.coarse = copy.deepcopy(network.loftr_coarse).to(dtype)
        self.context = copy.deepcopy(network.fine_preprocess)
        self.fine = copy.deepcopy(network.loftr_fine)
        self.bin_score = (
            network.coarse_matching.bin_score.detach().clone()
            if network.config.matching == "optimal_transport"
            else None
        )

    @torch.inference_mode()
    def encode(self, gray: Tensor, grids: list[tuple[int, int]] | None = None) -> list[EncodedImage]:
        """Of images (B, 1, H, W) in [0, 1], H and W multiples of 8.

        grids: the (rows, columns) of cells that are image in each; the rest is padding, below and to the right,
        which is left out. None: all.
        """
        maps = self.backbone.pyramid(gray)
        rows, columns = maps.coarse.shape[2:]
        return [
            EncodedImage(
                self._tokens(maps.coarse[i : i + 1, :, : grid[0], : grid[1]]),
                maps.middle[i : i + 1],
                maps.half[i : i + 1],
                grid,
            )
            for i, grid in enumerate(grids or [(rows, columns)] * len(gray))
        ]

    def _tokens(self, coarse: Tensor) -> Tensor:
        _, channels, rows, columns = coarse.shape
        code = position_code(channels, rows, columns, self.config.position_code).to(coarse.device)
        tokens = (coarse + code).flatten(2).transpose(1, 2).contiguous()  # (1, h w, C)
        first: Tensor = self.coarse.layers[0](tokens, tokens)
        return first[0]

    @torch.inference_mode()
    def match(self, image0: EncodedImage, image1: EncodedImage) -> CellMatches:
        """The matches between two encoded images, in the order of image 0's cells.

        An image of fewer than 5 cells to a side matches nothing: among so few, being the best is no evidence.
        """
        if min(*image0.grid, *image1.grid) < MIN_CELLS:
            return _no_matches(image0.tokens.device)
        tokens0, tokens1 = (t[0] for t in self.coarse.after_first(image0.tokens[None], image1.tokens[None]))
        found = self._coarse_matches(tokens0, tokens1)
        kept = self._off_border(found.rows, image0.grid) & self._off_border(found.columns, image1.grid)
        if not kept.any():
            return _no_matches(kept.device)
        cells0, cells1 = found.rows[kept], found.columns[kept]
        windows0, windows1 = self._windows(image0, tokens0, cells0), self._windows(image1, tokens1, cells1)
        offset, sigma = self._refined(windows0, windows1)
        points0, points1 = corners(cells0, image0.grid[1]), corners(cells1, image1.grid[1])
        points1 = points1 + offset * (WINDOW // 2 * FINE)
        return CellMatches(points0, points1, found.confidence[kept], sigma, cells0, cells1)

    def _coarse_matches(self, tokens0: Tensor, tokens1: Tensor) -> MutualMatches:
        config = self.config
        scale = score_scale(config)
        if self.bin_score is None:
            return match_by_dual_softmax(tokens0, tokens1, scale, config.threshold, self.block)
        return match_by_optimal_transport(
            tokens0,
            tokens1,
            scale,
            self.bin_score,
            config.num_sinkhorn_iterations,
            config.threshold,
            self.block,
            prefilter=config.prefilter,
        )

    def _off_border(self, cells: Tensor, grid: tuple[int, int]) -> Tensor:
        border, (rows, columns) = self.config.border_cells, grid
        y, x = torch.div(cells, columns, rounding_mode="floor"), cells % columns
        return (x >= border) & (y >= border) & (x < columns - border) & (y < rows - border)

    def _windows(self, image: EncodedImage, tokens: Tensor, cells: Tensor) -> Tensor:
        """(K, 25, C): the fine window of each cell with its token mixed in."""
        context, merge = self.context.down_proj, self.context.merge_feat
        from_window, from_context = merge.weight.chunk(2, dim=1)
        mixed = linear(linear(tokens[cells], context.weight, context.bias), from_context, merge.bias)
        windows = fine_windows(self.backbone, image, cells)
        return linear(windows, from_window.contiguous()).add_(mixed[:, None, :])

    def _refined(self, windows0: Tensor, windows1: Tensor) -> tuple[Tensor, Tensor]:
        """(K, 2) offsets in [-1, 1] and (K,) their spread."""
        parts = [
            expectation(*self.fine(part0, part1))
            for part0, part1 in zip(
                torch.split(windows0, WINDOWS_AT_ONCE), torch.split(windows1, WINDOWS_AT_ONCE), strict=True
            )
        ]
        return torch.cat([part.offset for part in parts]), torch.cat([part.sigma for part in parts])


def _no_matches(device: torch.device) -> CellMatches:
    points, values = torch.zeros(0, 2, device=device), torch.zeros(0, device=device)
    cells = torch.zeros(0, dtype=torch.int64, device=device)
    return CellMatches(points, points, values, values, cells, cells)


def corners(cells: Tensor, num_columns: int) -> Tensor:
    """(K, 2) float32: the point of each cell in the network's frame."""
    return (
        CELL
        * torch.stack([cells % num_columns, torch.div(cells, num_columns, rounding_mode="floor")], 1).float()
    )


def fine_windows(backbone: FastResNetFPN, image: EncodedImage, cells: Tensor) -> Tensor:
    """(K, 25, C): the 5 x 5 windows of the fine map around `cells` of the image.

    The cells are covered by squares of n x n cells, n chosen for least work: 1 where matches are rare, 8 where
    most cells match and a square's rim, which its neighbours compute too, would cost most.
    """
    columns = image.grid[1]
    y, x = torch.div(cells, columns, rounding_mode="floor"), cells % columns
    covers = [torch.unique(torch.stack([y // n, x // n]), dim=1, return_inverse=True) for n in SQUARES]
    best = min(range(len(SQUARES)), key=lambda i: covers[i][0].shape[1] * square_cost(backbone, SQUARES[i]))
    n, (squares, owner) = SQUARES[best], covers[best]
    side = STEP * n + WINDOW - STEP
    windows = torch.empty(len(cells), WINDOW**2, backbone.fine_out.weight.shape[0], device=cells.device)
    around = torch.arange(WINDOW, device=cells.device)
    at_once = max(1, SQUARE_CELLS_AT_ONCE // (side + 4) ** 2)
    for first in range(0, squares.shape[1], at_once):
        top, left = STEP * n * squares[:, first : first + at_once] - WINDOW // 2
        made = backbone.fine_squares(image.middle, image.half, top, left, side).permute(0, 2, 3, 1)
        here = torch.nonzero((owner >= first) & (owner < first + len(top))).squeeze(1)
        rows = (STEP * (y[here] % n))[:, None] + around
        places = (STEP * (x[here] % n))[:, None] + around
        windows[here] = made[owner[here, None, None] - first, rows[:, :, None], places[:, None, :]].flatten(
            1, 2
        )
    return windows


SQUARES = (1, 2, 4, 8)


def square_cost(backbone: FastResNetFPN, n: int) -> int:
    """Products in the two 3 x 3 convolutions that make the windows of a square of n x n cells."""
    side = STEP * n + WINDOW - STEP
    return (side + 2) ** 2 * backbone.fine.weight.numel() + side**2 * backbone.fine_out.weight.numel()
