"""LoFTR's network (Sun et al., CVPR 2021) in the form that trains; `loftr_inference.py` holds the fast one.

Images are grey (B, 1, H, W) in [0, 1], H and W multiples of 8. A cell is 8 x 8 pixels; cells are counted row by
row. Batches of images of several sizes are padded below and to the right, with masks of the cells that are
image, (B, H / 8, W / 8) bool. Points are in the network's own frame: cell (column, row) is the point
8 (column, row).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiepoint.networks.linear_transformer import LinearTransformer
from tiepoint.networks.mutual_matching import dual_softmax, log_dual_softmax
from tiepoint.networks.optimal_transport import log_optimal_transport, optimal_transport
from tiepoint.networks.resnet_fpn import FeatureMaps, ResNetFPN

CELL = 8  # pixels to a side of a coarse cell
FINE = 2  # pixels to a side of a cell of the fine map
WINDOW = 5  # fine cells to a side of the window a match is refined in

Cell = tuple[int, int]
"""(column, row)."""


@dataclass(frozen=True, kw_only=True)
class LoftrConfig:
    """How the network is built, and how its output is read.

    widths: channels of the backbone at 1/2, 1/4 and 1/8; the fine features have widths[0], the coarse widths[2].
    num_heads, num_coarse_pairs, num_fine_pairs: of the two transformers.
    position_code: "fixed", or "old": the published code's slip in the exponent, with which most of the official
        checkpoints were trained and must be run.
    matching: dual softmax, or optimal transport with a learned dustbin.
    temperature: of the dual softmax.
    num_sinkhorn_iterations: of optimal transport.
    prefilter: optimal transport leaves out cells that the dustbin takes most of.
    threshold: confidence above which cells match.
    border_cells: matches that touch the outermost cells of either image, so many deep, are dropped.
    frame: where the network's point (0, 0) lies: at the image's "corner", half a pixel left of and above the first
        pixel's centre (checkpoints trained on COLMAP's intrinsics), or at that pixel's centre ("index").
    max_size_px: long side of the images that the weights know best.
    """

    widths: tuple[int, int, int] = (128, 196, 256)
    num_heads: int = 8
    num_coarse_pairs: int = 4
    num_fine_pairs: int = 1
    position_code: Literal["fixed", "old"] = "fixed"
    matching: Literal["dual_softmax", "optimal_transport"] = "dual_softmax"
    temperature: float = 0.1
    num_sinkhorn_iterations: int = 3
    prefilter: bool = False
    threshold: float = 0.2
    border_cells: int = 2
    frame: Literal["corner", "index"] = "index"
    max_size_px: int = 640

    def __post_init__(self) -> None:
        for name, dim in (("widths[0]", self.widths[0]), ("widths[2]", self.widths[2])):
            if dim % self.num_heads != 0 or dim % 4 != 0:
                raise ValueError(f"{name}: expected a multiple of 4 and of {self.num_heads} heads, got {dim}")

    @property
    def origin(self) -> float:
        """How far the centre of the first pixel lies from the network's point (0, 0), in pixels along x and y."""
        return 0.5 if self.frame == "corner" else 0.0


SMALL = LoftrConfig(widths=(48, 64, 96))  # an eighth of the operations, for CPUs

# Which settings the published weights need, by their names in the weights catalogue. Those that know MegaDepth's
# photographs speak of COLMAP's corner frame; ScanNet's say nothing of theirs, and are taken for the same. The
# indoor figures were published with next to no border dropped.
_OUTDOOR = LoftrConfig(position_code="old", frame="corner", max_size_px=840)
_INDOOR = LoftrConfig(position_code="old", frame="corner", border_cells=0)
CONFIGS: dict[str, LoftrConfig] = {
    "loftr-outdoor-ds": _OUTDOOR,
    "loftr-outdoor-ot": replace(_OUTDOOR, matching="optimal_transport"),
    "loftr-indoor-ds": _INDOOR,
    "loftr-indoor-ds-new": replace(_INDOOR, position_code="fixed"),
    "loftr-indoor-ot": replace(_INDOOR, matching="optimal_transport"),
    "loftr-kornia-outdoor": _OUTDOOR,
    "loftr-kornia-indoor": _INDOOR,
    "loftr-kornia-indoor-new": replace(_INDOOR, position_code="fixed"),
}


