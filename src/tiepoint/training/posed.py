"""True cells of photographs with known cameras: by depth (LoFTR's section 3.3), or, by poses alone, pseudo-labels.

Points of cameras and depth are in pixels of the resized photographs, pixel centres at integers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from tiepoint.geometry import Camera, relative_pose, symmetric_epipolar_distance
from tiepoint.images import ResizeMap, fitted_size, gray_view, read_image, resize
from tiepoint.networks.loftr import CELL, LoftrNetwork
from tiepoint.networks.loftr_inference import CellMatches, LoftrInference
from tiepoint.training.loftr_data import PairBatch
from tiepoint.training.loftr_losses import NONE, TrueCells, cell_points, grid_of, mutual_cells
from tiepoint.training.scenes import PosedPhotograph, Scene
from tiepoint.training.warps import nearest_at

_NO_BASELINE = 1e-9  # of the distance from the scene's origin: what rounding leaves of none


@dataclass(frozen=True, kw_only=True)
class PosedConfig:
    """side_px: a multiple of 8; photographs are resized to that long side, if theirs is longer, and padded to squares.

    min_overlap, max_overlap: of the pairs, as the data state it.
    depth_error: a point is seen where it would be if its depth differs from that of view 1 by less than this share.
    epipolar_px: how far a pseudo-label may lie from the epipolar lines of both images together: the root of the sum
        of both distances squared.
    """

    side_px: int = 640
    min_overlap: float = 0.1
    max_overlap: float = 0.7
    depth_error: float = 0.2
    epipolar_px: float = 1.0

    def __post_init__(self) -> None:
        if self.side_px < CELL or self.side_px % CELL:
            raise ValueError(f"side_px: expected a multiple of {CELL}, got {self.side_px}")


@dataclass(frozen=True, eq=False)
class PosedView:
    """A photograph, resized. pixels: (h, w) uint8 grey; depth: (h, w) float32, 0 where unknown; None without."""

    pixels: NDArray[np.uint8]
    camera: Camera
    depth: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class PosedViews:
    """A batch of views, padded with zeros below and to the right to squares of S pixels.

    images: (B, 1, S, S) in [0, 1]; grids: (rows, columns) of the cells that are picture, by view;
    depth: (B, S, S), 0 where unknown and on the padding; None without.
    """

    images: Tensor
    grids: list[tuple[int, int]]
    cameras: list[Camera]
    depth: Tensor | None

    @property
    def valid(self) -> Tensor:
        """(B, S / 8, S / 8) bool, the cells that are picture."""
        valid = torch.zeros(len(self.grids), *grid_of(self.images), dtype=torch.bool, device=self.images.device)
        for row, (rows, columns) in zip(valid, self.grids, strict=True):
            row[:rows, :columns] = True
        return valid


class Truth(Protocol):
    """How the true cells of two batches of views are found."""

    def __call__(self, views0: PosedViews, views1: PosedViews) -> TrueCells: ...


class PosedPairs:
    """Pairs of photographs as `TrainingPairs`: every scene as often as any other, its pairs with replacement."""

    def __init__(self, scenes: list[Scene], side_px: int, truth: Truth) -> None:
        self.scenes, self.side_px, self.truth = scenes, side_px, truth

    def draw(self, batch_size: int, progress: float, generator: Generator, device: torch.device) -> PairBatch:
        pairs = [self._drawn(generator) for _ in range(batch_size)]
        views0, views1 = (
            stacked([load_view(pair[i], self.side_px) for pair in pairs], self.side_px, device) for i in (0, 1)
        )
        return PairBatch(views0.images, views1.images, self.truth(views0, views1), views0.valid, views1.valid)

    def _drawn(self, generator: Generator) -> tuple[PosedPhotograph, PosedPhotograph]:
        pairs = self.scenes[_below(len(self.scenes), generator)].pairs
        return pairs[_below(len(pairs), generator)]


def _below(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def load_view(photograph: PosedPhotograph, side_px: int) -> PosedView:
    """The photograph with a long side of `side_px` at most.

    Raises ValueError (ImageError) where its image or its depth cannot be read, or they differ in size.
    """
    image = read_image(photograph.image)
    pixels, resize_map = resize(gray_view(image), fitted_size(image.size, side_px))
    depth = None
    if photograph.depth is not None:
        full = read_depth(photograph.depth)
        if full.shape != (image.height, image.width):
            raise ValueError(
                f"{photograph.depth}: is {full.shape[1]} x {full.shape[0]}, "
                f"its photograph {photograph.image} is {image.width} x {image.height}"
            )
        depth = _at_pixels(full, resize_map, pixels.shape)
    return PosedView(pixels, photograph.camera.with_pixels(resize_map.matrix), depth)


def _at_pixels(full: NDArray[np.float32], resize_map: ResizeMap, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`full` (H, W) at the pixels of a picture resized to `shape`: the nearest, for a mean of two depths is neither."""
    rows, columns = np.arange(shape[0]), np.arange(shape[1])
    from_rows = np.floor((rows + 0.5) / resize_map.scale_y).astype(int)
    from_columns = np.floor((columns + 0.5) / resize_map.scale_x).astype(int)
    return np.asarray(full[from_rows.clip(max=full.shape[0] - 1)[:, None], from_columns.clip(max=full.shape[1] - 1)])


