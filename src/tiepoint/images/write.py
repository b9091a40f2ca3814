"""Write photographs at their own bit depth, whole or not at all."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import tifffile

from tiepoint.images.atomic import write_atomically
from tiepoint.images.image import Image

_DEPTHS = {
    ".jpg": ("uint8",),
    ".jpeg": ("uint8",),
    ".bmp": ("uint8",),
    ".webp": ("uint8",),
    ".png": ("uint8", "uint16"),
    ".tif": ("uint8", "uint16", "float32"),
    ".tiff": ("uint8", "uint16", "float32"),
}

_MAX_SIDE = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
"""The longest side, in pixels, of the formats whose headers have no room for more."""

_MAX_DPI = {".jpg": 65535.0, ".jpeg": 65535.0}
_MAX_DPI_OTHERS = 5e7  # pixels per metre in 31 bits


def write_image(path: Path | str, image: Image) -> None:
    """Write `image` in the format its name ends in: JPEG (quality 95), PNG, TIFF, BMP or WebP (lossless).

    Resolution and colour profile are kept where the format has them. Raises ValueError where the format does
    not exist or cannot hold the image's size, number type or alpha (nothing is converted unasked), OSError where
    the disk does not take it.
    """
    path = Path(path)
    write_atomically(path, encode_image(image, path.suffix))


def encode_image(image: Image, suffix: str) -> bytes:
    """`image` as the bytes of a file whose name ends in `suffix`; see `write_image`."""
    suffix = suffix.lower()
    depth = image.pixels.dtype.name
    if suffix not in _DEPTHS:
        raise ValueError(f"cannot write '{suffix}' files; use one of {', '.join(sorted(_DEPTHS))}")
    if depth not in _DEPTHS[suffix]:
        raise ValueError(f"'{suffix}' files cannot hold {depth} pixels; use {_formats_for(depth)}")
    has_alpha = image.pixels.ndim == 3 and image.pixels.shape[2] == 4
    if has_alpha and suffix in (".jpg", ".jpeg", ".bmp"):
        raise ValueError(f"'{suffix}' files cannot hold transparency; use .png, .tif or .webp")
    if not _holds_size(suffix, image):
        raise ValueError(f"'{suffix}' files cannot be {image.width} x {image.height} pixels; use .png or .tif")
    if suffix in (".tif", ".tiff"):
        return _encode_tiff(image)
    if depth == "uint16":
        return _encode_deep_png(image)
    return _encode_8_bit(image, suffix)


def suffix_for(image: Image) -> str:
    """The ending of a format that holds `image` as it is: its file's own where that does, else .png or .tif."""
    suffix = image.path.suffix.lower() if image.path else ".png"
    has_alpha = image.pixels.ndim == 3 and image.pixels.shape[2] == 4
    depth = image.pixels.dtype.name
    holds_alpha = suffix not in (".jpg", ".jpeg", ".bmp")
    if depth in _DEPTHS.get(suffix, ()) and (holds_alpha or not has_alpha) and _holds_size(suffix, image):
        return suffix
    return ".tif" if depth == "float32" else ".png"


def _holds_size(suffix: str, image: Image) -> bool:
    return max(image.size) <= _MAX_SIDE.get(suffix, max(image.size))


def _resolution_for(suffix: str, image: Image) -> tuple[float, float] | None:
    """The image's resolution where the format has room for it."""
    dpi = image.metadata.resolution_dpi
    largest = _MAX_DPI.get(suffix, _MAX_DPI_OTHERS)
    return dpi if dpi is not None and all(0 < value <= largest for value in dpi) else None


def _formats_for(depth: str) -> str:
    return " or ".join(suffix for suffix, depths in _DEPTHS.items() if depth in depths)


def _encode_8_bit(image: Image, suffix: str) -> bytes:
    settings: dict[str, dict[str, Any]] = {
        ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
        ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
        ".png": {
            "format": "PNG",
            "compress_level": 3,
        },  # level 6 takes three times as long for 2 % fewer bytes
        ".bmp": {"format": "BMP"},
        ".webp": {"format": "WEBP", "lossless": True, "exact": True, "quality": 20, "method": 0},
    }
    options = dict(settings[suffix])
    resolution_dpi = _resolution_for(suffix, image)
    if resolution_dpi is not None:
        options["dpi"] = resolution_dpi
    if image.metadata.icc_profile is not None and suffix != ".bmp":
        options["icc_profile"] = image.metadata.icc_profile
    buffer = io.BytesIO()
    PIL.Image.fromarray(image.pixels).save(buffer, **options)
    return buffer.getvalue()


def _encode_deep_png(image: Image) -> bytes:
    """16-bit PNG, which Pillow cannot write in colour; the metadata chunks go in after the header (PNG 11.3)."""
    pixels = image.pixels
    if pixels.ndim == 3:
        code = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        pixels = cv2.cvtColor(pixels, code)
    _, encoded = cv2.imencode(".png", pixels)
    data = encoded.tobytes()
    chunks = b""
    if image.metadata.icc_profile is not None:
        chunks += _png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(image.metadata.icc_profile))
    resolution_dpi = _resolution_for(".png", image)
    if resolution_dpi is not None:
        per_metre = [round(dpi / 0.0254) for dpi in resolution_dpi]
        chunks += _png_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1))
    header_end = 8 + 25  # signature and the IHDR chunk
    return data[:header_end] + chunks + data[header_end:]


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _encode_tiff(image: Image) -> bytes:
    pixels = image.pixels
    options: dict[str, Any] = {"photometric": "minisblack" if pixels.ndim == 2 else "rgb", "metadata": None}
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        options["extrasamples"] = ["unassalpha"]
    resolution_dpi = _resolution_for(".tif", image)
    if resolution_dpi is not None:
        options["resolution"], options["resolutionunit"] = resolution_dpi, "inch"
    if image.metadata.icc_profile is not None:
        options["iccprofile"] = image.metadata.icc_profile
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.ascontiguousarray(pixels), **options)
    return buffer.getvalue()
