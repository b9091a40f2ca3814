"""Read photographs: upright, in their own number type, with clear errors."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray

from tiepoint.images.image import Image, Metadata

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".heic", ".heif"})
"""File name endings of the formats `read_image` reads, lower case."""

DEFAULT_MAX_PIXELS = 300_000_000
"""A small file can claim a picture that fills the memory; 300 megapixels of 8-bit RGB are 0.9 GB."""

_ORIENTATION_TAG = 0x0112

_OTHER_COLOURS = {
    tifffile.PHOTOMETRIC.SEPARATED: "CMYK",
    tifffile.PHOTOMETRIC.YCBCR: "YCbCr",
    tifffile.PHOTOMETRIC.CIELAB: "CIELab",
    tifffile.PHOTOMETRIC.ICCLAB: "CIELab",
    tifffile.PHOTOMETRIC.ITULAB: "CIELab",
}
_JPEG_COMPRESSIONS = (
    tifffile.COMPRESSION.OJPEG,
    tifffile.COMPRESSION.JPEG,
    tifffile.COMPRESSION.ALT_JPEG,
    tifffile.COMPRESSION.JPEG_LOSSY,
)


class ImageError(ValueError):
    """A file that cannot be read as a photograph; the message names the file, the reason and what to do."""


@dataclass(frozen=True, kw_only=True)
class _Header:
    format: str
    size: tuple[int, int]
    orientation: int
    metadata: Metadata


def read_image(path: Path | str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """The photograph in a JPEG, PNG, TIFF, BMP, WebP or (with the extra `heic`) HEIC file.

    Turned upright by its EXIF orientation; 8-bit, 16-bit or float32 as in the file; palettes become RGB(A),
    grey with alpha becomes RGBA. Of a file with several pages the first is read.

    A resolution or orientation that makes no sense is left out.

    Raises ImageError for a file that is missing, empty, no image, truncated, of an unsupported number type, a TIFF
    in other colours than grey or RGB, or larger than `max_pixels`.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise ImageError(f"{path}: is empty (0 bytes)")
    header = _read_header(path, data)
    width, height = header.size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: has {width} x {height} = {width * height / 1e6:.0f} megapixels, above the limit of "
            f"{max_pixels / 1e6:.0f}; raise the limit (max_pixels, --max-pixels) if the file is trusted"
        )
    pixels = _decode(path, data, header)
    if pixels.shape[:2] != (height, width):
        raise ImageError(f"{path}: its header says {width} x {height}, its data {pixels.shape[1]} x {pixels.shape[0]}")
    upright = np.ascontiguousarray(_turn_upright(pixels, header.orientation))
    return Image(upright, path, _turned_metadata(header))


def _read_header(path: Path, data: bytes) -> _Header:
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _read_tiff_header(path, data)
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc"):
        _register_heif(path)
    try:
        with _unlimited_pillow(), PIL.Image.open(io.BytesIO(data)) as picture:
            if picture.format not in ("JPEG", "MPO", "PNG", "BMP", "WEBP", "HEIF"):
                raise ImageError(f"{path}: is a {picture.format} file; convert it to PNG, TIFF or JPEG")
            return _Header(
                format=str(picture.format),
                size=picture.size,
                orientation=_orientation(picture.getexif().get(_ORIENTATION_TAG, 1)),
                metadata=Metadata(
                    resolution_dpi=_resolution(picture.info.get("dpi")),
                    # Decoding turns CMYK into RGB, of which a profile for inks says nothing.
                    icc_profile=None if picture.mode == "CMYK" else picture.info.get("icc_profile"),
                ),
            )
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError(f"{path}: is not an image tiepoint can read (JPEG, PNG, TIFF, BMP, WebP, HEIC)") from error
    except Exception as error:  # Pillow's plug-ins raise nearly anything on a damaged header
        raise ImageError(f"{path}: is damaged or truncated: {error}") from error


def _read_tiff_header(path: Path, data: bytes) -> _Header:
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            tags = {tag.name: tag.value for tag in page.tags}
            space = _unreadable_colours(page)
            profile = tags.get("InterColorProfile")
            header = _Header(
                format="TIFF",
                size=(int(page.imagewidth), int(page.imagelength)),
                orientation=_orientation(tags.get("Orientation", 1)),
                metadata=Metadata(
                    resolution_dpi=_tiff_dpi(tags), icc_profile=profile if isinstance(profile, bytes) else None
                ),
            )
    except Exception as error:  # tifffile raises nearly anything on a damaged header
        raise ImageError(f"{path}: is damaged or truncated: {error}") from error
    if space is not None:
        raise ImageError(f"{path}: is a {space} TIFF; convert it to RGB")
    return header


def _unreadable_colours(page: Any) -> str | None:
    """The colours of a TIFF page whose channels are no RGB, though they look like it once decoded; else None."""
    if page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression in _JPEG_COMPRESSIONS:
        return None  # the JPEG decoder makes RGB of it
    return _OTHER_COLOURS.get(page.photometric)


