"""A folder of photographs, decoded once to square pictures in one memory-mapped file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiepoint.images import SUFFIXES, Image, ImageError, gray_view, read_image, rgb_view, write_atomically


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """side_px: side of the stored squares; colour: three channels (RGB) in place of one (grey)."""

    side_px: int = 320
    colour: bool = False


@dataclass(frozen=True, eq=False)
class Photographs:
    """The photographs of a folder as squares: short side resized to the square's, the middle kept.

    names: files below the folder, in order; pixels: (N, side, side, channels) uint8, memory-mapped.
    fingerprint: changes with any file's name, length or date, and with the configuration.
    """

    names: list[str]
    pixels: NDArray[np.uint8]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def side_px(self) -> int:
        return int(self.pixels.shape[1])

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """(B, channels, side, side) float32 in [0, 1]."""
        chosen = torch.from_numpy(self.pixels[indices.numpy()])
        return chosen.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255

    def subset(self, rows: slice) -> Photographs:
        """Some of them; still memory-mapped, under the same fingerprint with the rows noted."""
        return Photographs(self.names[rows], self.pixels[rows], f"{self.fingerprint}[{rows.start}:{rows.stop}]")


def open_photographs(folder: Path, store: Path, config: StoreConfig) -> Photographs:
    """The photographs below `folder`, decoded into `store` now unless that was done before.

    Unreadable files are left out; the manifest beside the pixels names them with the reason.
    Raises ValueError when the folder holds no readable photograph.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    fingerprint = _fingerprint(folder, files, config)
    manifest, pixels = store / f"{fingerprint}.json", store / f"{fingerprint}.npy"
    if not manifest.exists():
        _decode(folder, files, config, manifest, pixels)
    names = json.loads(manifest.read_text())["names"]
    if not names:
        raise ValueError(f"{folder}: expected photographs ({', '.join(sorted(SUFFIXES))}), found none readable")
    return Photographs(names, np.load(pixels, mmap_mode="r")[: len(names)], fingerprint)


def squared(image: Image, config: StoreConfig) -> NDArray[np.uint8]:
    """(side, side, channels): the middle square of `image`, resized."""
    view = rgb_view(image) if config.colour else gray_view(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = view[top : top + side, left : left + side]
    shrinks = side > config.side_px
    resized = cv2.resize(square, (config.side_px,) * 2, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized.reshape(config.side_px, config.side_px, -1), np.uint8)


def _fingerprint(folder: Path, files: list[Path], config: StoreConfig) -> str:
    lines = [json.dumps(asdict(config))]
    for file in files:
        stat = file.stat()
        lines.append(f"{file.relative_to(folder).as_posix()} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _decode(folder: Path, files: list[Path], config: StoreConfig, manifest: Path, pixels: Path) -> None:
    """Write the pixels, then the manifest, whose presence says that the pixels are whole."""
    manifest.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(files), config.side_px, config.side_px, 3 if config.colour else 1)
    partial = pixels.with_suffix(f".{os.getpid()}.partial.npy")  # several processes may be at it
    names: list[str] = []
    left_out: dict[str, str] = {}
    if files:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        for file in files:
            name = file.relative_to(folder).as_posix()
            try:
                array[len(names)] = squared(read_image(file), config)
            except ImageError as error:
                left_out[name] = str(error)
            else:
                names.append(name)
        array.flush()
        os.replace(partial, pixels)
    write_atomically(manifest, json.dumps({"config": asdict(config), "names": names, "left_out": left_out}))
