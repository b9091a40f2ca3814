"""Homographic adaptation: finds what is there, again after an interruption, and notices other settings."""

import cv2
import numpy as np
import pytest
import torch

from tiepoint.training.label import (
    LabelConfig,
    adapted,
    corner_detector,
    label,
    label_photographs,
    network_detector,
    open_labels,
)
from tiepoint.training.magicpoint import untrained
from tiepoint.training.photographs import Photographs

CONFIG = LabelConfig(side_px=96, views=8, threshold=0.3, max_count=20)
CPU = torch.device("cpu")


def square(side: int = 120) -> np.ndarray:
    picture = np.full((side, side), 60, np.uint8)
    cv2.rectangle(picture, (40, 30), (89, 79), 200, -1)
    return picture


def photographs(count: int = 3) -> Photographs:
    pictures = [np.roll(square(), 3 * i, axis=1) for i in range(count)]
    return Photographs([f"{i}.png" for i in range(count)], np.stack(pictures)[..., None], "three")


def test_the_corners_of_a_square():
    found = label(photographs().batch(torch.tensor([0]), CPU), corner_detector, CONFIG, 0)
    assert len(found) == 4
    for corner in ([40.0, 30.0], [89.0, 30.0], [40.0, 79.0], [89.0, 79.0]):
        assert (found[:, :2] - torch.tensor(corner)).norm(dim=1).min() < 2
    assert (found[:-1, 2] >= found[1:, 2]).all()


def test_the_mean_is_over_the_views_that_see_a_pixel():
    heat = adapted(torch.zeros(1, 1, 96, 96), lambda images: torch.ones(len(images), 96, 96), CONFIG, 0)
    inner = heat[10:-10, 10:-10]
    assert inner.max() <= 1 + 1e-5
    assert inner.min() > 0.98


def test_blank_photographs_have_no_labels():
    assert label(torch.full((1, 1, 120, 120), 0.5), corner_detector, CONFIG, 0).shape == (0, 3)


def test_a_network_can_be_the_detector():
    heat = adapted(torch.rand(1, 1, 96, 96), network_detector(untrained(32).eval()), CONFIG, 0)
    assert heat.shape == (96, 96)
    assert heat.isfinite().all()


def test_interrupted_labelling_goes_on(tmp_path):
    def quiet(done: int, total: int) -> None:
        pass

    whole = label_photographs(photographs(), tmp_path / "whole", corner_detector, "corners", CONFIG, CPU, quiet)
    asked = 0

    def failing(images: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise KeyboardInterrupt
        return corner_detector(images)

    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        label_photographs(photographs(), parts, failing, "corners", CONFIG, CPU, quiet)
    with pytest.raises(ValueError, match="is not finished"):
        open_labels(parts, photographs())
    label_photographs(photographs(), parts, failing, "corners", CONFIG, CPU, quiet)
    assert asked == 4  # the first was not asked for again
    assert np.array_equal(open_labels(parts, photographs()).points, whole.points, equal_nan=True)


def test_labels_of_others_are_refused(tmp_path):
    def run(config: LabelConfig) -> None:
        label_photographs(photographs(1), tmp_path, corner_detector, "corners", config, CPU, lambda *_: None)

    run(CONFIG)
    with pytest.raises(ValueError, match="other photographs or settings"):
        run(LabelConfig(side_px=96, views=9))
    others = Photographs(["a.png"], square()[None, ..., None], "others")
    with pytest.raises(ValueError, match="labels of other photographs"):
        open_labels(tmp_path, others)
