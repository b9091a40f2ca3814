"""Read and write photographs: orientation, bit depth, colour, resizing with its exact coordinate map."""

from tiepoint.images.image import Image, Metadata
from tiepoint.images.resize import ResizeMap, fitted_size, resize
from tiepoint.images.views import gray_view, rgb_view

__all__ = ["Image", "Metadata", "ResizeMap", "fitted_size", "gray_view", "resize", "rgb_view"]
