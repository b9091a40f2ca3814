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
from tiepoint.images import Image, ResizeMap, fitted_size, gray_view, resize
from tiepoint.matchers.base import Matcher, MatcherOptions
from tiepoint.networks.devices import device_and_dtype
from tiepoint.networks.loftr import CELL, CONFIGS, LoftrConfig, LoftrNetwork, config_of
from tiepoint.networks.loftr_inference import EncodedImage, LoftrInference
from tiepoint.weights.catalogue import WEIGHTS
from tiepoint.weights.store import WeightsError, default_weights, find_weights, load_strictly, load_weights


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
        for name in ("max_size_px", "max_num_matches", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.max_enlargement < 1:
            raise ValueError(f"max_enlargement: expected at least 1, got {self.max_enlargement}")


@dataclass(frozen=True, eq=False, kw_only=True)
class LoftrEncoding:
    """One image as LoFTR's backbone sees it.

    features: the network's, of the resized image.
    resize_map: from the full-size image to the resized one.
    size: (width, height) of the full-size image.
    """

    features: EncodedImage
    resize_map: ResizeMap
    size: tuple[int, int]


class Loftr(Matcher[LoftrEncoding]):
    """LoFTR with the weights that `network` has when this is made.

    Images keep their aspect: they are resized to a bounded long side and padded to whole cells of 8 pixels.
    """

    def __init__(
        self,
        network: LoftrNetwork,
        options: LoftrOptions | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.options = LoftrOptions() if options is None else options
        self.config = network.config
        self.device = torch.device(device)
        self.inference = LoftrInference(network.to(self.device), dtype, self.options.block)

    @property
    def name(self) -> str:
        return "loftr"

    def encode(self, image: Image) -> LoftrEncoding:
        return self.encode_batch([image])[0]

    def encode_batch(self, images: Sequence[Image]) -> list[LoftrEncoding]:
        """Images that are of one size once resized go through the backbone together, except on a CPU.

        There it would save no time and cost memory.
        """
        limits = (self.options.max_size_px, self.options.max_enlargement)
        views = [resize(gray_view(image), fitted_size(image.size, *limits)) for image in images]
        inputs = [_whole_cells(pixels) for pixels, _ in views]
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, pixels in enumerate(inputs):
            groups.setdefault((i,) if self.device.type == "cpu" else pixels.shape, []).append(i)
        features: dict[int, EncodedImage] = {}
        for members in groups.values():
            gray = torch.from_numpy(np.stack([inputs[i] for i in members])).to(self.device)
            features.update(zip(members, self.inference.encode(gray[:, None].float() / 255), strict=True))
        return [
            LoftrEncoding(features=features[i], resize_map=views[i][1], size=image.size)
            for i, image in enumerate(images)
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
        return encoding.resize_map.to_original(points.double().cpu().numpy() - self.config.origin).astype(np.float32)


def build_loftr(options: MatcherOptions) -> Loftr:
    """LoFTR with named weights or a file of them; those shipped with this package where none are asked for.

    Raises WeightsError when the weights cannot be had.
    """
    device, dtype = device_and_dtype(options.device, options.precision)
    network = load_loftr(options.weights if options.weights is not None else default_weights("loftr"))
    return Loftr(
        network,
        LoftrOptions(
            max_size_px=network.config.max_size_px if options.max_size_px is None else options.max_size_px,
            max_num_matches=options.max_num_keypoints,
        ),
        device=device,
        dtype=dtype,
    )


def load_loftr(source: str) -> LoftrNetwork:
    """The network with named weights or a file of them, set up as `settings_of` says, in evaluation mode.

    Raises WeightsError when the weights cannot be had or are not LoFTR's.
    """
    state = {name.removeprefix("matcher."): tensor for name, tensor in load_weights(source).items()}
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
    by_file = {entry.file_name: entry.name for entry in WEIGHTS.values() if entry.method == "loftr"}
    name = source if source in WEIGHTS else by_file.get(Path(source).name)
    if name in CONFIGS:
        return CONFIGS[name]
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
