"""SuperPoint's network and its decoding (DeTone, Malisiewicz, Rabinovich, CVPR Workshops 2018).

This is the form that is trained and that holds a checkpoint; `superpoint_extractor.py` runs it.
Maps are at one eighth of the image: cell (i, j) covers pixels 8i ... 8i + 7 by 8j ... 8j + 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiepoint.weights import WeightsError, load_strictly

CELL_PX = 8
_STAGES = ((1, 64), (64, 64), (64, 128), (128, 128))  # channels in and out; pooled after each but the last
_HEAD_CHANNELS = 256
_NUM_LOGITS = CELL_PX * CELL_PX + 1  # the pixels of a cell, and the dustbin: no keypoint in this cell
PATCH_REACH_PX = 2  # of the patch that refines a keypoint, either side of it

Normalisation = Literal["none", "before_relu", "after_relu"]
Sampler = Literal["exact", "legacy"]


@dataclass(frozen=True, kw_only=True)
class SuperPointConfig:
    """What distinguishes the published networks.

    descriptor_dim: D, channels of the descriptor map.
    normalisation: batch normalisation: "none" (Magic Leap's release), "before_relu" (pytorch-superpoint's
        gauss2) or "after_relu" (Pautrat's open one, and ours).
    """

    descriptor_dim: int = 256
    normalisation: Normalisation = "after_relu"


class SuperPointMaps(NamedTuple):
    """What the network says of a batch of images.

    logits: (B, 65, H/8, W/8), for softmax over the pixels of each cell, row by row, and its dustbin.
    descriptors: (B, D, H/8, W/8), of unit length.
    """

    logits: Tensor
    descriptors: Tensor


class Convolution(nn.Module):
    """A convolution that keeps the size, with its normalisation and, unless it ends a head, its ReLU."""

    def __init__(
        self, channels_in: int, channels_out: int, size: int, normalisation: Normalisation, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, size, padding=size // 2)
        self.normalisation = normalisation
        self.relu = relu
        if normalisation != "none":
            eps = 1e-3 if normalisation == "after_relu" else 1e-5  # as published
            self.bn = nn.BatchNorm2d(channels_out, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.normalisation == "before_relu":
            x = self.bn(x)
        if self.relu:
            x = F.relu(x)
        if self.normalisation == "after_relu":
            x = self.bn(x)
        return x


class SuperPoint(nn.Module):
    """The shared encoder with the detector's and the descriptor's heads (section 3, figure 3)."""

    def __init__(self, config: SuperPointConfig) -> None:
        super().__init__()
        self.config = config
        norm = config.normalisation
        self.backbone = nn.ModuleList(
            nn.Sequential(Convolution(before, after, 3, norm), Convolution(after, after, 3, norm))
            for before, after in _STAGES
        )
        channels = _STAGES[-1][1]
        self.detector = nn.Sequential(
            Convolution(channels, _HEAD_CHANNELS, 3, norm),
            Convolution(_HEAD_CHANNELS, _NUM_LOGITS, 1, norm, relu=False),
        )
        self.descriptor = nn.Sequential(
            Convolution(channels, _HEAD_CHANNELS, 3, norm),
            Convolution(_HEAD_CHANNELS, config.descriptor_dim, 1, norm, relu=False),
        )

    def forward(self, images: Tensor) -> SuperPointMaps:
        """images: (B, 1, H, W) grey in [0, 1], H and W multiples of 8."""
        x = self.encoded(images)
        return SuperPointMaps(self.detector(x), F.normalize(self.descriptor(x), dim=1))

    def encoded(self, images: Tensor) -> Tensor:
        """(B, 128, H/8, W/8): what both heads read."""
        x = images
        for index, stage in enumerate(self.backbone):
            x = F.max_pool2d(x, 2) if index > 0 else x
            x = stage(x)  # (B, 64 or 128, H / 2^index, W / 2^index)
        return x


# ---------------------------------------------------------------- checkpoints


def load_superpoint(tensors: dict[str, Tensor], source: str) -> SuperPoint:
    """The network of a checkpoint in Magic Leap's, gauss2's or the open naming (which is ours), ready to run.

    Variant and D follow from the tensors. source: where they come from, for messages.
    Raises WeightsError when the tensors are not exactly those of a SuperPoint.
    """
    normalisation: Normalisation
    if "conv1a.weight" in tensors:
        normalisation, renamed = "none", _renamed(tensors, _MAGIC_LEAP_NAMES)
    elif "inc.conv.conv.0.weight" in tensors:
        normalisation, renamed = "before_relu", _renamed(tensors, _GAUSS2_NAMES)
    else:
        normalisation, renamed = "after_relu", tensors
    if "descriptor.1.conv.weight" not in renamed:
        raise WeightsError(f"{source} is no SuperPoint: it holds {', '.join(list(tensors)[:4])}, ...")
    dim = len(renamed["descriptor.1.conv.weight"])
    network = SuperPoint(SuperPointConfig(descriptor_dim=dim, normalisation=normalisation))
    load_strictly(network, renamed, source)
    return network.eval()


def published_tensors(network: SuperPoint) -> dict[str, Tensor]:
    """The tensors under the published names of the network's variant, by which `load_superpoint` knows it."""
    names = {"none": _MAGIC_LEAP_NAMES, "before_relu": _GAUSS2_NAMES, "after_relu": {}}[network.config.normalisation]
    return _renamed(network.state_dict(), {ours: published for published, ours in names.items()})


def _renamed(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """`tensors` under other names of their layers; one whose layer is not in `names` keeps its own."""
    split = {name: name.rpartition(".") for name in tensors}
    return {f"{names.get(split[n][0], split[n][0])}.{split[n][2]}": tensor for n, tensor in tensors.items()}


_LAYERS = [f"backbone.{stage}.{layer}" for stage in range(4) for layer in range(2)]
_HEADS = ["detector.0", "detector.1", "descriptor.0", "descriptor.1"]
_PUBLISHED_LAYERS = ["1a", "1b", "2a", "2b", "3a", "3b", "4a", "4b"]
_PUBLISHED_HEADS = ["Pa", "Pb", "Da", "Db"]
_MAGIC_LEAP_NAMES = {
    f"conv{published}": f"{ours}.conv"
    for published, ours in zip(_PUBLISHED_LAYERS + _PUBLISHED_HEADS, _LAYERS + _HEADS, strict=True)
}
_GAUSS2_NAMES = {
    **{
        f"{stage}.conv.{3 * layer + part}": f"backbone.{index}.{layer}.{kind}"
        for index, stage in enumerate(["inc.conv", "down1.mpconv.1", "down2.mpconv.1", "down3.mpconv.1"])
        for layer in range(2)
        for part, kind in enumerate(["conv", "bn"])
    },
    **{
        f"{kind}{published}": f"{ours}.{kind}"
        for published, ours in zip(_PUBLISHED_HEADS, _HEADS, strict=True)
        for kind in ("conv", "bn")
    },
}


# ---------------------------------------------------------------- decoding


def keypoint_probability(logits: Tensor) -> Tensor:
    """(B, H, W) probability of a keypoint at each pixel, from (B, 65, H/8, W/8) logits (section 3.2)."""
    batch, _, rows, columns = logits.shape
    inside = logits.permute(0, 2, 3, 1).softmax(-1)[..., :-1]  # (B, h, w, 64): without the dustbin
    cells = inside.reshape(batch, rows, columns, CELL_PX, CELL_PX)
    return cells.transpose(2, 3).reshape(batch, rows * CELL_PX, columns * CELL_PX)


def suppress(probability: Tensor, radius_px: int) -> Tensor:
    """`probability` (B, H, W), zero wherever a stronger pixel lies within `radius_px` along both axes.

    Maxima of their window stay and silence it; two more rounds bring back the maxima of what is left outside
    the silenced windows. (Greedy suppression in the order of scores would need as many rounds as its longest
    chain.) Equal neighbours all stay.
    """
    if probability.device.type == "cpu":
        return torch.stack([torch.from_numpy(_suppress_cpu(p.numpy(), radius_px)) for p in probability.detach()])
    size = 2 * radius_px + 1

    def window_maximum(x: Tensor) -> Tensor:
        return F.max_pool2d(x, size, stride=1, padding=radius_px)

    kept = probability == window_maximum(probability)
    for _ in range(2):
        silenced = window_maximum(kept.to(probability.dtype)) > 0
        rest = probability.masked_fill(silenced, 0)
        kept |= (rest == window_maximum(rest)) & ~silenced
    return probability * kept


def _suppress_cpu(probability: np.ndarray, radius_px: int) -> np.ndarray:
    """`suppress` by OpenCV's running maxima, some forty times faster than pooling."""
    window = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    kept = (probability == cv2.dilate(probability, window)).view(np.uint8)
    for _ in range(2):
        silenced = cv2.dilate(kept, window)
        rest = np.where(silenced, np.float32(0), probability)
        kept |= (rest == cv2.dilate(rest, window)).view(np.uint8) & (1 - silenced)
    peaks: np.ndarray = probability * kept
    return peaks


def refined(keypoints: Tensor, probability: Tensor) -> Tensor:
    """(N, 2) float keypoints moved to the mean of the 5 x 5 probabilities around each (pytorch-superpoint).

    keypoints: (N, 2) whole pixels (x, y); probability: (H, W) before suppression.
    """
    patches = patches_around(keypoints, probability)
    weights = patches / patches.sum((1, 2), keepdim=True)
    offsets = torch.arange(-PATCH_REACH_PX, PATCH_REACH_PX + 1, device=keypoints.device)
    shift = torch.stack([(weights.sum(1) * offsets).sum(-1), (weights.sum(2) * offsets).sum(-1)], -1)
    return keypoints + shift


def patches_around(keypoints: Tensor, probability: Tensor) -> Tensor:
    """(N, 5, 5), rows then columns, of `probability` (H, W) around (N, 2) whole pixels (x, y); 0 outside."""
    padded = F.pad(probability, (PATCH_REACH_PX,) * 4)
    offsets = torch.arange(2 * PATCH_REACH_PX + 1, device=keypoints.device)
    x, y = keypoints.long().unbind(-1)
    return padded[(y[:, None] + offsets)[:, :, None], (x[:, None] + offsets)[:, None, :]]


def sample_descriptors(descriptors: Tensor, keypoints: Tensor, sampler: Sampler) -> Tensor:
    """(N, D) unit descriptors at `keypoints`, bilinear between the cells of one image's (D, h, w) map.

    keypoints: (N, 2) float (x, y) pixels of the image the map was made from.
    sampler: "exact" places cell i's centre where it is, at pixel 8i + 3.5. "legacy" stretches the map by a
    factor that is right at the left edge and 3.5 px off at the right one, as Magic Leap's release does and as
    SuperGlue's published weights were trained with (SuperGluePretrainedNetwork issue 18).
    """
    dim, rows, columns = descriptors.shape
    size = torch.tensor([columns, rows], device=keypoints.device)
    cell = (keypoints - (CELL_PX - 1) / 2) / CELL_PX
    if sampler == "legacy":
        cell = cell * (CELL_PX * (size - 1) / (CELL_PX * size - 4.5))
    # Outside the outermost centres only one cell counts; the unit length undoes its fading towards the edge.
    cell = cell.clamp(min=torch.zeros_like(size), max=size - 1)
    low = cell.floor().long().minimum((size - 2).clamp(min=0))
    fraction = cell - low
    high = (low + 1).minimum(size - 1)
    flat = descriptors.permute(1, 2, 0).reshape(rows * columns, dim)
    sampled = torch.zeros(len(keypoints), dim, dtype=descriptors.dtype, device=descriptors.device)
    for x, weight_x in ((low[:, 0], 1 - fraction[:, 0]), (high[:, 0], fraction[:, 0])):
        for y, weight_y in ((low[:, 1], 1 - fraction[:, 1]), (high[:, 1], fraction[:, 1])):
            sampled += (weight_x * weight_y)[:, None] * flat[y * columns + x]
    return F.normalize(sampled, dim=1)