def config_of(state: Mapping[str, Tensor]) -> LoftrConfig:
    """The settings of weights that this project's training has made, as their tensors tell them.

    Raises ValueError where they are not LoFTR's at all.
    """
    try:
        at2, at4, at8 = (len(state[f"backbone.{name}.weight"]) for name in ("bn1", "layer2.0.bn1", "layer3.0.bn1"))
    except KeyError as missing:
        raise ValueError(f"no weights of LoFTR: tensor {missing} is not there") from missing
    pairs = {
        part: len({key.split(".")[2] for key in state if key.startswith(f"{part}.layers.")}) // 2
        for part in ("loftr_coarse", "loftr_fine")
    }
    return LoftrConfig(
        widths=(at2, at4, at8),
        num_coarse_pairs=pairs["loftr_coarse"],
        num_fine_pairs=pairs["loftr_fine"],
        matching="optimal_transport" if "coarse_matching.bin_score" in state else "dual_softmax",
    )


class FineMatches(NamedTuple):
    """offset: (K, 2), (x, y) in [-1, 1] from the centre of image 1's window to its rim, which is 4 pixels away.

    sigma: (K,) the spread of the heat map, the sum of its standard deviations along x and y.
    """

    offset: Tensor
    sigma: Tensor


class LoftrNetwork(nn.Module):
    """LoFTR: coarse matches between cells of 8 pixels, each refined to a fraction of a pixel.

    The parts bear the names of the published checkpoints, whose state dicts load strictly (without their prefix
    "matcher.").
    """

    def __init__(self, config: LoftrConfig | None = None) -> None:
        super().__init__()
        config = LoftrConfig() if config is None else config
        self.config = config
        fine_dim, _, coarse_dim = config.widths
        self.backbone = ResNetFPN(config.widths)
        self.loftr_coarse = LinearTransformer(coarse_dim, config.num_heads, config.num_coarse_pairs)
        if config.matching == "optimal_transport":
            self.coarse_matching = Dustbin()
        self.fine_preprocess = FineContext(coarse_dim, fine_dim)
        self.loftr_fine = LinearTransformer(fine_dim, config.num_heads, config.num_fine_pairs)

    def maps(self, gray0: Tensor, gray1: Tensor) -> tuple[FeatureMaps, FeatureMaps]:
        """The backbone's maps; images of one size go through it as one batch."""
        if gray0.shape != gray1.shape:
            return self.backbone(gray0), self.backbone(gray1)
        both = self.backbone(torch.cat([gray0, gray1]))
        (coarse0, coarse1), (fine0, fine1) = both.coarse.chunk(2), both.fine.chunk(2)
        return FeatureMaps(coarse0, fine0), FeatureMaps(coarse1, fine1)

    def position_coded(self, coarse: Tensor, first_cell: Cell = (0, 0)) -> Tensor:
        """(B, h w, C) tokens: the coarse map with the code of each position added."""
        _, channels, height, width = coarse.shape
        code = position_code(channels, height, width, self.config.position_code, first_cell).to(coarse)
        return (coarse + code).flatten(2).transpose(1, 2)

    def coarse_tokens(
        self,
        coarse0: Tensor,
        coarse1: Tensor,
        valid0: Tensor | None = None,
        valid1: Tensor | None = None,
        first_cells: tuple[Cell, Cell] = ((0, 0), (0, 0)),
    ) -> tuple[Tensor, Tensor]:
        """(B, N, C) and (B, M, C): the cells' features once each image has looked at the other.

        first_cells: where each map begins in a larger picture.
        """
        tokens0 = self.position_coded(coarse0, first_cells[0])
        tokens1 = self.position_coded(coarse1, first_cells[1])
        out0, out1 = self.loftr_coarse(tokens0, tokens1, _flat(valid0), _flat(valid1))
        return out0, out1

    def coarse_confidence(
        self, tokens0: Tensor, tokens1: Tensor, valid0: Tensor | None = None, valid1: Tensor | None = None
    ) -> Tensor:
        """P: (B, N, M); by optimal transport (B, N + 1, M + 1), whose last row and column are the dustbins."""
        scores = self._scores(tokens0, tokens1, valid0, valid1)
        if self.config.matching == "dual_softmax":
            return dual_softmax(scores)
        return optimal_transport(scores, self.coarse_matching.bin_score, self.config.num_sinkhorn_iterations)

    def log_coarse_confidence(
        self, tokens0: Tensor, tokens1: Tensor, valid0: Tensor | None = None, valid1: Tensor | None = None
    ) -> Tensor:
        """log P, exact and with a gradient where P is next to nothing, as it is everywhere before training."""
        scores = self._scores(tokens0, tokens1, valid0, valid1)
        if self.config.matching == "dual_softmax":
            return log_dual_softmax(scores)
        return log_optimal_transport(scores, self.coarse_matching.bin_score, self.config.num_sinkhorn_iterations)

    def _scores(self, tokens0: Tensor, tokens1: Tensor, valid0: Tensor | None, valid1: Tensor | None) -> Tensor:
        scores = score_scale(self.config) * tokens0 @ tokens1.transpose(1, 2)
        if valid0 is not None:
            scores = scores.masked_fill(~valid0.flatten(1)[:, :, None], -1e9)
        if valid1 is not None:
            scores = scores.masked_fill(~valid1.flatten(1)[:, None, :], -1e9)
        return scores

    def fine_windows(self, maps: FeatureMaps, tokens: Tensor, batch: Tensor, cells: Tensor) -> Tensor:
        """(K, 25, C): the fine features around cell `cells[k]` of image `batch[k]`, its token mixed in."""
        windows = gather_windows(maps.fine, batch, cells, maps.coarse.shape[3])
        mixed: Tensor = self.fine_preprocess(windows, tokens[batch, cells])
        return mixed

    def fine_matches(self, windows0: Tensor, windows1: Tensor) -> tuple[Tensor, Tensor, FineMatches]:
        """Both windows (K, 25, C) after the fine transformer, and where window 0's centre lies in window 1."""
        windows0, windows1 = self.loftr_fine(windows0, windows1)
        return windows0, windows1, expectation(windows0, windows1)


