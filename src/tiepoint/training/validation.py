"""How matchers are judged while they train: on held-out pairs with known homographies, by the field's measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from tiepoint.estimation import fit
from tiepoint.geometry import Matches, Transform
from tiepoint.geometry.error_curve import auc
from tiepoint.geometry.transforms import corner_errors
from tiepoint.images import Image, encode_image, write_atomically
from tiepoint.matchers.base import Matcher
from tiepoint.training.engine import generator_of
from tiepoint.training.pairs import PairConfig, make_pairs
from tiepoint.training.photographs import Photographs

_CORRECT_PX = 3.0
_AUC_PX = (3.0, 5.0)


@dataclass(frozen=True, eq=False)
class HeldOutPair:
    """Two views of a photograph; H_1_from_0 in their pixels."""

    image0: Image
    image1: Image
    H_1_from_0: Transform


def held_out_pairs(photographs: Photographs, config: PairConfig, count: int, seed: int) -> list[HeldOutPair]:
    """`count` pairs at full difficulty, always the same for a seed, photographs evenly spread."""
    generator = generator_of(seed, -1)
    indices = torch.linspace(0, len(photographs) - 1, count).round().long()
    pairs = make_pairs(photographs, indices, config, 1.0, generator, torch.device("cpu"))
    matrices = pairs.H_1_from_0.double().numpy()
    return [
        HeldOutPair(_image(image0), _image(image1), Transform(H / H[2, 2], "homography"))
        for image0, image1, H in zip(pairs.views0.images, pairs.views1.images, matrices, strict=True)
    ]


def judge(matcher: Matcher[Any], pairs: list[HeldOutPair]) -> dict[str, float]:
    """Figures of a matcher, means over the pairs.

    MMA_1, MMA_3: share of matches within 1 and 3 px of the truth, 0 for a pair without matches (Dusmanu et al.
    2019). correct: matches within 3 px. AUC_3, AUC_5: area under the cumulative mean corner error of the
    homography fitted to them, up to 3 and 5 px (SuperGlue, section 5.1). within_3: share of pairs with that error
    within 3 px.
    """
    accuracy, correct, corner = [], [], []
    for pair in pairs:
        matches = matcher(pair.image0, pair.image1)
        errors = pair.H_1_from_0.residuals(matches.points0, matches.points1)
        accuracy.append([float((errors <= t).mean()) if len(errors) else 0.0 for t in (1.0, _CORRECT_PX)])
        correct.append(float((errors <= _CORRECT_PX).sum()))
        estimate = fit(matches, "homography", threshold_px=_CORRECT_PX)
        errors = (
            corner_errors(estimate.model, pair.H_1_from_0, pair.image0.size) if estimate.model else np.array(np.inf)
        )
        corner.append(float(errors.mean()))
    mma_1, mma_3 = np.mean(accuracy, axis=0).tolist()
    aucs = {f"AUC_{t:.0f}": auc(corner, t) for t in _AUC_PX}
    within_3 = float(np.mean(np.array(corner) <= _CORRECT_PX))
    return {"MMA_3": mma_3, "MMA_1": mma_1, "correct": float(np.mean(correct)), **aucs, "within_3": within_3}


def draw_samples(matcher: Matcher[Any], pairs: list[HeldOutPair], path: Path, count: int = 6) -> None:
    """A PNG of the first pairs side by side, matches within 3 px of the truth green, others red."""
    rows = []
    for pair in pairs[:count]:
        matches = matcher(pair.image0, pair.image1)
        rows.append(_drawn(pair, matches))
    write_atomically(path.with_suffix(".png"), encode_image(Image(np.concatenate(rows)), ".png"))


def _drawn(pair: HeldOutPair, matches: Matches) -> NDArray[np.uint8]:
    right = pair.H_1_from_0.residuals(matches.points0, matches.points1) <= _CORRECT_PX
    return side_by_side(pair.image0.pixels, pair.image1.pixels, matches, right)


def side_by_side(
    pixels0: NDArray[np.uint8], pixels1: NDArray[np.uint8], matches: Matches, right: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """(H, 2 W, 3) two grey pictures of one size with their matches, `right` ones green, others red."""
    canvas = cv2.cvtColor(np.concatenate([pixels0, pixels1], 1), cv2.COLOR_GRAY2RGB)
    offset = np.array([pixels0.shape[1], 0])
    for start, end, good in zip(matches.points0, matches.points1 + offset, right, strict=True):
        first, second = np.round(np.stack([start, end])).astype(int).tolist()
        cv2.line(canvas, first, second, (40, 200, 40) if good else (220, 40, 40), 1, cv2.LINE_AA)
    return np.asarray(canvas, np.uint8)


def _image(view: torch.Tensor) -> Image:
    return Image((view[0] * 255).round().byte().numpy())
