"""The batch runner: same bytes for any number of workers, resumed after any kill, clear about everything."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings

import filelock
import numpy as np
import pytest

from tiepoint.geometry import Transform, frame_corners
from tiepoint.images import Image, ImageError, read_image, write_image
from tiepoint.matchers import MatcherOptions
from tiepoint.registration.batch import BatchConfig, RunInUse, run_batch
from tiepoint.registration.cascade import auto_steps
from tiepoint.registration.processes import ignore_interrupts, threads_in_environment
from tiepoint.registration.records import read_jsonl
from tiepoint.registration.sources import find_sources
from tiepoint.weights import WEIGHTS

from drawings import SIZE, TRUTHS, drawn


def contents(folder):
    """What a user sees: every file by its bytes, the hidden state of the run left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".tiepoint" not in path.parts
    }


def run(folder, out="out", **options):
    config = BatchConfig(template=folder / "template.png")
    run_batch(config, find_sources([str(folder / "sources")]), folder / out, **options)
    return read_jsonl(folder / out / "registrations.jsonl")


def test_outputs_and_records(folder):
    records = {os.path.basename(record["source"]): record for record in run(folder)}
    assert {name: record["status"] for name, record in records.items()} == {
        "a.png": "accepted",
        "b.jpg": "accepted",
        "c.tif": "accepted",
        "d.bmp": "accepted",
        "other.png": "rejected",
        "blank.png": "rejected",
        "broken.jpg": "unreadable",
    }
    assert "broken.jpg" in records["broken.jpg"]["reasons"][0]
    for (name, suffix), truth in zip({"a": ".png", "b": ".jpg", "c": ".tif", "d": ".bmp"}.items(), TRUTHS, strict=True):
        record = records[name + suffix]
        transform = Transform(record["matrix_template_from_source"])
        corners = frame_corners(SIZE)
        assert transform.residuals(truth.inverse()(corners), corners).max() < record["error_bound95_px"]
        aligned = read_image(folder / "out" / record["aligned"])
        assert aligned.size == SIZE
        assert aligned.pixels.dtype == (np.uint16 if name == "c" else np.uint8)
        assert read_image(folder / "out" / "masks" / f"{name}.png").pixels.any()
    lines = (folder / "out" / "registrations.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == [record["source"] for record in records.values()]
    assert len((folder / "out" / "registrations.csv").read_text().splitlines()) == 1 + len(records)


def test_the_same_bytes_for_any_number_of_workers_and_when_run_again(folder):
    run(folder, "one", workers=1)
    run(folder, "two", workers=2)
    assert contents(folder / "one") == contents(folder / "two")
    reused = []
    run(folder, "one", progress=lambda _, again: reused.append(again))
    assert sum(reused) == 6  # all but the unreadable one, which may have been mended
    assert contents(folder / "one") == contents(folder / "two")


def test_a_changed_source_or_configuration_is_done_again(folder):
    run(folder)
    write_image(folder / "sources" / "a.png", Image(drawn(seed=5)))
    reused = []
    records = run(folder, progress=lambda _, again: reused.append(again))
    assert sum(reused) == 5
    assert records[0]["status"] == "rejected"
    assert not (folder / "out" / "aligned" / "a.png").exists()
    changed = BatchConfig(template=folder / "template.png", method="orb")
    reused = []
    run_batch(
        changed,
        find_sources([str(folder / "sources")]),
        folder / "out",
        progress=lambda _, again: reused.append(again),
    )
    assert not any(reused)


def test_two_runs_on_one_folder_do_not_mix(folder):
    (folder / "out" / ".tiepoint").mkdir(parents=True)
    with (
        filelock.FileLock(folder / "out" / ".tiepoint" / "lock"),
        pytest.raises(RunInUse, match="another tiepoint run"),
    ):
        run(folder)


def test_bad_template_and_mask_are_errors_that_name_the_file(folder):
    sources = find_sources([str(folder / "sources")])
    with pytest.raises(ImageError, match="none"):
        run_batch(BatchConfig(template=folder / "none.png"), sources, folder / "out")
    write_image(folder / "mask.png", Image(np.ones((10, 10), np.uint8)))
    config = BatchConfig(template=folder / "template.png", mask=folder / "mask.png")
    with pytest.raises(ImageError, match="mask is 10 x 10, the template 640 x 480"):
        run_batch(config, sources, folder / "out")


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_disk_that_does_not_take_the_image_is_a_line_with_its_reason(folder):
    (folder / "out" / "aligned").parent.mkdir(parents=True, exist_ok=True)
    (folder / "out" / "aligned").write_text("a file where a folder should be")
    records = run(folder)
    assert records[0]["status"] == "unwritten"
    assert "could not be written" in records[0]["reasons"][0]


def test_an_error_in_one_source_is_its_line_and_not_the_end_of_the_run(folder, monkeypatch):
    def odd_for_b(_template, image, _result):
        if image.path.name == "b.jpg":
            raise OverflowError("an odd file")
        return b""

    config = BatchConfig(template=folder / "template.png", method="sift")
    sources = find_sources([str(folder / "sources" / "[ab].*")])
    with monkeypatch.context() as patched:
        patched.setattr("tiepoint.registration.batch.thumbnails", odd_for_b)
        assert run_batch(config, sources, folder / "out") == {"accepted": 1, "failed": 1}
    record = read_jsonl(folder / "out" / "registrations.jsonl")[1]
    assert record["reasons"] == ["OverflowError: an odd file"]
    assert not (folder / "out" / "masks" / "b.png").exists()
    assert run_batch(config, sources, folder / "out") == {"accepted": 2}  # tried again


def test_a_source_that_moved_is_reported_where_it_is_now(folder):
    config = BatchConfig(template=folder / "template.png", method="sift")
    run_batch(config, find_sources([str(folder / "sources")]), folder / "out")
    moved = (folder / "sources").rename(folder / "moved")
    told = []
    run_batch(config, find_sources([str(moved)]), folder / "out", progress=lambda record, _: told.append(record))
    records = read_jsonl(folder / "out" / "registrations.jsonl")
    for record in [*told, *records]:
        assert os.path.dirname(record["source"]) == str(moved)


def test_the_key_of_a_run_knows_the_steps_of_auto_and_the_content_of_named_weights(folder, monkeypatch):
    config = BatchConfig(template=folder / "template.png")
    before = config.digest()
    assert config.digest() == before
    monkeypatch.setattr("tiepoint.registration.batch.auto_steps", lambda options: auto_steps(options)[:1])
    assert config.digest() != before
    monkeypatch.setenv("TIEPOINT_WEIGHTS", str(folder))
    named = BatchConfig(
        template=folder / "template.png", method="superpoint", options=MatcherOptions(weights="magicleap-superpoint")
    )
    digests = set()
    for content in (b"", b"one", b"two"):
        (folder / WEIGHTS["magicleap-superpoint"].file_name).write_bytes(content)
        digests.add(named.digest())
    assert len(digests) == 3


@pytest.mark.parametrize(("four_way", "status"), [(None, "accepted"), (False, "rejected")])
def test_a_method_that_does_not_turn_is_made_to_unless_told_otherwise(folder, four_way, status):
    options = MatcherOptions(four_way=four_way)
    config = BatchConfig(template=folder / "template.png", method="superpoint", options=options)
    run_batch(config, find_sources([str(folder / "sources" / "b.jpg")]), folder / "out")  # turned by 171 degrees
    (record,) = read_jsonl(folder / "out" / "registrations.jsonl")
    assert record["status"] == status


def test_only_a_runs_own_half_written_files_are_removed(folder):
    mine = [folder / ".abc.partial", folder / "aligned" / "x" / ".abc.partial"]
    for path in [*mine, folder / "others" / ".abc.partial"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    config = BatchConfig(template=folder / "template.png", method="sift")
    run_batch(config, find_sources([str(folder / "sources" / "a.png")]), folder)
    assert list(folder.rglob("*.partial")) == [folder / "others" / ".abc.partial"]


def test_workers_are_told_their_threads_and_leave_interrupts_to_the_parent(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with threads_in_environment(3):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "3"
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ
    before = signal.getsignal(signal.SIGINT)
    try:
        ignore_interrupts()
        signal.raise_signal(signal.SIGINT)  # no KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)


def test_names_stay_apart(tmp_path):
    for name in ("x/1.png", "y/1.png", "y/1.jpg"):
        write_image(tmp_path / name, Image(np.zeros((8, 8), np.uint8)))
    found = find_sources([str(tmp_path / "x"), str(tmp_path / "y"), str(tmp_path / "x" / "1.png")])
    assert [source.name for source in found] == ["1", "1~2", "1~3"]
    assert [source.name for source in find_sources([str(tmp_path)])] == ["x/1", "y/1", "y/1~2"]
    assert len(find_sources([str(tmp_path / "y" / "*.png")])) == 1
    with pytest.raises(ValueError, match="no such file"):
        find_sources([str(tmp_path / "z*")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        find_sources([str(tmp_path / "empty")])


def command(folder, out):
    return [
        *(sys.executable, "-m", "tiepoint.cli.main", "register"),
        *(str(folder / "template.png"), str(folder / "sources"), "--out", str(folder / out), "--workers", "2"),
    ]


def test_a_name_that_is_no_unicode(folder):
    shutil.copy(folder / "sources" / "a.png", os.fsencode(folder / "sources") + b"/z\xff.png")
    records = run(folder)
    assert records[-1]["status"] == "accepted"
    assert os.fsencode(records[-1]["source"]).endswith(b"z\xff.png")
    assert (folder / "out" / os.fsdecode(os.fsencode(records[-1]["aligned"]))).is_file()


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_started_again_ends_the_same(folder):
    for number in range(6):
        for name in ("a.png", "b.jpg"):
            (folder / "sources" / f"{number}{name}").write_bytes((folder / "sources" / name).read_bytes())
    started = time.perf_counter()
    undisturbed = subprocess.run(command(folder, "undisturbed"), capture_output=True)
    seconds = time.perf_counter() - started
    assert undisturbed.returncode == 2
    random.seed(0)
    kills = 0
    while kills < 20:
        process = subprocess.Popen(
            command(folder, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(random.uniform(0, 0.9 * seconds))
        if process.poll() is not None:  # finished before the kill: begin again from nothing
            shutil.rmtree(folder / "killed")
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
        kills += 1
    assert subprocess.run(command(folder, "killed"), capture_output=True).returncode == 2
    assert contents(folder / "killed") == contents(folder / "undisturbed")
    assert not list((folder / "killed").rglob("*.partial"))


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bytes(folder):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tiepoint[ray]'")
    run(folder, "alone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about its future defaults
        run(folder, "cluster", workers=2, ray="local")
    assert contents(folder / "cluster") == contents(folder / "alone")