def read_depth(file: Path) -> NDArray[np.float32]:
    """(H, W) the data set `depth` of an HDF5 file, along the camera's axis; 0 where it is unknown.

    Raises ValueError for a file that cannot be read so, and without h5py.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{file}: is HDF5; to read it: pip install 'tiepoint[train]' (or h5py)") from error
    try:
        with h5py.File(file, "r") as opened:
            depth = np.asarray(opened["depth"], np.float32)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read as HDF5 with a data set `depth`: {error}") from error
    if depth.ndim != 2:
        raise ValueError(f"{file}: expected depth of shape (H, W), got {depth.shape}")
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def stacked(views: list[PosedView], side_px: int, device: torch.device) -> PosedViews:
    images = _padded([view.pixels for view in views], side_px).to(device)[:, None].float() / 255
    depths = [view.depth for view in views if view.depth is not None]
    grids = [(-(-view.pixels.shape[0] // CELL), -(-view.pixels.shape[1] // CELL)) for view in views]
    depth = _padded(depths, side_px).to(device) if len(depths) == len(views) else None
    return PosedViews(images, grids, [view.camera for view in views], depth)


def _padded(arrays: Sequence[NDArray[Any]], side_px: int) -> Tensor:
    padded = np.zeros((len(arrays), side_px, side_px), arrays[0].dtype)
    for square, array in zip(padded, arrays, strict=True):
        square[: array.shape[0], : array.shape[1]] = array
    return torch.from_numpy(padded)


@dataclass(frozen=True, kw_only=True)
class DepthTruth:
    """True cells by depth. origin: of the network's frame; depth_error: see `PosedConfig`."""

    origin: float
    depth_error: float

    def __call__(self, views0: PosedViews, views1: PosedViews) -> TrueCells:
        cells = (cell_points(views0.images) - self.origin).expand(len(views0.cameras), -1, -1)
        there1, seen0 = reprojected(views0, views1, cells, self.depth_error)
        there0, seen1 = reprojected(views1, views0, cells, self.depth_error)
        return mutual_cells(there1 + self.origin, seen0, there0 + self.origin, seen1, grid_of(views0.images))


