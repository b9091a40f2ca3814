"""Changes of light and of the camera, on batches of pictures: seeded, on any device.

Parameters are drawn on the CPU, one for each picture, so that a seed means the same on every device; noise
fields are drawn there too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class PhotometricConfig:
    """Greatest strength of each change; 0 leaves it out. Grey levels are shares of the full range.

    contrast: factor between 1 / (1 + c) and 1 + c about the picture's mean.
    brightness: shift within +- this.
    gamma: exponent between 1 / (1 + g) and 1 + g.
    shade: a smooth field of light added, within +- this.
    blur_px: standard deviation of a Gaussian blur.
    motion_px: length of a straight motion blur.
    noise: standard deviation of Gaussian noise.
    impulse: share of pixels turned black or white.
    compression: coarsest quantisation step of the 8 x 8 cosine transform, as JPEG's.
    patches: number of flat rectangles that cover part of the picture.
    """

    contrast: float = 0.6
    brightness: float = 0.2
    gamma: float = 0.5
    shade: float = 0.3
    blur_px: float = 1.2
    motion_px: float = 3.0
    noise: float = 0.04
    impulse: float = 0.002
    compression: float = 0.15
    patches: int = 0


def disturbed(images: Tensor, config: PhotometricConfig, generator: Generator) -> Tensor:
    """(B, C, H, W) in [0, 1] as another camera in other light might have taken them."""
    draw = _Draw(images, generator)
    if config.patches:
        images = _patched(images, config.patches, draw)
    if config.shade:
        images = images + _smooth_field(images, draw) * draw.within(config.shade)
    if config.gamma:
        images = images.clamp(1e-4, 1) ** draw.factor(1 + config.gamma)
    if config.contrast or config.brightness:
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * draw.factor(1 + config.contrast) + mean + draw.within(config.brightness)
    if config.blur_px or config.motion_px:
        images = _blurred(images, config, draw)
    if config.noise:
        images = images + draw.normal() * draw.upto(config.noise)
    if config.compression:
        images = _compressed(images, draw.upto(config.compression) * draw.chance(0.5))
    if config.impulse:
        field = draw.uniform()
        share = draw.upto(config.impulse) / 2
        images = torch.where(field < share, 0.0, torch.where(field > 1 - share, 1.0, images))
    return images.clamp(0, 1)


class _Draw:
    """Random numbers for a batch: (B, 1, 1, 1) parameters and whole fields."""

    def __init__(self, images: Tensor, generator: Generator) -> None:
        self.shape, self.device, self.generator = images.shape, images.device, generator

    def share(self) -> Tensor:
        return torch.rand(self.shape[0], 1, 1, 1, generator=self.generator).to(self.device)

    def within(self, limit: float) -> Tensor:
        return (2 * self.share() - 1) * limit

    def upto(self, limit: float) -> Tensor:
        return self.share() * limit

    def factor(self, limit: float) -> Tensor:
        """Between 1 / limit and limit, uniform in its logarithm."""
        return torch.exp(self.within(math.log(limit)))

    def chance(self, probability: float) -> Tensor:
        return (self.share() < probability).float()

    def uniform(self) -> Tensor:
        batch, _, height, width = self.shape
        return torch.rand(batch, 1, height, width, generator=self.generator).to(self.device)

    def normal(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator).to(self.device)

    def coarse(self, side: int) -> Tensor:
        """(B, 1, side, side) in [-1, 1]."""
        return (torch.rand(self.shape[0], 1, side, side, generator=self.generator) * 2 - 1).to(self.device)


def _smooth_field(images: Tensor, draw: _Draw) -> Tensor:
    """(B, 1, H, W) in [-1, 1], varying over a third of the picture."""
    return F.interpolate(draw.coarse(4), images.shape[2:], mode="bicubic", align_corners=True)


def _patched(images: Tensor, count: int, draw: _Draw) -> Tensor:
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device)[None, None, :, None] / height
    x = torch.arange(width, device=images.device)[None, None, None, :] / width
    for _ in range(count):
        top, left = draw.share(), draw.share()
        covered = (y >= top) & (y < top + draw.upto(0.25)) & (x >= left) & (x < left + draw.upto(0.25))
        images = torch.where(covered, draw.share(), images)
    return images


def _blurred(images: Tensor, config: PhotometricConfig, draw: _Draw) -> Tensor:
    """Gaussian and motion blur by one kernel for each picture."""
    reach = max(1, math.ceil(2.5 * config.blur_px), math.ceil(config.motion_px / 2 + 1))
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    y, x = offsets[:, None], offsets[None, :]
    sigma = draw.upto(config.blur_px)[:, 0].clamp(min=0.05)
    gaussian = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    angle, length = draw.within(math.pi)[:, 0], draw.upto(config.motion_px)[:, 0] * draw.chance(0.3)[:, 0]
    along = x * angle.cos() + y * angle.sin()
    across = -x * angle.sin() + y * angle.cos()
    line = (1 - across.abs()).clamp(min=0) * (length / 2 + 0.5 - along.abs()).clamp(0, 1)
    kernels = _convolved(gaussian / gaussian.sum((1, 2), keepdim=True), line / line.sum((1, 2), keepdim=True))
    batch, channels, height, width = images.shape
    stacked = F.pad(images, (reach,) * 4, mode="replicate").transpose(0, 1)  # a picture is a group
    return F.conv2d(stacked, kernels[:, None], groups=batch).transpose(0, 1).reshape(batch, channels, height, width)


def _convolved(kernels: Tensor, others: Tensor) -> Tensor:
    """(B, K, K) kernels convolved one by one, cut to the same size and to sum 1."""
    reach = kernels.shape[-1] // 2
    padded = F.pad(kernels, (reach,) * 4)[None]
    both = F.conv2d(padded, others.flip(1, 2)[:, None], groups=len(kernels))[0]
    return both / both.sum((1, 2), keepdim=True)


def _compressed(images: Tensor, step: Tensor) -> Tensor:
    """Quantise the 8 x 8 cosine transform, coarser for higher frequencies, as JPEG does.

    step: (B, 1, 1, 1) quantisation step at the highest frequency; 0 changes nothing. Rows and columns beyond
    the last whole block stay as they are.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // 8, width // 8
    whole = images[:, :, : 8 * rows, : 8 * columns]
    blocks = whole.reshape(batch, channels, rows, 8, columns, 8).transpose(3, 4)
    basis = _cosine_basis(images.device)
    spectrum = basis @ blocks @ basis.T
    frequency = torch.arange(8, device=images.device)
    steps = step[..., None, None] * (1 + frequency[:, None] + frequency[None, :]) / 15
    coarse = torch.where(steps > 0, (spectrum / steps.clamp(min=1e-6)).round() * steps, spectrum)
    restored = (basis.T @ coarse @ basis).transpose(3, 4).reshape(whole.shape)
    result = images.clone()
    result[:, :, : 8 * rows, : 8 * columns] = restored
    return result


def _cosine_basis(device: torch.device) -> Tensor:
    """(8, 8) orthonormal DCT-II: row k holds frequency k."""
    n = torch.arange(8, device=device, dtype=torch.float32)
    basis = torch.cos(math.pi / 8 * (n[None, :] + 0.5) * n[:, None]) / 2
    basis[0] /= math.sqrt(2)
    return basis


def partly_gray(images: Tensor, share: float, generator: Generator) -> Tensor:
    """(B, 3, H, W), each image without its colour by the chance `share`."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < share
    luma = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return torch.where(chosen.to(images.device), (images * luma).sum(1, keepdim=True), images)
