"""Keypoint labels for photographs by homographic adaptation (DeTone et al. 2018, section 5).

A detector looks at many warped views of a photograph; what it finds is carried back and averaged over the views
that see each pixel. What stays is what is found again from everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tiepoint.images import write_atomically
from tiepoint.matchers.superpoint import SuperPoint, keypoint_probability, refined, suppress
from tiepoint.networks.devices import computes_in_bf16
from tiepoint.training.engine import generator_of
from tiepoint.training.photographs import Photographs
from tiepoint.training.warps import WarpConfig, pixel_grid, render, sample_homographies, transform_points

Detector = Callable[[Tensor], Tensor]
"""(V, 1, H, W) pictures in [0, 1] -> (V, H, W) probability of a keypoint."""

_SAVE_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """side_px: of the squares looked at, a multiple of 8; views: how many, the first unwarped.

    erosion_px: a view's outermost pixels, and those next to where the photograph ends, do not count.
    threshold: least mean probability; radius_px: no two labels within this along both axes.
    max_count: strongest labels kept of a photograph.
    """

    side_px: int = 240
    views: int = 100
    warp: WarpConfig = field(default_factory=lambda: WarpConfig(scale=1.5, perspective=0.25, translation=0.1))
    erosion_px: int = 3
    threshold: float = 0.015
    radius_px: int = 4
    max_count: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side_px % 8:
            raise ValueError(f"side_px: expected a multiple of 8, got {self.side_px}")


@dataclass(frozen=True, eq=False)
class Labels:
    """points: (N, max_count, 3) float32: x, y in pixels of the stored photographs and the mean probability,
    strongest first, NaN after the last; memory-mapped. fingerprint: that of the photographs."""

    points: NDArray[np.float32]
    fingerprint: str

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """(B, max_count, 2) keypoints of the photographs at `indices`."""
        return torch.from_numpy(self.points[indices.numpy(), :, :2]).to(device)


def label_photographs(
    photographs: Photographs,
    folder: Path,
    detector: Detector,
    detector_name: str,
    config: LabelConfig,
    device: torch.device,
    on_progress: Callable[[int, int], None],
) -> Labels:
    """Label every photograph, going on where an interrupted labelling of the same kind stopped.

    folder: receives points.npy, done.npy and labels.json, which says how they were made.
    Raises ValueError when the folder holds labels made otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {"photographs": photographs.fingerprint, "detector": detector_name, "config": asdict(config)}
    described = json.dumps(made, indent=2)
    if (folder / "labels.json").exists():
        if (folder / "labels.json").read_text() != described:
            raise ValueError(f"{folder}: holds labels of other photographs or settings; give another folder")
        points = np.load(folder / "points.npy", mmap_mode="r+")
        done = np.load(folder / "done.npy", mmap_mode="r+")
    else:
        shape = (len(photographs), config.max_count, 3)
        points = np.lib.format.open_memmap(folder / "points.npy", "w+", np.float32, shape)
        points[:] = np.nan
        done = np.lib.format.open_memmap(folder / "done.npy", "w+", np.bool_, (len(photographs),))
        write_atomically(folder / "labels.json", described)
    for count, index in enumerate(np.flatnonzero(~done)):
        picture = photographs.batch(torch.tensor([index]), device)
        found = label(picture, detector, config, int(index))
        points[index, : len(found)] = found.cpu().numpy()
        done[index] = True
        if count % _SAVE_EVERY == 0:
            points.flush()
            done.flush()
            on_progress(int(done.sum()), len(done))
    points.flush()
    done.flush()
    return Labels(points, photographs.fingerprint)


def open_labels(folder: Path, photographs: Photographs) -> Labels:
    """The finished labels of `photographs` in `folder`. Raises ValueError if they are others', or unfinished."""
    if not (folder / "labels.json").is_file():
        raise ValueError(f"{folder}: holds no labels; make them with `tiepoint train label`")
    made = json.loads((folder / "labels.json").read_text())
    if made["photographs"] != photographs.fingerprint:
        raise ValueError(f"{folder}: holds labels of other photographs ({made['photographs']})")
    if not np.load(folder / "done.npy").all():
        raise ValueError(f"{folder}: is not finished; run the labelling again to go on")
    return Labels(np.load(folder / "points.npy", mmap_mode="r"), photographs.fingerprint)


