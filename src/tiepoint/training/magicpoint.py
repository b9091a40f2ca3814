"""MagicPoint: SuperPoint's detector on synthetic shapes drawn as training goes on (section 4).

Where this leaves the paper: shapes are drawn turned and tilted already and get no further homography.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from tiepoint.matchers.superpoint import Normalisation, SuperPoint, SuperPointConfig, published_tensors
from tiepoint.training.detection import (
    average_precision,
    cell_labels,
    detections,
    detector_loss,
    start_detector,
)
from tiepoint.training.engine import Compute, LoopConfig, Loss, Task, generator_of
from tiepoint.training.photometric import PhotometricConfig, disturbed
from tiepoint.training.shapes import SHAPES, Drawing, draw_shape

_SHAPE_WEIGHTS = {"ellipses": 0.3, "stripes": 0.5, "noise": 0.1}  # the rest 1: few pictures without corners


@dataclass(frozen=True, kw_only=True)
class MagicPointConfig:
    """size: (height, width) of the drawings; descriptor_dim, normalisation: of the network, as in `SuperPointConfig`;
    num_validation: drawings of each kind that are held out."""

    size: tuple[int, int] = (120, 160)
    descriptor_dim: int = 128
    normalisation: Normalisation = "after_relu"
    num_validation: int = 12
    photometric: PhotometricConfig = field(
        default_factory=lambda: PhotometricConfig(contrast=0.8, noise=0.06, impulse=0.003, motion_px=5.0)
    )
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(batch_size=32, steps=20_000))


class MagicPoint(Task):
    """Trains the detector of a SuperPoint; its descriptor's head is left as it was."""

    judged_by = "mAP"
    network: SuperPoint

    def __init__(self, config: MagicPointConfig, network: SuperPoint | None = None) -> None:
        torch.manual_seed(config.loop.seed)
        self.network = network or untrained(config.descriptor_dim, config.normalisation)
        self.network.descriptor.requires_grad_(False)
        self.config = config
        generator = generator_of(config.loop.seed, -1)
        self._held_out, self._truth = drawings(
            [kind for kind in SHAPES for _ in range(config.num_validation)], config.size, generator
        )
        self._held_out_noisy = disturbed(self._held_out, config.photometric, generator)

    def loss(self, batch_size: int, progress: float, generator: Generator, compute: Compute) -> Loss:
        weights = torch.tensor([_SHAPE_WEIGHTS.get(kind, 1.0) for kind in SHAPES])
        chosen = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
        kinds = [list(SHAPES)[i] for i in chosen.tolist()]
        images, corners = drawings(kinds, self.config.size, generator)
        images = disturbed(images.to(compute.device), self.config.photometric, generator)
        valid = torch.ones(images.shape[0], *images.shape[2:], dtype=torch.bool, device=compute.device)
        labels = cell_labels(_padded(corners).to(compute.device), self.config.size, valid, generator)
        images = images.contiguous(memory_format=torch.channels_last)
        with compute.autocast():
            logits = self.network.detector(self.network.encoded(images))
        return Loss(detector_loss(logits.float(), labels), {})

    def exported(self, network: nn.Module) -> dict[str, Tensor]:
        assert isinstance(network, SuperPoint)
        return published_tensors(network)

    def validate(self, network: nn.Module, device: torch.device, pictures: Path) -> dict[str, float]:
        """Mean average precision and localisation error in pixels, corners within 4 px, noisy and clean."""
        assert isinstance(network, SuperPoint)
        clean, error = self._judged(network, self._held_out, device)
        noisy, noisy_error = self._judged(network, self._held_out_noisy, device)
        return {"mAP": noisy, "mAP_clean": clean, "error_px": noisy_error, "error_clean_px": error}

    def _judged(self, network: SuperPoint, images: Tensor, device: torch.device) -> tuple[float, float]:
        found = []
        for chunk in torch.split(images, 32):
            logits = network.detector(network.encoded(chunk.to(device)))
            found += detections(logits, radius_px=4, threshold=0.001)
        return average_precision(found, self._truth, distance_px=4.0)


def untrained(descriptor_dim: int, normalisation: Normalisation = "after_relu") -> SuperPoint:
    """A network with weights drawn from torch's generator; of the kind we train, at `start_detector`."""
    network = SuperPoint(SuperPointConfig(descriptor_dim=descriptor_dim, normalisation=normalisation))
    if normalisation == "after_relu":
        start_detector(network)
    return network


def drawings(kinds: list[str], size: tuple[int, int], generator: Generator) -> tuple[Tensor, list[Tensor]]:
    """A drawing of each kind: (B, 1, H, W) pictures in [0, 1], and for each its (N, 2) corners (x, y)."""
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    drawn: list[Drawing] = [draw_shape(kind, size, rng) for kind in kinds]
    images = torch.from_numpy(np.stack([drawing.pixels for drawing in drawn]))[:, None]
    return images, [torch.from_numpy(drawing.corners.astype(np.float32)) for drawing in drawn]


def _padded(corners: list[Tensor]) -> Tensor:
    """(B, N, 2): as many rows as the longest has, NaN beyond each one's own."""
    longest = max(len(c) for c in corners)
    padded = torch.full((len(corners), longest, 2), torch.nan)
    for row, points in zip(padded, corners, strict=True):
        row[: len(points)] = points
    return padded
