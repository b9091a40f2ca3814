"""Pictures on disk for the registration tests."""

import numpy as np
import pytest
from drawings import TRUTHS, drawn, seen

from tiepoint.images import Image, write_image


@pytest.fixture(scope="session")
def template_pixels():
    return drawn()


@pytest.fixture
def folder(tmp_path, template_pixels):
    """template.png, four sources of different kinds, one unrelated, one blank, one broken."""
    write_image(tmp_path / "template.png", Image(template_pixels))
    sources = tmp_path / "sources"
    names = ["a.png", "b.jpg", "c.tif", "d.bmp"]
    for number, (name, truth) in enumerate(zip(names, TRUTHS, strict=True)):
        pixels = seen(template_pixels, truth, seed=number)
        if name == "c.tif":
            pixels = pixels.astype(np.uint16) * 200 + 1000
        write_image(sources / name, Image(pixels))
    write_image(sources / "other.png", Image(drawn(seed=77)))
    write_image(sources / "blank.png", Image(np.full((480, 640, 3), 90, np.uint8)))
    (sources / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return tmp_path
