from __future__ import annotations

import numpy as np
import pytest

from tiepoint.images import Image
from tiepoint.matchers.dense_warp import DenseWarp
from tiepoint.plot.dense import draw_certainty, draw_samples, draw_warp, draw_warped


def identity(certainty: float = 1.0, side: int = 32) -> DenseWarp:
    centres = (np.arange(side) * 2 + 1) / side - 1
    own = np.stack(np.meshgrid(centres, centres), -1).astype(np.float32)
    both = np.concatenate([own, own], -1)
    return DenseWarp(
        warp=np.concatenate([both, both], 1),
        certainty=np.full((side, 2 * side), certainty, np.float32),
        size0=(64, 48),
        size1=(32, 96),
    )


def images() -> tuple[Image, Image]:
    red, green = np.zeros((48, 64, 3), np.uint8), np.zeros((96, 32, 3), np.uint8)
    red[..., 0], green[..., 1] = 200, 100
    return Image(red), Image(green)


def test_each_half_shows_the_other_image() -> None:
    seen = draw_warped(identity(), *images())
    assert seen.shape == (32, 64, 3)
    assert (seen[:, :32] == (0, 100, 0)).all()
    assert (seen[:, 32:] == (200, 0, 0)).all()


def test_unsure_is_white_or_black() -> None:
    assert (draw_warped(identity(0.0), *images()) == 255).all()
    assert (draw_warp(identity(0.0)) == 255).all()
    assert (draw_certainty(identity(0.0)) == 0).all()
    assert (draw_certainty(identity(1.0)) == 255).all()


def test_warp_is_redder_to_the_right_and_bluer_below() -> None:
    colours = draw_warp(identity()).astype(int)
    assert colours[16, 30, 0] > colours[16, 2, 0] + 100
    assert colours[30, 16, 2] > colours[2, 16, 2] + 100


def test_samples_stand_at_x_and_y_in_both_images() -> None:
    matches = identity().sample(1, seed=0)
    x, y = matches.points0[0].round().astype(int)
    picture = draw_samples(*images(), matches)
    assert picture.shape == (96, 96, 3)
    assert (picture[y, x] != (100, 0, 0)).any()
    x, y = matches.points1[0].round().astype(int)
    assert (picture[y, 64 + x] != (0, 50, 0)).any()


def test_wrong_images_are_refused() -> None:
    image0, image1 = images()
    with pytest.raises(ValueError, match="image0"):
        draw_warped(identity(), image1, image0)
