"""`tiepoint match`, `register` and `apply` as a user types them: answers, exit codes, clear errors."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from tiepoint.cli.apply import _Records
from tiepoint.cli.register import default_workers
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
        (("match", "template.png", "shots/shot0.png", "--max-pixels", "999"), "--max-pixels"),
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
    assert "--four-way" not in done.stderr
    upright = tiepoint("match", "template.png", "blank.png", "--method", "superpoint", cwd=folder)
    assert upright.returncode == 2
    assert "--four-way" in upright.stderr


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


def test_out_may_be_the_folder_above_the_sources(folder, tmp_path):
    shutil.copy(folder / "template.png", tmp_path)
    shutil.copytree(folder / "shots", tmp_path / "shots")
    for _ in range(2):  # the second time with what the first wrote beside the sources
        done = tiepoint("register", "template.png", ".", "--method", "sift", "--out", ".", cwd=tmp_path)
        assert "2 accepted, 1 refused of 3" in done.stdout, done.stderr
    shots = ("shots/shot0.png", "shots/shot1.png")
    before = (tmp_path / shots[0]).read_bytes()
    applied = tiepoint("apply", "registrations.jsonl", *shots, "--out", ".", cwd=tmp_path)
    assert "2 of 2 images warped" in applied.stdout, applied.stderr
    refused = tiepoint("apply", "registrations.jsonl", shots[0], "--out", "shots", cwd=tmp_path)
    assert refused.returncode == 2
    assert "would replace the input" in refused.stdout
    assert (tmp_path / shots[0]).read_bytes() == before
    nothing = tiepoint("apply", "registrations.jsonl", "missing", "--out", ".", cwd=tmp_path)
    assert nothing.returncode == 1


def test_apply_to_label_maps_and_to_names_that_only_begin_alike(tmp_path):
    turn = Transform.from_parameters(rotation_deg=10, centre=(60, 40))
    record = {"source": "shot0.png", "status": "accepted", "source_size": [120, 80], "template_size": [120, 80]}
    record |= {"matrix_template_from_source": turn.matrix.tolist(), "model": turn.kind}
    (tmp_path / "run.jsonl").write_text(json.dumps(record))
    labels = np.zeros((80, 120), np.uint8)
    labels[20:60, 30:90] = 7
    write_image(tmp_path / "in" / "shot0-labels.png", Image(labels))
    write_image(tmp_path / "in" / "shot01.png", Image(labels))
    for _ in range(2):  # what is warped already is not warped again
        applied = tiepoint("apply", "run.jsonl", "in", "--out", "in/warped", "--nearest", cwd=tmp_path)
        assert "shot01.png: no source of that name" in applied.stdout
        assert "1 of 2 images warped" in applied.stdout
    warped = read_image(tmp_path / "in" / "warped" / "shot0-labels.png").pixels
    assert set(np.unique(warped)) == {0, 7}
    assert warped[40, 60] == 7


def test_the_source_of_an_image_by_path_then_by_the_longest_beginning():
    records = [{"source": f"/shots/{name}"} for name in ("shot1.png", "shot1_b.png", "a/x.png", "b/x.png")]
    found = _Records(records)
    assert found.of(Path("/shots/shot1.png")) is records[0]
    assert found.of(Path("/ir/shot1_ir.tif")) is records[0]
    assert found.of(Path("/ir/shot1_b.ir.tif")) is records[1]
    assert found.of(Path("/ir/shot10.tif")) is None
    assert found.of(Path("/shots/b/x.png")) is records[3]
    with pytest.raises(ValueError, match="several sources"):
        found.of(Path("/ir/x.png"))


def test_a_refused_name_that_is_no_unicode_is_told_and_ends_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/z\xff.png")
    Path(odd).write_bytes(b"no picture")
    shutil.copy(folder / "shots" / "shot0.png", tmp_path / "good.png")
    template = folder / "template.png"
    done = tiepoint("register", template, ".", "--out", "out", "--method", "sift", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "z\N{REPLACEMENT CHARACTER}.png" in done.stdout
    applied = tiepoint("apply", "out/registrations.jsonl", odd, "--out", "ir", cwd=tmp_path)
    assert applied.returncode == 2, applied.stderr


def test_auto_starts_few_workers_where_it_may_load_networks(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert default_workers("sift", 100) == 8
    assert default_workers("loftr", 100) == 1
    assert default_workers("auto", 100) == (8 if find_spec("torch") is None else 4)
