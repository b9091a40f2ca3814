"""`tiepoint match`, `register` and `apply` as a user types them: answers, exit codes, clear errors."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tiepoint.geometry import Transform, load_matches
from tiepoint.images import Image, read_image, write_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """template.png and shots/: two views of it (with an infrared channel beside), one of something else."""
    path = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    texture = cv2.resize(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), (480, 360), interpolation=cv2.INTER_CUBIC)
    write_image(path / "template.png", Image(texture))
    for number, turn in enumerate((5, 175)):
        matrix = Transform.from_parameters(rotation_deg=turn, centre=(240, 180)).matrix
        view = cv2.warpPerspective(texture, matrix, (480, 360))
        write_image(path / "shots" / f"shot{number}.png", Image(view))
        write_image(path / "infrared" / f"shot{number}_ir.tif", Image(view[..., 0].astype(np.uint16) * 256))
    other = cv2.resize(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), (480, 360), interpolation=cv2.INTER_CUBIC)
    write_image(path / "shots" / "other.png", Image(other))
    return path


def tiepoint(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "tiepoint.cli.main", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )


def test_match_prints_saves_and_draws(folder):
    done = tiepoint("match", "template.png", "shots/shot0.png", "--out", "m.csv", "--plot", "m.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "inliers" in done.stdout
    assert len(load_matches(folder / "m.csv")) > 50
    assert read_image(folder / "m.png").width >= 960
    as_json = tiepoint("match", "template.png", "shots/shot0.png", "--json", "--model", "homography", cwd=folder)
    summary = json.loads(as_json.stdout)
    turn = Transform(np.array(summary["matrix"])).decompose((240, 180)).rotation_deg
    assert turn == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("match", "template.png", "none.png"), "none.png: cannot be read"),
        (("match", "template.png", "shots/shot0.png", "--method", "surf"), "there are: sift"),
        (("match", "template.png", "shots/shot0.png", "--out", "m.txt"), ".npz"),
        (("match", "template.png", "shots/shot0.png", "--method", "superpoint", "--weights", "nope"), "nope"),
        (("register", "none.png", "shots", "--out", "o"), "none.png"),
        (("register", "template.png", "nowhere", "--out", "o"), "nowhere"),
        (("apply", "template.png", "shots", "--out", "o"), "template.png"),
    ],
)
def test_bad_input_ends_in_one_clear_line_and_exit_code_1(folder, arguments, message):
    done = tiepoint(*arguments, cwd=folder)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_model_is_exit_code_2(folder):
    write_image(folder / "blank.png", Image(np.full((100, 100), 9, np.uint8)))
    done = tiepoint("match", "template.png", "blank.png", cwd=folder)
    assert done.returncode == 2
    assert "too few matches" in done.stdout


def test_register_then_apply_to_another_channel(folder):
    done = tiepoint("register", "template.png", "shots", "--out", "out", "--workers", "1", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "2 accepted, 1 refused of 3" in done.stdout
    assert "other.png" in done.stdout
    applied = tiepoint("apply", "out/registrations.jsonl", "infrared", "--out", "ir", cwd=folder)
    assert applied.returncode == 0, applied.stdout
    template = read_image(folder / "template.png").pixels[..., 0].astype(float)
    for number in range(2):
        aligned = read_image(folder / "ir" / f"shot{number}_ir.tif")
        assert aligned.pixels.dtype == np.uint16
        inside = slice(100, 260)
        difference = aligned.pixels[inside, inside] / 256.0 - template[inside, inside]
        assert np.abs(difference).mean() < 3


def test_only_accepted_is_exit_code_0_and_nothing_readable_1(folder):
    good = tiepoint("register", "template.png", "shots/shot0.png", "--out", "good", "--workers", "1", cwd=folder)
    assert good.returncode == 0
    (folder / "broken.png").write_bytes(b"no picture")
    bad = tiepoint("register", "template.png", "broken.png", "--out", "bad", "--workers", "1", cwd=folder)
    assert bad.returncode == 1
    assert "broken.png" in bad.stdout
