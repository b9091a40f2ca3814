"""Sub-pixel alignment by intensity: Gauss-Newton over textured tiles, with its own covariance.

The inverse compositional step of Baker & Matthews, "Lucas-Kanade 20 years on" (IJCV 2004, section 3.2): the
increment acts on the template, whose gradients are computed once for all sources. Each tile may differ from the
template by a gain and an offset of its own, which takes light, shadow and exposure out; tiles that do not fit
(missing parts, reflections) lose their weight. The tiles are the clusters of a sandwich covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.estimation.refine import (
    Frame,
    clusters_of,
    matrix_of,
    parameters_of,
    projection_by_matrix,
    sandwich_covariance,
    to_pixels,
)
from tiepoint.geometry import Transform, frame_corners
from tiepoint.images import ResizeMap, fitted_size, resize

_TILE_PX = 24
_MAX_TILES = 300
_MIN_TILES = 12
_TEXTURE_SIZE_PX = 1000  # long side of the picture on which tiles are chosen
_FACTORS = (0.25, 0.5, 1.0)
_SMOOTHING_PX = 0.8  # takes the corners off both pictures, which bicubic sampling would shift
_MIN_CORRELATION = 0.3  # of a tile, to count at all
_CLUSTER_SIZE = 0.25  # side of a cell whose tiles err alike (lens, bent paper), in units of half the long side


@dataclass(frozen=True, eq=False)
class _Level:
    """The template's tiles at one resolution.

    factor: size of the level over full size. positions: (T, P, 2) pixels of the full-size template. values: (T, P)
    grey values. motion: (T, 2, 8) derivative of each tile's middle by the parameters of a homography. steepest:
    (T, P, 8) that of the values, without what a gain or an offset of the tile explains. normals: (T, 8, 8)
    steepestᵀ steepest.
    """

    factor: float
    positions: NDArray[np.float64]
    values: NDArray[np.float32]
    motion: NDArray[np.float32]
    steepest: NDArray[np.float32]
    normals: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RefinementTemplate:
    """All that refinement needs of the template, computed once."""

    size: tuple[int, int]
    frame: Frame
    levels: tuple[_Level, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Refinement:
    """What intensity alignment found; `kept` says whether it is to be used.

    transform: the refined transform, or the start where it is not kept.
    covariance: (9, 9) of its row-major matrix, None where not kept.
    correlation_before, correlation_after: mean over tiles of the zero-mean normalised cross-correlation.
    motion_px: the furthest that a corner of the template moved. num_tiles: tiles used.
    reason: why it is not kept, None where it is.
    """

    transform: Transform
    covariance: NDArray[np.float64] | None
    correlation_before: float
    correlation_after: float
    motion_px: float
    num_tiles: int
    reason: str | None

    @property
    def kept(self) -> bool:
        return self.reason is None


def prepare_template(gray: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> RefinementTemplate:
    """The textured tiles of a template, (H, W) uint8; only tiles wholly inside `mask` count."""
    height, width = gray.shape
    frame = Frame(np.array([(width - 1) / 2, (height - 1) / 2]), max(width, height) / 2)
    levels = []
    for factor in _FACTORS:
        size = (round(width * factor), round(height * factor))
        if min(size) >= 3 * _TILE_PX:
            levels.append(_level(gray, mask, factor, size, frame))
    return RefinementTemplate((width, height), frame, tuple(level for level in levels if level is not None))


def refine_by_intensity(
    template: RefinementTemplate,
    source: NDArray[np.uint8],
    start: Transform,
    *,
    max_motion_px: float,
) -> Refinement:
    """Align `source`, (H, W) uint8 grey, to the template, from `start` (template from source); never raises.

    Kept only when the tiles agree better than before and no corner of the template moved by more than
    `max_motion_px`.
    """
    scale = _scale_at_middle(start, source.shape[::-1])
    levels = [level for level in template.levels if level.factor * scale <= 1.25]
    if not levels or not np.isfinite(scale):
        return _not_kept(start, "the source is too coarse or too small for the tiles")
    try:
        return _refined(template, levels, source, start, scale, max_motion_px)
    except (ValueError, np.linalg.LinAlgError):
        return _not_kept(start, "the steps led to no finite transform")


def _refined(
    template: RefinementTemplate,
    levels: list[_Level],
    source: NDArray[np.uint8],
    start: Transform,
    scale: float,
    max_motion_px: float,
) -> Refinement:
    """From the coarsest level to the finest, then held against the start; raises where a step is not finite."""
    transform, covariance, used = start, np.zeros((9, 9)), 0
    before = after = 0.0
    for level in levels:
        sampled, to_level = _source_at(source, min(1.0, level.factor * scale))
        finest = level is levels[-1]
        if finest:
            before = _mean_correlation(level, sampled, to_level, start)
        found = _align(level, template.frame, sampled, to_level, transform)
        if found is None:
            if finest:
                return _not_kept(start, f"fewer than {_MIN_TILES} tiles of the two pictures agree")
            continue
        transform, covariance, used = found
        if finest:
            after = _mean_correlation(level, sampled, to_level, transform)
    corners = frame_corners(template.size)
    with np.errstate(all="ignore"):
        motion = float(np.nan_to_num(transform.residuals(start.inverse()(corners), corners), nan=np.inf).max())
    reason = None
    if not after > before:
        reason = f"the tiles agree no better: correlation {after:.3f} after, {before:.3f} before"
    elif motion > max_motion_px:
        reason = f"a corner moved by {motion:.2f} px, more than {max_motion_px:.2f} px"
    return Refinement(
        transform=transform if reason is None else start,
        covariance=covariance if reason is None else None,
        correlation_before=before,
        correlation_after=after,
        motion_px=motion,
        num_tiles=used,
        reason=reason,
    )


def _not_kept(start: Transform, reason: str) -> Refinement:
    return Refinement(
        transform=start,
        covariance=None,
        correlation_before=0.0,
        correlation_after=0.0,
        motion_px=0.0,
        num_tiles=0,
        reason=reason,
    )


def _scale_at_middle(transform: Transform, size: tuple[int, ...]) -> float:
    """Template pixels per source pixel in the middle of the source."""
    with np.errstate(all="ignore"):
        jacobian = transform.jacobian(np.array([[size[0] / 2, size[1] / 2]]))[0]
        return float(np.sqrt(abs(np.linalg.det(jacobian))))


def _level(
    gray: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
    factor: float,
    size: tuple[int, int],
    frame: Frame,
) -> _Level | None:
    """The tiles of one resolution. Gradients are taken tile by tile: those of 12 megapixels would fill 300 MB."""
    small, to_small = resize(gray, size)
    corners = _tile_corners(small, mask)
    if len(corners) == 0:
        return None
    rim = 4  # the reach of smoothing and gradient
    inside = slice(rim, rim + _TILE_PX)
    patches = [small[y - rim : y + _TILE_PX + rim, x - rim : x + _TILE_PX + rim] for x, y in corners]
    smooth = [cv2.GaussianBlur(patch, (0, 0), _SMOOTHING_PX).astype(np.float32) for patch in patches]
    gradients = np.stack(
        [[cv2.Scharr(patch, cv2.CV_32F, dx, 1 - dx)[inside, inside].ravel() / 32 for dx in (1, 0)] for patch in smooth]
    ).transpose(0, 2, 1) * np.array([to_small.scale_x, to_small.scale_y], np.float32)
    values = np.stack([patch[inside, inside].ravel() for patch in smooth])
    grid = np.stack(np.meshgrid(np.arange(_TILE_PX), np.arange(_TILE_PX)), axis=-1).reshape(-1, 2)
    places = (corners[:, None] + grid).reshape(-1, 2)
    positions = to_small.to_original(places).reshape(len(corners), -1, 2)
    motion = _motion_by_parameters(positions, frame)
    steepest = _without_light(np.asarray((gradients[:, :, None] @ motion)[:, :, 0], np.float32), values)
    normals = (steepest.transpose(0, 2, 1) @ steepest).astype(np.float64)
    return _Level(factor, positions, values, motion[:, motion.shape[1] // 2], steepest, normals)


def _tile_corners(small: NDArray[np.uint8], mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """(T, 2) top left (x, y) of the best tile in each cell of a grid, the flat ones left out.

    Texture is the weaker eigenvalue of the structure tensor, looked for at one megapixel at most.
    """
    height, width = small.shape
    coarse, to_coarse = resize(small, fitted_size((width, height), _TEXTURE_SIZE_PX))
    texture = _texture(coarse, max(3, round(_TILE_PX * to_coarse.scale_x)))
    if mask is not None:
        inside = resize(mask.astype(np.uint8), coarse.shape[::-1])[0]
        reach = max(3, round(_TILE_PX * to_coarse.scale_x)) + 2
        texture[cv2.erode(inside, np.ones((reach, reach), np.uint8)) == 0] = 0
    cell = max(_TILE_PX * to_coarse.scale_x, np.sqrt(coarse.size / _MAX_TILES))
    found = []
    for top in np.arange(0, coarse.shape[0], cell):
        for left in np.arange(0, coarse.shape[1], cell):
            block = texture[int(top) : int(top + cell), int(left) : int(left + cell)]
            if block.size:
                y, x = np.unravel_index(int(block.argmax()), block.shape)
                found.append((int(left) + x, int(top) + y, block[y, x]))
    strength = np.array([entry[2] for entry in found])
    middles = to_coarse.to_original(np.array([entry[:2] for entry in found]))
    corners = np.rint(middles).astype(np.int64) - _TILE_PX // 2
    room = ((corners >= 6) & (corners <= np.array([width, height]) - _TILE_PX - 6)).all(axis=1)
    # A tile whose weaker gradient is under half a grey level a pixel holds more noise than place.
    return corners[room & (strength > max(0.25, 0.02 * float(np.median(strength))))]


def _texture(gray: NDArray[np.uint8], box_px: int) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(gray, (0, 0), _SMOOTHING_PX).astype(np.float32)
    gx, gy = cv2.Scharr(smooth, cv2.CV_32F, 1, 0) / 32, cv2.Scharr(smooth, cv2.CV_32F, 0, 1) / 32
    xx, yy, xy = (cv2.boxFilter(product, -1, (box_px, box_px)) for product in (gx * gx, gy * gy, gx * gy))
    return np.asarray((xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2))


def _source_at(source: NDArray[np.uint8], factor: float) -> tuple[NDArray[np.float32], ResizeMap]:
    height, width = source.shape
    if factor > 0.9:
        factor = 1.0
    small, to_small = resize(source, (max(1, round(width * factor)), max(1, round(height * factor))))
    return cv2.GaussianBlur(small, (0, 0), _SMOOTHING_PX).astype(np.float32), to_small


def _sample(
    level: _Level, source: NDArray[np.float32], to_level: ResizeMap, transform: Transform
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(T, P) source values at the tiles' pixels, and (T,) whether the source covers the whole tile."""
    tiles, pixels = level.values.shape
    with np.errstate(all="ignore"):
        chain = to_level.matrix @ transform.inverse().matrix
        places = cv2.perspectiveTransform(level.positions.reshape(-1, 1, 2), chain)[:, 0]
    places = np.nan_to_num(places, nan=-1e4, posinf=-1e4, neginf=-1e4).clip(-1e4, 1e5)
    height, width = source.shape
    covered = ((places >= 1) & (places <= (width - 2, height - 2))).all(axis=1).reshape(tiles, pixels).all(axis=1)
    maps = places.astype(np.float32).reshape(tiles, pixels, 2)
    values = cv2.remap(source, maps, np.zeros(0, np.float32), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values, np.float32), np.asarray(covered)


