"""Working sizes."""

import pytest

from tiepoint.images import fitted_size


@pytest.mark.parametrize(
    ("size", "max_size_px", "max_enlargement", "fitted"),
    [
        ((1280, 960), 640, 2.0, (640, 480)),
        ((640, 480), 640, 2.0, (640, 480)),
        ((400, 300), 640, 2.0, (640, 480)),
        ((320, 240), 1000, 2.0, (640, 480)),
        ((320, 240), 1000, 1.0, (320, 240)),
        ((320, 240), None, 2.0, (320, 240)),
        ((3000, 1), 300, 1.0, (300, 1)),
    ],
)
def test_fitted_size(size, max_size_px, max_enlargement, fitted):
    assert fitted_size(size, max_size_px, max_enlargement) == fitted
