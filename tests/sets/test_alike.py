"""Photographs of one thing are paired, and others left alone."""

import cv2
import numpy as np

from tiepoint.images import Image, write_image
from tiepoint.sets.alike import alike_pairs


def test_views_of_one_thing_are_paired(tmp_path):
    for thing in range(2):
        texture = np.random.default_rng(thing).integers(0, 256, (60, 90), dtype=np.uint8)
        texture = cv2.resize(texture, (540, 360), interpolation=cv2.INTER_CUBIC)
        for view, start in enumerate((0, 20, 120)):
            window = np.ascontiguousarray(texture[:, start : start + 400])
            write_image(tmp_path / f"{thing}{view}.png", Image(window))
    write_image(tmp_path / "blank.png", Image(np.zeros((9, 9), np.uint8)))
    (tmp_path / "broken.png").write_bytes(b"")
    names = sorted(path.name for path in tmp_path.iterdir())
    done = []
    pairs, left_out = alike_pairs(tmp_path, names, 1, max_pixels=10**6, progress=done.append)
    # The third view shares more with the second than with the first.
    assert pairs == [("00.png", "01.png"), ("01.png", "02.png"), ("10.png", "11.png"), ("11.png", "12.png")]
    assert left_out.keys() == {"blank.png", "broken.png"}
    assert "broken.png: is empty" in left_out["broken.png"]
    assert "blank.png: shares next to nothing" in left_out["blank.png"]
    assert sum(done) == 28
    assert len(alike_pairs(tmp_path, names, 9, max_pixels=10**6)[0]) == 6
