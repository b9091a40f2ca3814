"""Features of many views, computed once: what a matcher of features is trained on.

Extracting features costs as much as a step of a small matcher. Of a photograph with R views for image 0 and R for
image 1, each paired with each, R x R pairs can be drawn, at the price of 2 R extractions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiepoint.images import Image, write_atomically
from tiepoint.matchers.base import Extractor
from tiepoint.matchers.superglue import FeatureBatch
from tiepoint.matchers.superglue_matcher import unit_descriptors
from tiepoint.training.engine import generator_of
from tiepoint.training.pairs import PairConfig, make_pairs
from tiepoint.training.photographs import Photographs
from tiepoint.training.warps import Views

_BLANK = Image(np.zeros((64, 64), np.uint8))
_ARRAYS = ("keypoints", "scores", "descriptors", "counts", "matrices", "done")


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """num_views: R, of each photograph for each image; num_keypoints: N, the strongest kept of a view."""

    num_views: int = 6
    num_keypoints: int = 384
    seed: int = 0


class PairOfFeatures(NamedTuple):
    """features0, features1: of B pairs, of one count each; H_1_from_0: (B, 3, 3)."""

    features0: FeatureBatch
    features1: FeatureBatch
    H_1_from_0: Tensor


@dataclass(frozen=True, eq=False)
class FeaturePool:
    """Memory-mapped arrays over P photographs, 2 images, R views, up to N keypoints.

    keypoints: (P, 2, R, N, 2) float32; scores: (P, 2, R, N) float32; descriptors: (P, 2, R, N, D) float16, unit
    length; counts: (P, 2, R) int64, how many of the N there are; matrices: (P, 2, R, 3, 3) float32
    H_view_from_source. size: (height, width) of the views.
    """

    keypoints: NDArray[np.float32]
    scores: NDArray[np.float32]
    descriptors: NDArray[np.float16]
    counts: NDArray[np.int64]
    matrices: NDArray[np.float32]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def num_views(self) -> int:
        return int(self.counts.shape[2])

    @property
    def descriptor_dim(self) -> int:
        return int(self.descriptors.shape[-1])

    def pairs(self, rows: Tensor, views0: Tensor, views1: Tensor, count: int, device: torch.device) -> PairOfFeatures:
        """View views0[b] of photograph rows[b] beside view views1[b] of it, `count` strongest keypoints of both.

        A pair in which a view has fewer lowers the count of all; 1 at least must be there.
        """
        places = [(rows.numpy(), image, views.numpy()) for image, views in enumerate((views0, views1))]
        count = min(count, *(int(self.counts[place].min()) for place in places))
        H0, H1 = (torch.from_numpy(self.matrices[place]) for place in places)
        first, second = (self._batch(place, count, device) for place in places)
        return PairOfFeatures(first, second, (H1 @ torch.linalg.inv(H0)).to(device))

    def _batch(
        self, place: tuple[NDArray[np.int64], int, NDArray[np.int64]], count: int, device: torch.device
    ) -> FeatureBatch:
        photographs, image, views = place
        chosen = (photographs, image, views, slice(0, count))
        height, width = self.size
        return FeatureBatch(
            torch.from_numpy(self.keypoints[chosen]).to(device),
            torch.from_numpy(self.scores[chosen]).to(device),
            torch.from_numpy(self.descriptors[chosen]).to(device).float(),
            torch.tensor([[width, height]], device=device).expand(len(photographs), -1),
        )


def make_pool(
    photographs: Photographs,
    folder: Path,
    extractor: Extractor,
    features: str,
    pairs: PairConfig,
    config: PoolConfig,
    on_progress: Callable[[int, int], None],
) -> FeaturePool:
    """The pool in `folder`, made now as far as it is not there: interrupted, it goes on.

    features: says what `extractor` is; a folder with a pool made otherwise is refused with ValueError, and so is
    parallax.
    """
    if pairs.parallax.amplitude:
        raise ValueError("pairs.parallax: expected none, for a pool's views are related by homographies")
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "photographs": photographs.fingerprint,
        "features": features,
        "pairs": {name: value for name, value in asdict(pairs).items() if name != "parallax"},
        "pool": asdict(config),
    }
    described = json.dumps(made, indent=2)
    if (folder / "pool.json").exists() and (folder / "pool.json").read_text() != described:
        raise ValueError(f"{folder}: holds features of other photographs or settings; give another folder")
    dim = unit_descriptors(extractor.extract(_BLANK).descriptors).shape[1]
    arrays = _opened(folder, (len(photographs), 2, config.num_views), config.num_keypoints, dim)
    write_atomically(folder / "pool.json", described)
    for index in np.flatnonzero(~arrays["done"]).tolist():
        _fill(arrays, index, photographs, extractor, pairs, config)
        arrays["done"][index] = True
        if index % 50 == 0:
            on_progress(int(arrays["done"].sum()), len(photographs))
    for array in arrays.values():
        array.flush()
    return FeaturePool(
        arrays["keypoints"], arrays["scores"], arrays["descriptors"], arrays["counts"], arrays["matrices"], pairs.size
    )  # fmt: skip


def _opened(folder: Path, shape: tuple[int, int, int], count: int, dim: int) -> dict[str, np.memmap]:
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "keypoints": ((*shape, count, 2), np.float32),
        "scores": ((*shape, count), np.float32),
        "descriptors": ((*shape, count, dim), np.float16),
        "counts": (shape, np.int64),
        "matrices": ((*shape, 3, 3), np.float32),
        "done": (shape[:1], np.bool_),
    }
    files = {name: folder / f"{name}.npy" for name in _ARRAYS}
    mode = "r+" if (folder / "pool.json").exists() else "w+"
    return {
        name: np.lib.format.open_memmap(
            files[name], mode, *(() if mode == "r+" else (shapes[name][1], shapes[name][0]))
        )
        for name in _ARRAYS
    }


def _fill(
    arrays: dict[str, np.memmap],
    index: int,
    photographs: Photographs,
    extractor: Extractor,
    pairs: PairConfig,
    config: PoolConfig,
) -> None:
    rows = torch.full((config.num_views,), index)
    drawn = make_pairs(photographs, rows, pairs, 1.0, generator_of(config.seed, index), torch.device("cpu"))
    for image, (views, matrices) in enumerate(
        ((drawn.views0, drawn.H_view0_from_source), (drawn.views1, drawn.H_view1_from_source))
    ):
        arrays["matrices"][index, image] = matrices.numpy()
        for view, found in enumerate(extractor.extract_batch(_images(views))):
            count = min(len(found), config.num_keypoints)
            place = (index, image, view, slice(0, count))
            arrays["counts"][index, image, view] = count
            arrays["keypoints"][place] = found.keypoints[:count]
            arrays["scores"][place] = found.scores[:count]
            arrays["descriptors"][place] = unit_descriptors(found.descriptors)[:count]


def _images(views: Views) -> list[Image]:
    return [Image((view[0] * 255).round().byte().numpy()) for view in views.images]
