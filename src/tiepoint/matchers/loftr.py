"""LoFTR (Sun et al., CVPR 2021): semi-dense matches without keypoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiepoint.geometry import Matches
from tiepoint.images import GrayLevel, Image, ResizeMap, fitted_size, gray_view, resize
from tiepoint.matchers.base import Matcher, MatcherOptions, check_at_least_1
from tiepoint.networks.devices import batches_of_one_size, device_and_dtype
from tiepoint.networks.loftr import CELL, CONFIGS, LoftrConfig, LoftrNetwork, config_of
from tiepoint.networks.loftr_inference import EncodedImage, LoftrInference
from tiepoint.weights.catalogue import WEIGHTS
from tiepoint.weights.store import (
    WeightsError,
    default_weights,
    find_weights,
    known_weights,
    load_strictly,
    load_weights,
)

_AUTHORS_PREFIX = "matcher."  # of the tensors in the authors' checkpoints


@dataclass(frozen=True, kw_only=True)
class LoftrOptions:
    """How the matcher is run.

    max_size_px: long side of the image the network sees; None leaves every image as it is.
    max_enlargement: of a smaller image, up to that long side: its matches lie closer and more exactly then.
    max_num_matches: the most matches kept, those of highest confidence; None keeps all.
    block: rows of the confidence matrix held at a time; each takes 32 bytes for each cell of image 1, of which
        there is one in 64 pixels.
    """

    max_size_px: int | None = 840
    max_enlargement: float = 2.0
    max_num_matches: int | None = None
    block: int = 256

    def __post_init__(self) -> None:
        check_at_least_1(self, "max_size_px", "max_enlargement", "max_num_matches", "block")


@dataclass(frozen=True, eq=False, kw_only=True)
class LoftrEncoding:
    """One image as LoFTR's backbone sees it.

    features: the network's, of the resized image.
    resize_map: from the full-size image to the resized one.
    size: (width, height) of the full-size image.
    gray_levels: as in Features.
    """

    features: EncodedImage
    resize_map: ResizeMap
    size: tuple[int, int]
    gray_levels: tuple[GrayLevel, ...] | None = None


class Loftr(Matcher[LoftrEncoding]):
    """LoFTR with the weights that `network` has when this is made.

    Images keep their aspect: they are resized to a bounded long side and padded to whole cells of 8 pixels.
    options: None works at the long side that the weights were made for.
    """

    def __init__(
        self,
        network: LoftrNetwork,
        options: LoftrOptions | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = network.config
        self.options = LoftrOptions(max_size_px=self.config.max_size_px) if options is None else options
        self.device = torch.device(device)
        self.inference = LoftrInference(network.to(self.device), dtype, self.options.block)

    @property
    def name(self) -> str:
        return "loftr"

    def encode(self, image: Image) -> LoftrEncoding:
        return self.encode_batch([image])[0]

    def encode_batch(self, images: Sequence[Image]) -> list[LoftrEncoding]:
        """`encode` for each image; on a GPU, images of one working size go through the backbone together."""
        limits = (self.options.max_size_px, self.options.max_enlargement)
        sizes = [fitted_size(image.size, *limits) for image in images]
        found: dict[int, LoftrEncoding] = {}
        for members in batches_of_one_size(sizes, self.device):
            encoded = self._encode([images[i] for i in members], sizes[members[0]])
            found.update(zip(members, encoded, strict=True))
        return [found[index] for index in range(len(images))]

    def _encode(self, images: Sequence[Image], size: tuple[int, int]) -> list[LoftrEncoding]:
        resized = [resize(gray_view(image), size) for image in images]
        gray = torch.from_numpy(np.stack([_whole_cells(pixels) for pixels, _ in resized])).to(self.device)
        features = self.inference.encode(gray[:, None].float() / 255)
        return [
            LoftrEncoding(features=of_image, resize_map=resize_map, size=image.size)
            for image, (_, resize_map), of_image in zip(images, resized, features, strict=True)
        ]

    def match(self, encoding0: LoftrEncoding, encoding1: LoftrEncoding) -> Matches:
        found = self.inference.match(encoding0.features, encoding1.features)
        points0 = self._full_size(found.points0, encoding0)
        points1 = self._full_size(found.points1, encoding1)
        scores = found.confidence.cpu().numpy().clip(0, 1).astype(np.float32)
        # A point may be moved past the picture's rim, onto the padding or outside.
        kept = np.flatnonzero(_inside(points0, encoding0.size) & _inside(points1, encoding1.size))
        if self.options.max_num_matches is not None and len(kept) > self.options.max_num_matches:
            best = np.argsort(-scores[kept], kind="stable")[: self.options.max_num_matches]
            kept = kept[np.sort(best)]
        return Matches(
            points0=points0[kept],
            points1=points1[kept],
            scores=scores[kept],
            size0=encoding0.size,
            size1=encoding1.size,
            method=self.name,
        )

    def _full_size(self, points: Tensor, encoding: LoftrEncoding) -> NDArray[np.float32]:
        """From the network's frame to pixels of the full-size image, pixel centres at integers."""
        return encoding.resize_map.to_original(points.cpu().double().numpy() - self.config.origin).astype(np.float32)


