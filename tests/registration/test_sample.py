"""The sample of `make demo`: drawn the same every time, registered to its known truth, the stranger refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tiepoint.geometry import Transform
from tiepoint.images import read_image
from tiepoint.matchers import matcher
from tiepoint.registration.prediction import common_corners
from tiepoint.registration.register import Registrar

SCRIPT = Path(__file__).parents[2] / "examples" / "make_sample.py"


def make_sample(folder):
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def registrar(sample):
    return Registrar(read_image(sample / "template.png"), matcher("sift"))


def truth_of(sample, name):
    matrix = json.loads((sample / "truth.json").read_text())["H_template_from_source"][name]
    return None if matrix is None else Transform(np.array(matrix))


RELATED = [
    "01_straight.jpg",
    "02_turned.jpg",
    "03_upside_down.jpg",
    "04_far_away.jpg",
    "05_tilted.jpg",
    "06_camera_on_its_side.jpg",
    "07_16_bit.tif",
    "08_parts_missing.png",
    "09_blurred_and_dark.jpg",
    "10_close_up.jpg",
]


@pytest.mark.parametrize("name", RELATED)
def test_each_photograph_of_the_board_is_accepted_to_a_fraction_of_a_pixel(sample, registrar, name):
    source = read_image(sample / "photographs" / name)
    truth = truth_of(sample, name)
    found = registrar.register(source)
    assert found.accepted, found.verdict.reasons
    corners = common_corners(truth, source.size, registrar.template.size)
    assert found.transform.residuals(truth.inverse()(corners), corners).max() < 0.3


def test_the_stranger_is_refused(sample, registrar):
    found = registrar.register(read_image(sample / "photographs" / "11_something_else.jpg"))
    assert not found.accepted
    assert found.verdict.reasons


def test_the_truth_names_every_photograph_and_nothing_else(sample):
    names = set(json.loads((sample / "truth.json").read_text())["H_template_from_source"])
    assert names == {path.name for path in (sample / "photographs").iterdir()}
    assert names == {*RELATED, "11_something_else.jpg"}


def test_the_sample_has_the_kinds_of_file_it_promises(sample):
    deep = read_image(sample / "photographs" / "07_16_bit.tif")
    assert deep.pixels.dtype == np.uint16
    stored = (sample / "photographs" / "06_camera_on_its_side.jpg").read_bytes()
    assert b"Exif" in stored[:64]
    assert read_image(sample / "photographs" / "06_camera_on_its_side.jpg").size == (1080, 1440)


def test_the_same_files_every_time(sample, tmp_path):
    again = make_sample(tmp_path)
    for path in sample.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(sample)).read_bytes() == path.read_bytes(), path.name
