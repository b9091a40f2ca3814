"""How a matcher is judged on held-out photographs with known cameras: by the poses its matches give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tiepoint.estimation import fit_pose
from tiepoint.geometry import Matches, RelativePose, direction_error_deg, relative_pose, rotation_error_deg
from tiepoint.geometry.error_curve import auc
from tiepoint.images import Image, encode_image, write_atomically
from tiepoint.matchers.base import Matcher
from tiepoint.training.posed import PosedConfig, PosedView, epipolar_squared, load_view, reprojected, stacked
from tiepoint.training.scenes import Scene
from tiepoint.training.validation import side_by_side

_CORRECT_PX = 3.0
_AUC_DEG = (5.0, 10.0, 20.0)
_NUM_SAMPLES = 6


class HeldOutPosed:
    """Held-out photographs as `HeldOut`, read again at each validation."""

    judged_by = "AUC_10_deg"

    def __init__(self, scenes: list[Scene], config: PosedConfig, count: int) -> None:
        """count: of pairs, evenly spread over those of the scenes."""
        pairs = [pair for scene in scenes for pair in scene.pairs]
        rows = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
        self.config, self.pairs = config, [pairs[row] for row in rows]

    def judge(self, matcher: Matcher[Any], pictures: Path) -> dict[str, float]:
        """Means over the pairs.

        MMA_1, MMA_3: share of matches within 1 and 3 px of the truth by depth, among those where it is known;
        without depth epipolar_1, epipolar_3: within so much of the epipolar lines. 0 for a pair without matches.
        correct: matches within 3 px. AUC_5_deg and so on: area under the cumulative error of the pose fitted to the
        matches, the larger angle of rotation and translation (SuperGlue, section 5.2).
        """
        shares, correct, angles = [], [], []
        samples: list[NDArray[np.uint8]] = []
        for pair in self.pairs:
            view0, view1 = (load_view(photograph, self.config.side_px) for photograph in pair)
            matches = matcher(Image(view0.pixels), Image(view1.pixels))
            errors = match_errors_px(matches, view0, view1, self.config)
            known = errors[~np.isnan(errors)]
            shares.append([float((known <= t).mean()) if len(known) else 0.0 for t in (1.0, _CORRECT_PX)])
            correct.append(float((known <= _CORRECT_PX).sum()))
            angles.append(pose_error_deg(matches, relative_pose(view0.camera, view1.camera)))
            if len(samples) < _NUM_SAMPLES:
                squares = [_square(view.pixels, self.config.side_px) for view in (view0, view1)]
                samples.append(side_by_side(squares[0], squares[1], matches, errors <= _CORRECT_PX))
        write_atomically(pictures.with_suffix(".png"), encode_image(Image(np.concatenate(samples)), ".png"))
        within_1, within_3 = np.mean(shares, axis=0).tolist()
        name = "MMA" if view0.depth is not None else "epipolar"
        aucs = {f"AUC_{t:.0f}_deg": auc(angles, t) for t in _AUC_DEG}
        return {f"{name}_3": within_3, f"{name}_1": within_1, "correct": float(np.mean(correct)), **aucs}


def match_errors_px(matches: Matches, view0: PosedView, view1: PosedView, config: PosedConfig) -> NDArray[np.float64]:
    """(N,) how far matches are from the truth by depth, NaN where it does not tell; without depth, from the lines."""
    points0, points1 = matches.points0.astype(np.float64), matches.points1.astype(np.float64)
    if view0.depth is None or view1.depth is None:
        return np.sqrt(epipolar_squared(points0, points1, view0.camera, view1.camera))
    views0, views1 = (stacked([view], config.side_px, torch.device("cpu")) for view in (view0, view1))
    there, seen = reprojected(views0, views1, torch.from_numpy(points0)[None].float(), config.depth_error)
    errors = np.linalg.norm(there[0].double().numpy() - points1, axis=1)
    return np.where(seen[0].numpy(), errors, np.nan)


def pose_error_deg(matches: Matches, truth: RelativePose) -> float:
    """The larger of the angles that the fitted pose's rotation and direction are off by; infinite without a pose."""
    pose = fit_pose(matches, truth.intrinsics0, truth.intrinsics1).model
    if pose is None:
        return float("inf")
    return max(
        rotation_error_deg(pose.rotation, truth.rotation), direction_error_deg(pose.translation, truth.translation)
    )


def _square(pixels: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    return np.pad(pixels, ((0, side_px - pixels.shape[0]), (0, side_px - pixels.shape[1])))
