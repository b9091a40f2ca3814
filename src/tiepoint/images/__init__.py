"""Read and write photographs: orientation, bit depth, colour, resizing with its exact coordinate map."""

from tiepoint.images.atomic import open_atomically, write_atomically
from tiepoint.images.gray_levels import GrayLevel, gray_levels
from tiepoint.images.image import Image, Metadata
from tiepoint.images.read import DEFAULT_MAX_PIXELS, SUFFIXES, FileFrame, ImageError, read_file_frame, read_image
from tiepoint.images.resize import ResizeMap, fitted_size, resize
from tiepoint.images.views import gray_view, rgb_view
from tiepoint.images.write import encode_image, suffix_for, write_image

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "SUFFIXES",
    "FileFrame",
    "GrayLevel",
    "Image",
    "ImageError",
    "Metadata",
    "ResizeMap",
    "encode_image",
    "fitted_size",
    "gray_levels",
    "gray_view",
    "open_atomically",
    "read_file_frame",
    "read_image",
    "resize",
    "rgb_view",
    "suffix_for",
    "write_atomically",
    "write_image",
]