def _tiff_dpi(tags: dict[str, Any]) -> tuple[float, float] | None:
    try:
        per_inch = {2: 1.0, 3: 2.54}[tags.get("ResolutionUnit", 2)]
        (xn, xd), (yn, yd) = tags["XResolution"], tags["YResolution"]
        return _resolution((xn / xd * per_inch, yn / yd * per_inch))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # not there, or of a type that makes no sense
        return None


def _resolution(dpi: Any) -> tuple[float, float] | None:
    """Two positive numbers, or None: a tag written carelessly is no reason to refuse the picture."""
    try:
        x, y = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None


def _orientation(value: Any) -> int:
    """The EXIF orientation; 1, upright, where the tag holds no number."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return 1


def _register_heif(path: Path) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(f"{path}: is a HEIC file; to read it: pip install 'tiepoint[heic]'") from error
    pillow_heif.register_heif_opener()


class _unlimited_pillow:
    """Pillow's own limit on size is off inside: the limit is the caller's `max_pixels`, checked before decoding."""

    def __enter__(self) -> None:
        self._limit = PIL.Image.MAX_IMAGE_PIXELS
        PIL.Image.MAX_IMAGE_PIXELS = None

    def __exit__(self, *_: object) -> None:
        PIL.Image.MAX_IMAGE_PIXELS = self._limit


def _decode(path: Path, data: bytes, header: _Header) -> NDArray[Any]:
    decoders = {"HEIF": _decode_heif, "TIFF": _decode_tiff}
    try:
        pixels = decoders.get(header.format, _decode_with_opencv)(data)
    except Exception as error:  # each decoder has exceptions of its own for damaged data
        raise ImageError(f"{path}: is damaged or truncated: {error}") from error
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype not in (np.uint8, np.uint16, np.float32):
        raise ImageError(f"{path}: has {pixels.dtype} pixels; convert it to 8-bit, 16-bit unsigned or float32")
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        raise ImageError(f"{path}: has {pixels.shape[2]} channels; 1, 3 or 4 are supported")
    return pixels


def _decode_with_opencv(data: bytes) -> NDArray[Any]:
    """JPEG, PNG, BMP, WebP: twice as fast as Pillow, and 16-bit colour stays 16-bit."""
    pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("the picture data end too early or make no sense")
    if pixels.ndim == 3:
        code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        cv2.cvtColor(pixels, code, dst=pixels)
    return pixels


def _decode_heif(data: bytes) -> NDArray[Any]:
    with _unlimited_pillow(), PIL.Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


def _decode_tiff(data: bytes) -> NDArray[Any]:
    """The first page of a TIFF as it is meant to look: palette applied, white-is-zero turned round."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        pixels: NDArray[Any] = page.asarray()
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
            return (page.colormap[:, pixels] >> 8).astype(np.uint8).transpose(1, 2, 0)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            # Of floats no value is known to be black: the file's own range is turned round.
            pixels = pixels.min() + pixels.max() - pixels if pixels.dtype.kind == "f" else ~pixels
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim == 3 and pixels.shape[2] == 2:  # grey with alpha
            pixels = pixels[:, :, [0, 0, 0, 1]]
        return pixels.astype(np.float32) if pixels.dtype == np.float64 else pixels


def _turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo EXIF orientation 1 ... 8; any other value is left as it is, as viewers do."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


@dataclass(frozen=True, kw_only=True)
class FileFrame:
    """A picture as it lies in its file, for programs that leave the EXIF orientation alone: COLMAP, hloc.

    size: (width, height) there. orientation: EXIF's, by which `read_image` turns it upright.
    """

    size: tuple[int, int]
    orientation: int

    def points(self, upright: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (N, 2) of the upright picture in the file's own pixels; centres at integers in both."""
        swapped = self.orientation in (5, 6, 7, 8)
        width, height = self.size[::-1] if swapped else self.size
        x, y = upright[:, 0], upright[:, 1]
        if self.orientation in (2, 3, 6, 7):
            x = width - 1 - x
        if self.orientation in (3, 4, 7, 8):
            y = height - 1 - y
        return np.stack([y, x] if swapped else [x, y], axis=1)


def read_file_frame(path: Path) -> FileFrame:
    """Of a file that `read_image` reads. Raises ImageError for one that is no image, OSError for one not there."""
    header = _read_header(path, path.read_bytes())
    return FileFrame(size=header.size, orientation=header.orientation)


def _turned_metadata(header: _Header) -> Metadata:
    dpi = header.metadata.resolution_dpi
    if dpi is not None and header.orientation in (5, 6, 7, 8):
        dpi = (dpi[1], dpi[0])
    return Metadata(resolution_dpi=dpi, icc_profile=header.metadata.icc_profile)
