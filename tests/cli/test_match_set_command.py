"""`tiepoint match-set` as a user types it."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from tiepoint.images import Image, write_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """set/: three views of one texture and a file that is no picture."""
    path = tmp_path_factory.mktemp("cli")
    texture = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    texture = cv2.resize(texture, (400, 300), interpolation=cv2.INTER_CUBIC)
    for i in range(3):
        write_image(path / "set" / f"{i}.png", Image(np.ascontiguousarray(texture[:, 10 * i : 10 * i + 360])))
    (path / "set" / "broken.jpg").write_bytes(b"no picture")
    (path / "pairs.txt").write_text("0.png 1.png\n1.png none.png\n")
    return path


def tiepoint(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "tiepoint.cli.main", "match-set", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_a_set_for_colmap_and_hloc(folder):
    pycolmap = pytest.importorskip("pycolmap")
    done = tiepoint("set", "--out", "out", "--format", "colmap", "--format", "hloc", cwd=folder)
    assert done.returncode == 2, done.stderr  # for the broken one
    assert "broken.jpg: is not an image" in done.stderr
    assert "3 photographs, 3 pairs" in done.stdout
    assert "next: colmap mapper --database_path out/database.db --image_path set" in done.stdout
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "database.db",
        "features.h5",
        "matches",
        "matches.h5",
        "pairs.txt",
    ]
    database = pycolmap.Database.open(folder / "out" / "database.db")
    assert database.num_matched_image_pairs() == 3
    assert database.num_keypoints() > 300
    database.close()


def test_without_a_pair_that_holds_there_is_nothing_to_map(folder):
    pytest.importorskip("pycolmap")
    for name in ("a.png", "b.png"):
        write_image(folder / "blank" / name, Image(np.zeros((48, 64), np.uint8)))
    done = tiepoint("blank", "--out", "nothing", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "0 pairs hold geometrically" in done.stdout
    assert "next" not in done.stdout


def test_a_window_leaves_out_the_rest(folder):
    pytest.importorskip("h5py")
    done = tiepoint("set", "--out", "film", "--window", "1", "--format", "hloc", cwd=folder)
    assert "3 photographs, 2 pairs" in done.stdout


def test_those_most_alike_are_matched(folder):
    pytest.importorskip("h5py")
    done = tiepoint("set", "--out", "alike", "--most-alike", "1", "--format", "hloc", cwd=folder)
    assert done.returncode == 2
    assert "broken.jpg: is not an image" in done.stderr
    assert "3 photographs, 2 pairs" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "--out", "x"), "'none' does not exist"),
        (("out_of_nothing", "--out", "x"), "expected at least two photographs, found 0"),
        (("damaged", "--out", "x"), "there is no pair of photographs to match"),
        (("set", "--out", "x", "--merge-px", "-1"), "-1.0 is not in the range"),
        (("set", "--out", "x", "--seed", "-1"), "-1 is not in the range"),
        (("set", "--out", "x", "--method", "surf"), "there are: sift"),
        (("set", "--out", "x", "--pairs", "pairs.txt"), "pairs.txt, line 2: expected two photographs' names"),
        (("set", "--out", "x", "--pairs", "pairs.txt", "--window", "2"), "expected one of them"),
    ],
)
def test_bad_input_is_told_in_a_line(folder, arguments, message):
    pytest.importorskip("pycolmap")
    for name in ("out_of_nothing", "damaged"):
        (folder / name).mkdir(exist_ok=True)
    for name in ("a.jpg", "b.jpg"):
        (folder / "damaged" / name).write_bytes(b"")
    done = tiepoint(*arguments, cwd=folder)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "x").exists()