def _align(
    level: _Level, frame: Frame, source: NDArray[np.float32], to_level: ResizeMap, start: Transform
) -> tuple[Transform, NDArray[np.float64], int] | None:
    """Gauss-Newton steps at one level, until no tile moves by a thousandth of a pixel; None with too few tiles."""
    kind = start.kind
    identity = parameters_of(Transform(np.eye(3), kind))
    within = matrix_of(identity, kind)[1][:8]  # the parameters of this kind as those of a homography, (8, K)
    normals = within.T @ level.normals @ within
    transform = start
    for _ in range(12):
        values, covered = _sample(level, source, to_level, transform)
        correlations, residuals = _residuals(level.values, values)
        usable = covered & (correlations > _MIN_CORRELATION)
        if usable.sum() < _MIN_TILES:
            return None
        rms = np.sqrt((residuals**2).mean(axis=1))
        typical = float(np.median(rms[usable])) + 1e-6
        weights = np.where(usable, 1 / (1 + (rms / (2 * typical)) ** 2), 0.0)
        scores = (residuals[:, None] @ level.steepest)[:, 0].astype(np.float64) @ within
        normal = (weights[:, None, None] * normals).sum(0)
        step = np.linalg.lstsq(normal, weights @ scores, rcond=None)[0]
        parameters = identity + step
        transform, _ = to_pixels(parameters, np.zeros((len(step),) * 2), kind, *_around(frame, transform))
        moved = level.motion @ (within @ step)
        if np.abs(moved).max() < 1e-3:
            break
    cell = np.floor(level.positions[:, 0] / (frame.scale * _CLUSTER_SIZE)).astype(np.int64)
    covariance = sandwich_covariance(
        weights[:, None, None] * normals, weights[:, None] * (scores - normals @ step), clusters_of(cell)
    )
    _, lifted = to_pixels(identity, covariance, kind, *_around(frame, transform))
    return transform, lifted, int(usable.sum())


