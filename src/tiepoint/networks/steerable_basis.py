"""Bases of the convolution kernels that commute with the rotations C_N of the plane.

C_N holds the rotations by 2 pi k / N. A regular field is N channels, which the group permutes cyclically; a
trivial field is one channel, which it leaves alone. A kernel between fields is equivariant when
kernel(R_g x) = rho_out(g) kernel(x) rho_in(g)^-1; both parametrisations here span all such kernels whose angular
frequencies stay below a cut-off on each ring (Weiler, Cesa: General E(2)-equivariant steerable CNNs, 2019).

Angles are counter-clockwise as displayed, y upwards, from the x axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Field = Literal["trivial", "regular"]
Parametrisation = Literal["ring_fourier", "e2cnn"]

_ORIGIN = 1e-9  # radii below it are the kernel's centre
_NEGLIGIBLE = 1e-6  # an element of a smaller norm has vanished by sampling


@dataclass(frozen=True, kw_only=True)
class SteerableKernels:
    """The equivariant kernels of one network.

    order: N, the number of rotations.
    cutoff_slope: the highest angular frequency on a ring, per pixel of its radius.
    ring_width_px: standard deviation of every ring's Gaussian profile; None is the usual rule: 0.6, the
        outermost ring 0.4, the centre 0.005.
    parametrisation: "ring_fourier", a Fourier series on each ring for every planar filter, or "e2cnn", the same
        space in e2cnn 0.2.3's order and scaling, which published coefficients are written in.

    Raises ValueError for an order below 2.
    """

    order: int
    cutoff_slope: float = 3.0
    ring_width_px: float | None = None
    parametrisation: Parametrisation = "ring_fourier"

    def __post_init__(self) -> None:
        if self.order < 2:
            raise ValueError(f"order: expected at least 2 rotations, got {self.order}")

    def channels(self, field: Field) -> int:
        return self.order if field == "regular" else 1

    def basis(self, kernel_size: int, source: Field, target: Field) -> NDArray[np.float32]:
        """The kernels from one `source` field to one `target` field, (elements, target channels, source
        channels, kernel_size^2), pixels by rows.

        Raises ValueError for an even kernel size, and for ring_fourier from or to what it is not defined for.
        """
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        build = _ring_fourier_basis if self.parametrisation == "ring_fourier" else _e2cnn_basis
        return build(self, kernel_size, source, target).copy()


@dataclass(frozen=True)
class _Ring:
    """profile: (pixels,) radial weight; highest: the highest angular frequency it carries."""

    profile: NDArray[np.float64]
    highest: int


def _polar_grid(kernel_size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Radius and angle of every pixel, by rows, each (kernel_size^2,)."""
    centre = (kernel_size - 1) / 2
    rows, columns = np.indices((kernel_size, kernel_size)).reshape(2, -1)
    x, y = columns - centre, centre - rows
    return np.hypot(x, y), np.arctan2(y, x)


