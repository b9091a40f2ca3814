"""RoMa: Robust Dense Feature Matching (Edstedt et al., CVPR 2024): every pixel's place in the other image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from tiepoint.geometry import Matches
from tiepoint.images import GrayLevel, Image, rgb_view
from tiepoint.matchers.base import Matcher, MatcherOptions
from tiepoint.matchers.dense_warp import DenseWarp
from tiepoint.matchers.roma_network import SIZE_MULTIPLE_PX, Pyramid, RomaConfig, RomaNetwork, pixel_grid
from tiepoint.networks.devices import device_and_dtype
from tiepoint.networks.residual_trunk import TrunkConfig
from tiepoint.weights.store import default_weights, load_strictly, load_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

DINOV2 = "dinov2_vitl14"  # the weights of the coarse trunk, published apart from RoMa's
ROMA_CONFIG = RomaConfig()
ROMA_SMALL_CONFIG = RomaConfig(
    trunk=TrunkConfig(),
    vgg_widths=(16, 32, 64, 128),
    feature_dims={16: 128, 8: 64, 4: 32, 2: 16, 1: 8},
    gp_dim=128,
    decoder_blocks=3,
    decoder_heads=4,
    anchors_per_side=32,
    rim_wraps=False,
    correlation_radii={16: 4, 8: 3, 4: 2},
    displacement_dims={16: 32, 8: 16, 4: 8, 2: 8, 1: 4},
    hidden_blocks=3,
)


@dataclass(frozen=True, kw_only=True)
class RomaOptions:
    """How RoMa is run; the defaults are the publisher's, but for `fit`.

    resolution_px: side of the square that both networks see, a multiple of 56.
    upsample_px: side of the square of the second pass, fine features alone, a multiple of 8; None leaves it out.
    fit: how a picture enters the square: "pad" keeps its aspect and pads below or to the right, "squash" fills
        the square, as the publisher does.
    num_matches: how many are sampled from the warp.
    seed: of the sampling.
    """

    resolution_px: int = 560
    upsample_px: int | None = 864
    fit: Literal["pad", "squash"] = "pad"
    num_matches: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resolution_px <= 0 or self.resolution_px % SIZE_MULTIPLE_PX:
            raise ValueError(f"resolution_px: expected a multiple of {SIZE_MULTIPLE_PX}, got {self.resolution_px}")
        if self.upsample_px is not None and (self.upsample_px < self.resolution_px or self.upsample_px % 8):
            raise ValueError(
                f"upsample_px: expected a multiple of 8 of at least {self.resolution_px}, got {self.upsample_px}"
            )


# By the long side that a user allows: one pass, or two with the second at that size. Memory: docs/roma.md.
PRESETS: Mapping[int, RomaOptions] = {
    224: RomaOptions(resolution_px=224, upsample_px=None),
    336: RomaOptions(resolution_px=336, upsample_px=None),
    448: RomaOptions(resolution_px=448, upsample_px=None),
    560: RomaOptions(resolution_px=560, upsample_px=None),
    864: RomaOptions(resolution_px=560, upsample_px=864),
    1344: RomaOptions(resolution_px=672, upsample_px=1344),
}
# The small form's coarse match is trained at 224 px; its refiners gain by a larger second pass (docs/roma.md).
SMALL_PRESETS: Mapping[int, RomaOptions] = {
    224: RomaOptions(resolution_px=224, upsample_px=None),
    448: RomaOptions(resolution_px=224, upsample_px=448),
    672: RomaOptions(resolution_px=224, upsample_px=672),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class RomaEncoding:
    """One image, encoded.

    coarse, fine: features at `resolution_px` and at `upsample_px` (None without a second pass), batch of one.
    size: (width, height) of the full-size image.
    extent: the part of the square that the picture fills along x and y.
    blank: whether the picture is of one colour, so that it shows nothing to match.
    gray_levels: as in Features.
    """

    coarse: Pyramid
    fine: Pyramid | None
    size: tuple[int, int]
    extent: tuple[float, float]
    blank: bool
    gray_levels: tuple[GrayLevel, ...] | None = None


class Roma(Matcher[RomaEncoding]):
    """RoMa over a trained network, which is made ready for inference: it cannot be trained afterwards."""

    def __init__(
        self,
        network: RomaNetwork,
        options: RomaOptions,
        *,
        name: str = "roma",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.network = network.to(device).prepare_inference(dtype)
        self.options = options
        self.device = torch.device(device)
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @torch.inference_mode()
    def encode(self, image: Image) -> RomaEncoding:
        pixels = rgb_view(image)
        options = self.options
        last_side = options.upsample_px or options.resolution_px
        width, height = _fitted(image.size, last_side, options.fit)
        return RomaEncoding(
            coarse=self.network.encode(self._frame(pixels, options.resolution_px)),
            fine=(
                None
                if options.upsample_px is None
                else self.network.encode(self._frame(pixels, options.upsample_px), coarse=False)
            ),
            size=image.size,
            extent=(width / last_side, height / last_side),
            blank=bool((pixels == pixels[0, 0]).all()),
        )

    def match(self, encoding0: RomaEncoding, encoding1: RomaEncoding) -> Matches:
        return self.match_dense(encoding0, encoding1).sample(self.options.num_matches, self.options.seed)

    @torch.inference_mode()
    def match_dense(self, encoding0: RomaEncoding, encoding1: RomaEncoding) -> DenseWarp:
        """The warp both ways, with its certainty."""
        warp01, certainty01 = self._one_way(encoding0, encoding1)
        warp10, certainty10 = self._one_way(encoding1, encoding0)
        grid = pixel_grid(warp01.shape[-2:], warp01)[0]
        left, right = torch.cat([grid, warp01]), torch.cat([warp10, grid])  # (4, H, W) each
        return DenseWarp(
            warp=torch.cat([left, right], 2).permute(1, 2, 0).contiguous().cpu().numpy(),
            certainty=torch.cat([certainty01, certainty10], 1).cpu().numpy(),
            size0=encoding0.size,
            size1=encoding1.size,
            extent0=encoding0.extent,
            extent1=encoding1.extent,
            method=self.name,
        )

    def _one_way(self, encoding0: RomaEncoding, encoding1: RomaEncoding) -> tuple[Tensor, Tensor]:
        """Warp (2, H, W) and certainty (H, W) of image 0's frame in image 1's."""
        fine = None
        if encoding0.fine is not None and encoding1.fine is not None:
            fine = encoding0.fine, encoding1.fine
        warp, certainty = (x[0] for x in self.network.match(encoding0.coarse, encoding1.coarse, fine))
        grid = pixel_grid(certainty.shape, warp)[0]
        padding = ~(_in_picture(grid, encoding0.extent) & _in_picture(warp, encoding1.extent))
        if encoding0.blank or encoding1.blank:
            padding = torch.ones_like(padding)
        return warp, certainty.masked_fill(padding, 0)

    def _frame(self, pixels: NDArray[np.uint8], side: int) -> Tensor:
        """(H, W, 3) as the network sees it, (1, 3, side, side), padding of ImageNet's mean colour."""
        size = _fitted((pixels.shape[1], pixels.shape[0]), side, self.options.fit)
        # Pillow's bicubic with antialiasing is what the published weights were trained on.
        fitted = np.array(PillowImage.fromarray(pixels).resize(size, PillowImage.Resampling.BICUBIC))
        values = torch.from_numpy(fitted).to(self.device).permute(2, 0, 1)[None].float() / 255
        mean, deviation = (values.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        frame = values.new_zeros(1, 3, side, side)
        frame[:, :, : size[1], : size[0]] = (values - mean) / deviation
        return frame


def _fitted(size: tuple[int, int], side: int, fit: Literal["pad", "squash"]) -> tuple[int, int]:
    """(width, height) of a picture in the square of `side`."""
    if fit == "squash":
        return side, side
    width, height = (max(1, round(length * side / max(size))) for length in size)
    return width, height


def _in_picture(positions: Tensor, extent: tuple[float, float]) -> Tensor:
    """(2, H, W) positions in [-1, 1] to (H, W): whether within the filled part of the square."""
    return (positions[0] <= 2 * extent[0] - 1) & (positions[1] <= 2 * extent[1] - 1)


def options_for(options: MatcherOptions, presets: Mapping[int, RomaOptions], default_size_px: int) -> RomaOptions:
    """The largest of `presets` within `max_size_px`. Raises ValueError for less than the smallest."""
    allowed = default_size_px if options.max_size_px is None else options.max_size_px
    sizes = [size for size in presets if size <= allowed]
    if not sizes:
        raise ValueError(f"max_size_px: RoMa needs at least {min(presets)}, got {allowed}")
    preset = presets[max(sizes)]
    if options.max_num_keypoints is None:
        return preset
    return replace(preset, num_matches=options.max_num_keypoints)


def load_network(config: RomaConfig, weights: str) -> RomaNetwork:
    """The network with named weights or a file's.

    Files in the published layout hold no coarse trunk, which is then DINOv2's, and know the anchors' rim as it
    wraps round; files of this project hold the whole network, and do not.
    """
    state = load_weights(weights)
    published = not any(key.startswith("trunk.") for key in state)
    network = RomaNetwork(replace(config, rim_wraps=published))
    if published:
        state |= {f"trunk.{key}": tensor for key, tensor in load_weights(DINOV2).items()}
    load_strictly(network, state, weights)
    return network


def build_roma(options: MatcherOptions) -> Roma:
    """RoMa with DINOv2 ViT-L/14 and VGG19."""
    return _build("roma", ROMA_CONFIG, options_for(options, PRESETS, default_size_px=864), options)


def build_roma_small(options: MatcherOptions) -> Roma:
    """RoMa's small form: a trunk of its own in place of DINOv2, narrow refiners, 32 x 32 anchors."""
    return _build("roma-small", ROMA_SMALL_CONFIG, options_for(options, SMALL_PRESETS, default_size_px=448), options)


def _build(name: str, config: RomaConfig, preset: RomaOptions, options: MatcherOptions) -> Roma:
    device, dtype = device_and_dtype(options.device, options.precision)
    network = load_network(config, options.weights or default_weights(name))
    return Roma(network, preset, name=name, device=device, dtype=dtype)
