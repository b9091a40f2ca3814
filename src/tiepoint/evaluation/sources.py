"""Where the pictures of an evaluation come from: files as they are, resized, turned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Transform, frame_corners
from tiepoint.images import Image, ImageError, read_image, resize

PLAIN_SUFFIXES = frozenset({".ppm", ".pgm"})
"""HPatches' own formats, which `read_image` leaves to data sets."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture as it is given to a method.

    image: what the method sees. frame_from_file: where pixels of the file went in it (resized, turned).
    """

    image: Image
    frame_from_file: Transform


class Source(ABC):
    """Where a picture comes from; equal sources are one picture, encoded once."""

    path: Path

    @abstractmethod
    def read(self) -> Frame:
        """The picture. Raises ImageError."""


@dataclass(frozen=True)
class FileSource(Source):
    """A file as it is, or with its short side resized to `short_side_px`, the long one in proportion, cut."""

    path: Path
    short_side_px: int | None = None

    def read(self) -> Frame:
        image = read_picture(self.path)
        if self.short_side_px is None:
            return Frame(image, Transform.identity())
        factor = self.short_side_px / min(image.size)
        width, height = (max(1, int(side * factor + 1e-9)) for side in image.size)
        pixels, to_resized = resize(image.pixels, (width, height))
        return Frame(Image(pixels, self.path), Transform(to_resized.matrix, "affine"))


@dataclass(frozen=True)
class TurnedSource(Source):
    """A file turned by `angle_deg`, clockwise as displayed, about ((W - 1)/2, (H - 1)/2); bilinear.

    Black outside; on a canvas of the file's size, or one that holds all of it (`expand`).
    """

    path: Path
    angle_deg: float
    expand: bool = False

    def read(self) -> Frame:
        image = read_picture(self.path)
        width, height = image.size
        centre = ((width - 1) / 2, (height - 1) / 2)
        turn = Transform.from_parameters(rotation_deg=self.angle_deg, centre=centre)
        if self.expand:
            # Rounded: a right angle's cosine is 6e-17, which must not add a column.
            extent = np.ceil(np.round(np.ptp(turn(frame_corners(image.size)), axis=0), 6))
            shift = extent / 2 - centre
            turn = Transform.from_parameters(shift_px=(float(shift[0]), float(shift[1]))) @ turn
            width, height = int(extent[0]) + 1, int(extent[1]) + 1
        pixels = cv2.warpPerspective(image.pixels, turn.matrix, (width, height), flags=cv2.INTER_LINEAR)
        return Frame(Image(pixels, self.path), turn)


@dataclass(frozen=True)
class QuarterTurnedSource(Source):
    """A file turned counter-clockwise by `quarter_turns` right angles, as SuperGlue's pairs files ask for."""

    path: Path
    quarter_turns: int

    def read(self) -> Frame:
        image = read_picture(self.path)
        turned, (width, height) = np.eye(3), image.size
        for _ in range(self.quarter_turns % 4):  # (x, y) -> (y, width - 1 - x)
            turned = np.array([[0, 1, 0], [-1, 0, width - 1.0], [0, 0, 1]]) @ turned
            width, height = height, width
        pixels = np.ascontiguousarray(np.rot90(image.pixels, self.quarter_turns))
        return Frame(Image(pixels, self.path), Transform(turned, "affine"))


def read_picture(path: Path) -> Image:
    """Any file `read_image` reads, and PPM or PGM."""
    if path.suffix.lower() not in PLAIN_SUFFIXES:
        return read_image(path)
    pixels: NDArray[Any] | None = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError(f"{path}: cannot be read as PPM or PGM")
    return Image(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels, path)