def build_loftr(options: MatcherOptions) -> Loftr:
    """LoFTR with named weights or a file of them; those shipped with this package where none are asked for.

    Raises WeightsError when the weights cannot be had.
    """
    device, dtype = device_and_dtype(options.device, options.precision)
    network = load_loftr(options.weights or default_weights("loftr"))
    of_matcher = LoftrOptions(
        max_size_px=options.max_size_px or network.config.max_size_px,
        max_enlargement=options.max_enlargement or LoftrOptions.max_enlargement,
        max_num_matches=options.max_num_keypoints,
    )
    return Loftr(network, of_matcher, device=device, dtype=dtype)


def load_loftr(source: str) -> LoftrNetwork:
    """The network with named weights or a file of them, set up as `settings_of` says, in evaluation mode.

    Raises WeightsError when the weights cannot be had or are not LoFTR's, and for a file of the authors under
    another name: nothing else tells which settings it needs.
    """
    tensors = load_weights(source)
    state = {name.removeprefix(_AUTHORS_PREFIX): tensor for name, tensor in tensors.items()}
    if known_weights(source) is None and any(name.startswith(_AUTHORS_PREFIX) for name in tensors):
        published = [entry.file_name for entry in WEIGHTS.values() if entry.name in CONFIGS]
        raise WeightsError(
            f"{source}: published weights of LoFTR need settings that their file name tells; "
            f"give the file the one it was published under: {', '.join(published)}"
        )
    try:
        config = settings_of(source, state)
    except ValueError as error:
        raise WeightsError(f"{source}: {error}") from error
    network = LoftrNetwork(config)
    load_strictly(network, state, source)
    return network.eval()


def settings_of(source: str, state: Mapping[str, Tensor]) -> LoftrConfig:
    """How the network is set up for weights.

    Named weights, and files called as they are published, have their settings in `networks.loftr.CONFIGS`. Any
    other file is taken for one that this project's training has made: its card, the .json beside it, has them; the
    tensors tell them where there is none, all but what differs from our own kind in the fields that have no tensor.
    Raises WeightsError where the card is not of a LoFTR.
    """
    entry = known_weights(source)
    if entry is not None and entry.name in CONFIGS:
        return CONFIGS[entry.name]
    card = find_weights(source).with_suffix(".json")
    return _settings_on_card(card) if card.exists() else config_of(state)


def _settings_on_card(card: Path) -> LoftrConfig:
    """`config.network` of what `tiepoint weights export` writes for a run of LoFTR."""
    try:
        settings = json.loads(card.read_text(encoding="utf-8"))["config"]["network"]
        return LoftrConfig(**{**settings, "widths": tuple(settings["widths"])})
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise WeightsError(
            f"{card}: expected the card of a LoFTR, as `tiepoint weights export` writes it, got {error!r}; "
            "without that file the settings are read from the tensors"
        ) from error


def _whole_cells(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`pixels` (H, W) grown below and to the right to whole cells by repeating its rim, which shows no edge."""
    height, width = pixels.shape
    return np.pad(pixels, ((0, -height % CELL), (0, -width % CELL)), mode="edge")


def _inside(points: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Where points lie on the picture, whose corners are at (-0.5, -0.5) and (width - 0.5, height - 0.5)."""
    inside = (points >= -0.5) & (points <= np.array(size) - 0.5)
    return inside[:, 0] & inside[:, 1]
