"""The store of photographs: decoded once, damage left out, changes noticed."""

import json

import cv2
import numpy as np
import pytest
import torch

from tiepoint.training.photographs import StoreConfig, open_photographs

CONFIG = StoreConfig(side_px=32)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photographs"
    (folder / "below").mkdir(parents=True)
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = (0, 0, 255)  # red, as OpenCV writes it: just the middle square
    cv2.imwrite(str(folder / "wide.png"), wide)
    cv2.imwrite(str(folder / "below" / "small.png"), np.full((9, 7), 200, np.uint8))
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    return folder


def test_squares_of_the_middle_in_order(folder, tmp_path):
    photographs = open_photographs(folder, tmp_path / "store", CONFIG)
    assert photographs.names == ["below/small.png", "wide.png"]
    assert photographs.pixels.shape == (2, 32, 32, 1)
    batch = photographs.batch(torch.tensor([1, 0, 1]), torch.device("cpu"))
    assert batch.shape == (3, 1, 32, 32)
    torch.testing.assert_close(batch[0], torch.full((1, 32, 32), 76 / 255))  # 0.299 of red
    torch.testing.assert_close(batch[1], torch.full((1, 32, 32), 200 / 255))
    assert torch.equal(batch[0], batch[2])


def test_colour(folder, tmp_path):
    photographs = open_photographs(folder, tmp_path / "store", StoreConfig(side_px=16, colour=True))
    assert photographs.pixels.shape == (2, 16, 16, 3)
    assert photographs.pixels[1, 8, 8].tolist() == [255, 0, 0]


def test_decoded_once_and_again_when_something_changed(folder, tmp_path):
    store = tmp_path / "store"
    first = open_photographs(folder, store, CONFIG)
    (pixels,) = store.glob("*.npy")
    written = pixels.stat().st_mtime_ns
    assert open_photographs(folder, store, CONFIG).fingerprint == first.fingerprint
    assert pixels.stat().st_mtime_ns == written
    (left_out,) = [json.loads(path.read_text())["left_out"] for path in store.glob("*.json")]
    assert list(left_out) == ["broken.jpg"]
    cv2.imwrite(str(folder / "another.png"), np.zeros((8, 8), np.uint8))
    assert len(open_photographs(folder, store, CONFIG)) == 3


def test_a_broken_off_decoding_is_done_again(folder, tmp_path):
    store = tmp_path / "store"
    whole = open_photographs(folder, store, CONFIG)
    (manifest,) = store.glob("*.json")
    manifest.unlink()
    again = open_photographs(folder, store, CONFIG)
    assert np.array_equal(whole.pixels, again.pixels)


def test_a_subset_is_another_set(folder, tmp_path):
    photographs = open_photographs(folder, tmp_path / "store", CONFIG)
    part = photographs.subset(slice(1, None))
    assert part.names == ["wide.png"]
    assert len(part) == 1
    assert part.fingerprint != photographs.fingerprint


def test_no_photographs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="expected photographs"):
        open_photographs(tmp_path, tmp_path / "store", CONFIG)