def reprojected(source: PosedViews, target: PosedViews, points: Tensor, depth_error: float) -> tuple[Tensor, Tensor]:
    """(B, N, 2) where `target` has what `source` shows at (B, N, 2) points, NaN behind it; (B, N) bool, whether it
    shows it: both depths are known there, and the point's differs by less than `depth_error` of what is seen.

    Depth is read at the nearest pixel.
    """
    assert source.depth is not None
    assert target.depth is not None
    poses = [relative_pose(*cameras) for cameras in zip(source.cameras, target.cameras, strict=True)]

    def batched(matrices: Sequence[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.stack(matrices)).to(points)

    to_rays = batched([np.linalg.inv(pose.intrinsics0) for pose in poses])
    rotations, translations = batched([p.rotation for p in poses]), batched([p.translation for p in poses])
    to_pixels = batched([pose.intrinsics1 for pose in poses])

    depth = nearest_at(source.depth, points)
    rays = torch.cat([points, torch.ones_like(points[..., :1])], -1) @ to_rays.mT
    scene = rays * depth[..., None] @ rotations.mT + translations[:, None]
    pixels = scene @ to_pixels.mT
    in_front = torch.where((depth > 0) & (scene[..., 2] > 0), pixels[..., 2], torch.nan)
    there = pixels[..., :2] / in_front[..., None]
    seen_depth = nearest_at(target.depth, there)
    agree = (scene[..., 2] - seen_depth).abs() < depth_error * seen_depth  # not so where it is unknown, 0
    return there, agree & ~in_front.isnan()


class PseudoLabels:
    """True cells by poses alone: those a network matches, at points near each other's epipolar lines.

    What it does not match counts as different, as what it matches wrongly does; so a network that starts as this
    one is taught to keep its right matches and to drop the wrong, not to find others.
    """

    def __init__(self, network: LoftrNetwork, epipolar_px: float) -> None:
        """network: copied, so that training leaves the labels as they are. epipolar_px: see `PosedConfig`."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.epipolar_px = epipolar_px
        self._inference: LoftrInference | None = None

    def __call__(self, views0: PosedViews, views1: PosedViews) -> TrueCells:
        device = views0.images.device
        if self._inference is None:
            self._inference = LoftrInference(self.network.to(device))
        encoded0, encoded1 = (self._inference.encode(v.images, v.grids) for v in (views0, views1))
        batch, (rows, columns) = len(encoded0), grid_of(views0.images)
        partner = torch.full((batch, rows * columns), NONE, device=device)
        points1 = torch.full((batch, rows * columns, 2), torch.nan, device=device)
        for i in range(batch):
            found = self._inference.match(encoded0[i], encoded1[i])
            near = self._near_the_lines(found, views0.cameras[i], views1.cameras[i])
            cells0 = _in_the_square(found.cells0[near], views0.grids[i], columns)
            partner[i, cells0] = _in_the_square(found.cells1[near], views1.grids[i], columns)
            points1[i, cells0] = found.points1[near]
        return TrueCells(partner, points1)

    def _near_the_lines(self, found: CellMatches, camera0: Camera, camera1: Camera) -> Tensor:
        origin = self.network.config.origin
        points0, points1 = (points.double().cpu().numpy() - origin for points in (found.points0, found.points1))
        squared = epipolar_squared(points0, points1, camera0, camera1)
        return torch.from_numpy(squared <= self.epipolar_px**2).to(found.cells0.device)


def _in_the_square(cells: Tensor, grid: tuple[int, int], columns: int) -> Tensor:
    """Cells counted in a `grid` (rows, columns), counted in the padded square of so many `columns`."""
    return torch.div(cells, grid[1], rounding_mode="floor") * columns + cells % grid[1]


def epipolar_squared(
    points0: NDArray[np.float64], points1: NDArray[np.float64], camera0: Camera, camera1: Camera
) -> NDArray[np.float64]:
    """(N,) squared distances of (N, 2) points to each other's epipolar lines, summed over both images, px²; NaN for
    cameras that share their centre, which leaves no lines."""
    pose = relative_pose(camera0, camera1)
    if np.linalg.norm(pose.translation) <= _NO_BASELINE * np.linalg.norm(camera1.translation):
        return np.full(len(points0), np.nan)
    K0_inverse, K1_inverse = np.linalg.inv(pose.intrinsics0), np.linalg.inv(pose.intrinsics1)
    return symmetric_epipolar_distance(K1_inverse.T @ pose.essential @ K0_inverse, points0, points1)
