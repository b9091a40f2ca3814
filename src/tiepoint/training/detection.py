"""The detector's labels and loss, and how detections are judged."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tiepoint.matchers.superpoint import (
    CELL_PX,
    PATCH_REACH_PX,
    SuperPoint,
    keypoint_probability,
    patches_around,
    refined,
    suppress,
)
from tiepoint.training.warps import inside, transform_points

NO_KEYPOINT = CELL_PX * CELL_PX  # the dustbin's class
IGNORED = -100  # the class of cells that do not count
_RADIUS_PX = 4  # of the suppression, and the threshold: those of the preset of what is trained here
_THRESHOLD = 0.015


_PRIOR = 0.1  # share of cells that hold a keypoint, roughly
_FIRST_SPREAD = 3.0  # standard deviation of the untrained logits


def start_detector(network: SuperPoint) -> None:
    """Give an untrained network of the "after_relu" kind the logits of a detector that knows only the odds.

    Its logits are normalised: one factor and one offset for each class set them, and Adam moves a number by no
    more than the learning rate in a step. From 1 and 0 they take thousands of steps to where softmax can say
    that most cells are empty.
    """
    bn = network.detector[1].bn
    assert isinstance(bn, nn.BatchNorm2d)
    with torch.no_grad():
        bn.weight.fill_(_FIRST_SPREAD)
        bn.weight[NO_KEYPOINT] = 1.0
        bn.bias.zero_()
        # The mean of exp of a normal variable is exp(variance / 2).
        bn.bias[NO_KEYPOINT] = math.log(NO_KEYPOINT * (1 - _PRIOR) / _PRIOR) + (_FIRST_SPREAD**2 - 1) / 2


def cell_labels(points: Tensor, size: tuple[int, int], valid: Tensor, generator: Generator) -> Tensor:
    """(B, H/8, W/8) int64 class of each cell: the pixel of its keypoint, `NO_KEYPOINT` or `IGNORED`.

    points: (B, N, 2) (x, y), pixel centres at integers; NaN and points outside are left out. Of several in one
    cell one is chosen at random (SuperPoint, section 3.3).
    valid: (B, H, W) bool; a cell counts if all its pixels are valid.
    """
    height, width = size
    rows, columns = height // CELL_PX, width // CELL_PX
    batch = len(points)
    order = torch.randperm(points.shape[1], generator=generator).to(points.device)
    whole = points[:, order].nan_to_num(-1.0).round()
    kept = inside(whole, (rows * CELL_PX, columns * CELL_PX))
    x, y = whole.long().unbind(-1)
    cell = (y // CELL_PX) * columns + x // CELL_PX
    pixel = (y % CELL_PX) * CELL_PX + x % CELL_PX
    # One more cell takes what is left out. Repeated cells keep one of their writes: `amax` of a random rank.
    cell = torch.where(kept, cell, rows * columns)
    rank = torch.arange(points.shape[1], device=points.device).expand(batch, -1)
    winner = torch.full((batch, rows * columns + 1), -1, device=points.device)
    winner.scatter_reduce_(1, cell, rank, "amax")
    labels = torch.full((batch, rows * columns), NO_KEYPOINT, device=points.device)
    if points.shape[1]:
        winner = winner[:, :-1]
        labels = torch.where(winner >= 0, pixel.gather(1, winner.clamp(min=0)), labels)
    labels = labels.reshape(batch, rows, columns)
    blocks = valid[:, : rows * CELL_PX, : columns * CELL_PX].reshape(batch, rows, CELL_PX, columns, CELL_PX)
    return torch.where(blocks.all(4).all(2), labels, IGNORED)


def detector_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the cells that count (section 3.3); 0 when none does."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def reprojection_loss(logits0: Tensor, logits1: Tensor, valid1: Tensor, H_1_from_0: Tensor) -> Tensor:
    """How far apart the same keypoint of two views lies once refined, in pixels of either view: scalar.

    ALIKE's reprojection loss (Zhao et al. 2022) on SuperPoint's own refinement. A keypoint of view 0 and the
    strongest one of view 1 in the 5 x 5 pixels around where it belongs are the same; others do not count, and the
    loss is 0 when none does.
    logits: (B, 65, H/8, W/8); valid1: (B, H, W) bool, where view 1 shows something; H_1_from_0: (B, 3, 3).
    """
    probability0, probability1 = keypoint_probability(logits0.float()), keypoint_probability(logits1.float())
    peaks1 = suppress(probability1.detach(), _RADIUS_PX) * valid1
    H_0_from_1 = torch.linalg.inv(H_1_from_0)
    distances = []
    for pair, (whole0, _) in enumerate(detections(logits0.detach(), radius_px=_RADIUS_PX, threshold=_THRESHOLD)):
        whole0 = whole0.to(logits0.device)
        belongs1 = transform_points(H_1_from_0[pair, None], whole0[None])[0]
        whole1, found = _strongest_near(belongs1, peaks1[pair])
        keypoints0 = refined(whole0[found], probability0[pair])
        keypoints1 = refined(whole1[found], probability1[pair])
        off0 = transform_points(H_0_from_1[pair, None], keypoints1[None])[0] - keypoints0
        off1 = transform_points(H_1_from_0[pair, None], keypoints0[None])[0] - keypoints1
        distances.append((off0.abs() + off1.abs()).sum(1) / 2)
    distance = torch.cat(distances)
    return distance.sum() / max(1, len(distance))


def _strongest_near(points: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2) whole pixels of the greatest of `peaks` (H, W) within 2 px of (N, 2) points, and (N,) where there is one.

    Points outside, or NaN, have none.
    """
    inside_picture = inside(points, (peaks.shape[0], peaks.shape[1]))
    rounded = torch.where(inside_picture[:, None], points, 0.0).round()
    value, index = patches_around(rounded, peaks).flatten(1).max(1)
    size = 2 * PATCH_REACH_PX + 1
    strongest = rounded + torch.stack([index % size, index // size], 1) - PATCH_REACH_PX
    return strongest, inside_picture & (value > _THRESHOLD)


def detections(
    logits: Tensor, *, radius_px: int, threshold: float, border_px: int = 0, max_count: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """For each picture (N, 2) keypoints (x, y) and (N,) probabilities, strongest first, on the CPU."""
    peaks = suppress(keypoint_probability(logits.float()).cpu(), radius_px)
    found = []
    for peak in peaks:
        y, x = torch.nonzero(peak > threshold, as_tuple=True)
        points = torch.stack([x, y], -1).float()
        kept = inside(points, (peak.shape[0], peak.shape[1]), border_px)
        points, scores = points[kept], peak[y, x][kept]
        scores, order = scores.sort(descending=True, stable=True)
        found.append((points[order][:max_count], scores[:max_count]))
    return found


def average_precision(
    found: list[tuple[Tensor, Tensor]], truth: list[Tensor], distance_px: float
) -> tuple[float, float]:
    """Area under precision over recall of all detections together, and the mean error of the correct ones.

    A detection is correct if a true corner that no stronger detection of its picture took lies within
    `distance_px` (SuperPoint, appendix B). The error is in pixels, NaN when nothing is correct.
    """
    scores, hits, errors = [], [], []
    for (points, probability), corners in zip(found, truth, strict=True):
        hit, error = _assigned(points, corners, distance_px)
        scores.append(probability)
        hits.append(hit)
        errors.append(error[hit])
    order = torch.cat(scores).argsort(descending=True, stable=True)
    correct = torch.cat(hits)[order].double()
    true_positives = correct.cumsum(0)
    precision = true_positives / torch.arange(1, len(correct) + 1)
    total = sum(len(corners) for corners in truth)
    area = float((precision * correct).sum() / max(1, total))
    return area, float(torch.cat(errors).mean())


def _assigned(points: Tensor, corners: Tensor, distance_px: float) -> tuple[Tensor, Tensor]:
    """For each point, strongest first, whether it takes a free corner, and how far that is."""
    hit = torch.zeros(len(points), dtype=torch.bool)
    error = torch.zeros(len(points))
    if len(corners) == 0 or len(points) == 0:
        return hit, error
    distances = torch.cdist(points.double(), corners.double())
    for row in range(len(points)):
        distance, nearest = distances[row].min(0)
        if distance <= distance_px:
            hit[row], error[row] = True, distance
            distances[:, nearest] = torch.inf
    return hit, error