def _around(frame: Frame, transform: Transform) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """left, right such that left @ W' @ right is the increment W', given in `frame`, after `transform`."""
    return frame.inverse, frame.matrix @ transform.matrix


def _motion_by_parameters(positions: NDArray[np.float64], frame: Frame) -> NDArray[np.float32]:
    """(T, P, 2, 8) derivative of the motion of (T, P, 2) template pixels by a homography's parameters at identity."""
    tiles, pixels, _ = positions.shape
    by_matrix = frame.scale * projection_by_matrix(np.eye(3), frame(positions.reshape(-1, 2)))[:, :, :8]
    return by_matrix.reshape(tiles, pixels, 2, 8).astype(np.float32)


def _without_light(steepest: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take out of (T, P, K) what a gain and an offset of each tile could explain as well."""
    centred = steepest - steepest.mean(axis=1, keepdims=True)
    direction = values - values.mean(axis=1, keepdims=True)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9
    along = direction[:, None] @ centred
    return np.asarray(centred - direction[:, :, None] * along, np.float32)


def _residuals(
    template: NDArray[np.float32], source: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """(T,) correlations, and (T, P) source minus template, the source brought to each tile's mean and contrast."""
    a = template - template.mean(axis=1, keepdims=True)
    b = source - source.mean(axis=1, keepdims=True)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    correlation = (a * b).sum(axis=1) / (norm_a * norm_b + 1e-6)
    gain = norm_a / (norm_b + 1e-6)
    return correlation, b * gain[:, None] - a


def _mean_correlation(level: _Level, source: NDArray[np.float32], to_level: ResizeMap, transform: Transform) -> float:
    values, covered = _sample(level, source, to_level, transform)
    correlations, _ = _residuals(level.values, values)
    return float(np.mean(correlations[covered])) if covered.any() else 0.0