class Dustbin(nn.Module):
    """The score of matching nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bin_score = nn.Parameter(torch.tensor(1.0))


class FineContext(nn.Module):
    """Mixes a coarse token into each vector of its fine window: (K, W, C) with (K, D) to (K, W, C)."""

    def __init__(self, coarse_dim: int, fine_dim: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(coarse_dim, fine_dim)
        self.merge_feat = nn.Linear(2 * fine_dim, fine_dim)
        for layer in (self.down_proj, self.merge_feat):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, windows: Tensor, tokens: Tensor) -> Tensor:
        context = self.down_proj(tokens)[:, None, :].expand_as(windows)
        mixed: Tensor = self.merge_feat(torch.cat([windows, context], dim=-1))
        return mixed


def _flat(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid.flatten(1)


def score_scale(config: LoftrConfig) -> float:
    """What the product of two tokens is multiplied by: both are divided by the root of their length."""
    temperature = config.temperature if config.matching == "dual_softmax" else 1.0
    return 1.0 / (config.widths[2] * temperature)


def position_code(
    channels: int, height: int, width: int, kind: Literal["fixed", "old"], first_cell: Cell = (0, 0)
) -> Tensor:
    """(channels, height, width): sin x w, cos x w, sin y w, cos y w in turn for each frequency w.

    x and y count from 1, beyond `first_cell`. w falls from 1 to nearly 1e-4 in channels / 4 steps. The old kind is
    what a slip in the exponent made of it: w = exp(-2 k), which is next to nothing after a few steps.
    """
    if channels % 4 != 0:
        raise ValueError(f"channels: expected a multiple of 4, got {channels}")
    steps = torch.arange(channels // 4, dtype=torch.float32)
    decay = math.log(10000.0) / (channels // 2) if kind == "fixed" else 1.0
    frequency = torch.exp(-2 * decay * steps)[:, None]
    left, top = first_cell
    x = (torch.arange(left + 1, left + width + 1) * frequency)[:, None, :].expand(-1, height, -1)
    y = (torch.arange(top + 1, top + height + 1) * frequency)[:, :, None].expand(-1, -1, width)
    return torch.stack([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).flatten(0, 1)


def gather_windows(fine: Tensor, batch: Tensor, cells: Tensor, num_columns: int) -> Tensor:
    """(K, 25, C): the 5 x 5 windows, row by row, of fine (B, C, H / 2, W / 2) around the corners of `cells`.

    num_columns: cells in a row. What lies outside of the map is zero.
    """
    reach = WINDOW // 2
    padded = F.pad(fine, (reach, reach, reach, reach)).permute(0, 2, 3, 1)
    step = CELL // FINE
    around = torch.arange(WINDOW, device=fine.device)
    rows = (step * torch.div(cells, num_columns, rounding_mode="floor"))[:, None] + around  # (K, 5)
    columns = (step * (cells % num_columns))[:, None] + around
    return padded[batch[:, None, None], rows[:, :, None], columns[:, None, :]].flatten(1, 2)


def expectation(windows0: Tensor, windows1: Tensor) -> FineMatches:
    """The mean and spread of the heat map softmax(<centre of window 0, window 1> / sqrt(C)) over [-1, 1]^2."""
    centre = windows0[:, WINDOW**2 // 2]
    heat = torch.softmax((windows1 @ centre[:, :, None]).squeeze(2) / math.sqrt(centre.shape[1]), dim=1)
    axis = torch.linspace(-1, 1, WINDOW, device=heat.device, dtype=heat.dtype)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x.flatten(), y.flatten()], dim=1)  # (25, 2)
    offset = heat @ grid
    variance = heat @ grid**2 - offset**2
    return FineMatches(offset, variance.clamp(min=1e-10).sqrt().sum(dim=1))