@torch.inference_mode()
def label(picture: Tensor, detector: Detector, config: LabelConfig, index: int) -> Tensor:
    """(N, 3) x, y (pixels of `picture`, (1, C, S, S)) and mean probability of its keypoints, strongest first."""
    side = picture.shape[-1]
    grey = picture.mean(1, keepdim=True)
    small = F.interpolate(grey, (config.side_px,) * 2, mode="bilinear", antialias=True, align_corners=False)
    heat = adapted(small.clamp(0, 1), detector, config, index)
    peaks = suppress(heat[None], config.radius_px)[0]
    y, x = torch.nonzero(peaks > config.threshold, as_tuple=True)
    scores, order = peaks[y, x].sort(descending=True, stable=True)
    chosen = torch.stack([x, y], -1)[order][: config.max_count].float()
    exact = (refined(chosen, heat) + 0.5) * (side / config.side_px) - 0.5
    return torch.cat([exact, scores[: config.max_count, None]], 1)


def adapted(picture: Tensor, detector: Detector, config: LabelConfig, index: int) -> Tensor:
    """(S, S) mean probability over warped views of `picture` (1, 1, S, S): equation 10 of the paper.

    index: of the photograph, from which with the seed its views follow.
    """
    side = picture.shape[-1]
    generator = generator_of(config.seed, index)
    middle = torch.full((config.views, 2), (side - 1) / 2)
    matrices = sample_homographies(config.warp, middle, side, (side, side), generator)
    matrices[0] = torch.eye(3)
    views = render(picture.expand(config.views, -1, -1, -1), matrices, (side, side), torch.full((config.views,), 0.5))
    seen = _eroded(views.valid, config.erosion_px)
    found = detector(views.images) * seen
    back = torch.linalg.inv(matrices).to(picture.device)
    points = transform_points(back, pixel_grid((side, side), picture.device).expand(config.views, -1, -1))
    grid = ((2 * points + 1) / side - 1).nan_to_num(-2.0).reshape(config.views, side, side, 2)
    both = F.grid_sample(torch.stack([found, seen], 1), grid, align_corners=False)
    total, count = both.sum(0)
    return torch.where(count > config.views / 10, total / count.clamp(min=1e-6), 0.0)


def _eroded(valid: Tensor, radius_px: int) -> Tensor:
    """(V, H, W) 1 where all within `radius_px` is valid and inside, else 0."""
    missing = F.pad((~valid).float(), (radius_px,) * 4, value=1.0)
    size = 2 * radius_px + 1
    return 1 - F.max_pool2d(F.max_pool2d(missing[:, None], (size, 1), stride=1), (1, size), stride=1)[:, 0]


# ---------------------------------------------------------------- detectors


def network_detector(network: SuperPoint) -> Detector:
    """A trained MagicPoint, or the detector of a SuperPoint for a second round."""

    def detect(images: Tensor) -> Tensor:
        chunks = []
        for chunk in torch.split(images, 16):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=computes_in_bf16(images.device)):
                logits = network.detector(network.encoded(chunk.contiguous(memory_format=torch.channels_last)))
            chunks.append(keypoint_probability(logits.float()))
        return torch.cat(chunks)

    return detect


def corner_detector(images: Tensor) -> Tensor:
    """Shi and Tomasi's corners (CVPR 1994) as probabilities: 1 at a clear local maximum, spread over a pixel.

    A detector that needs no training. With it homographic adaptation measures for each pixel from what share
    of the views a corner is found there again.
    """
    found = [_corners(np.asarray(image, np.float32)) for image in images[:, 0].cpu().numpy()]
    return torch.from_numpy(np.stack(found)).to(images.device)


_CORNER_WINDOW_PX = 3
_CLEAR_CORNER = 2e-4  # smaller eigenvalue of the gradient's moments at which a corner counts half


def _corners(image: NDArray[np.float32]) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(image, (0, 0), 1.0)
    eigenvalue = cv2.cornerMinEigenVal(smooth, _CORNER_WINDOW_PX, ksize=3).clip(min=0)
    highest = cv2.dilate(eigenvalue, np.ones((5, 5), np.uint8))
    peaks = np.where(eigenvalue == highest, eigenvalue / (eigenvalue + _CLEAR_CORNER), 0)
    # A peak of height 1 keeps it under the blur: 2 pi sigma^2 undoes the Gaussian's own height.
    spread = cv2.GaussianBlur(peaks.astype(np.float32), (0, 0), 1.0) * (2 * np.pi)
    return np.asarray(spread.clip(max=1), np.float32)