def _rings(kernels: SteerableKernels, kernel_size: int) -> list[_Ring]:
    radius, _ = _polar_grid(kernel_size)
    ring_radii = np.linspace(0, (kernel_size - 1) // 2, math.ceil(kernel_size / 2))
    rings = []
    for i, ring_radius in enumerate(ring_radii):
        width = kernels.ring_width_px
        if width is None:
            width = 0.005 if ring_radius == 0 else 0.4 if i == len(ring_radii) - 1 else 0.6
        profile = np.exp(-((radius - ring_radius) ** 2) / (2 * width**2))
        rings.append(_Ring(profile, math.floor(kernels.cutoff_slope * ring_radius)))
    return rings


def _harmonic(frequency: int, phase: NDArray[np.float64] | float, kernel_size: int) -> NDArray[np.float64]:
    """cos(frequency * angle + phase) at every pixel; at the centre, which has no angle, only frequency 0."""
    radius, angle = _polar_grid(kernel_size)
    return np.where((radius < _ORIGIN) & (frequency != 0), 0.0, np.cos(frequency * angle + phase))


# ---------------------------------------------------------------- ring and Fourier series


@lru_cache(maxsize=32)
def _ring_fourier_basis(
    kernels: SteerableKernels, kernel_size: int, source: Field, target: Field
) -> NDArray[np.float32]:
    """kernel[g, h](x) = psi_((h - g) mod N)(R_g^-1 x), each psi a Fourier series on every ring.

    A filter turned by any angle is a change of phase of its series. The elements of one ring and frequency are
    divided by one number, so that each has norm 1 on average over the phases.
    """
    if target == "trivial":
        raise ValueError("ring_fourier: expected regular target fields, got trivial ones")
    order = kernels.order
    turns = 2 * np.pi * np.arange(order)[:, None] / order
    waves = []  # one planar filter each, as the N rotations see it: (N, pixels)
    for ring in _rings(kernels, kernel_size):
        for frequency in range(ring.highest + 1):
            phases = (0.0,) if frequency == 0 else (0.0, -np.pi / 2)
            turned = [
                ring.profile * _harmonic(frequency, phase - frequency * turns, kernel_size)
                for phase in phases
            ]
            power = sum(float((wave[0] ** 2).sum()) for wave in turned) / len(turned)
            waves += [wave / math.sqrt(power) for wave in turned]
    planar = np.stack(waves)  # (waves, N, pixels)
    if source == "trivial":
        return planar[:, :, None].astype(np.float32)
    element = np.zeros((order, len(planar), order, order, kernel_size**2))
    g = np.arange(order)
    for shift in range(order):
        element[shift][:, g, (g + shift) % order] = planar
    return element.reshape(-1, order, order, kernel_size**2).astype(np.float32)


# ---------------------------------------------------------------- e2cnn's own order


@dataclass(frozen=True)
class _Irrep:
    """A real irreducible representation of C_N: its frequency, and its (N, 1 or 2) columns of the change of
    basis that splits the field into such."""

    frequency: int
    columns: NDArray[np.float64]

    @property
    def size(self) -> int:
        return int(self.columns.shape[1])


def _irreps(order: int, field: Field) -> list[_Irrep]:
    if field == "trivial":
        return [_Irrep(0, np.ones((1, 1)))]
    turns = 2 * np.pi * np.arange(order) / order
    irreps = []
    for frequency in range(order // 2 + 1):
        cos, sin = np.cos(frequency * turns), np.sin(frequency * turns)
        if frequency == 0 or 2 * frequency == order:
            irreps.append(_Irrep(frequency, cos[:, None] / math.sqrt(order)))
        else:
            irreps.append(_Irrep(frequency, np.stack([cos, sin], axis=1) * math.sqrt(2 / order)))
    return irreps


@lru_cache(maxsize=32)
def _e2cnn_basis(
    kernels: SteerableKernels, kernel_size: int, source: Field, target: Field
) -> NDArray[np.float32]:
    """The circular harmonics that intertwine every pair of irreps, in e2cnn 0.2.3's order and scaling."""
    rings = _rings(kernels, kernel_size)
    highest = max(ring.highest for ring in rings)
    elements = []
    for ring in rings:
        for irrep_in in _irreps(kernels.order, source):
            for irrep_out in _irreps(kernels.order, target):
                for frequency, block in _blocks(irrep_in, irrep_out, kernels.order, highest, kernel_size):
                    kernel = ring.profile * np.einsum(
                        "gm,mnp,hn->ghp", irrep_out.columns, block, irrep_in.columns
                    )
                    norm = math.sqrt(float((kernel**2).sum()) / irrep_out.size)
                    if abs(frequency) <= ring.highest and norm > _NEGLIGIBLE:
                        elements.append(kernel / norm)
    return np.stack(elements).astype(np.float32)


def _blocks(
    irrep_in: _Irrep, irrep_out: _Irrep, order: int, highest: int, kernel_size: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Frequency, at most `highest`, and values (out, in, pixels) of every harmonic from one irrep to another."""
    n, m = irrep_in.frequency, irrep_out.frequency
    both_pairs = irrep_in.size == irrep_out.size == 2
    both_single = irrep_in.size == irrep_out.size == 1
    for phase in (0.0, np.pi / 2):
        for mirrored in (False, True) if both_pairs else (False,):
            sums = mirrored or irrep_in.size != irrep_out.size
            base = m + n if sums else m - n
            lowest = -highest + (base + highest) % order
            for frequency in range(lowest, highest + 1, order):
                if both_single and (frequency < 0 or (frequency == 0 and phase > 0)):
                    continue
                cos = _harmonic(frequency, phase, kernel_size)
                sin = _harmonic(frequency, phase - np.pi / 2, kernel_size)
                if both_pairs:
                    sign = -1 if mirrored else 1
                    yield frequency, np.array([[cos, -sign * sin], [sin, sign * cos]])
                elif both_single:
                    yield frequency, cos[None, None]
                else:
                    pair = np.stack([cos, sin])
                    yield frequency, pair[None] if irrep_out.size == 1 else pair[:, None]
