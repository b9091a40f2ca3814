"""The homography protocol on made sequences: oracles score what they must, failures stay, runs resume."""

import json
from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest

from tiepoint.evaluation.contestants import CatalogueMethod, Contestant, Encoder, Oracle
from tiepoint.evaluation.homography import COLUMNS, Homography
from tiepoint.evaluation.layouts import HPATCHES_LARGE, homography_pairs
from tiepoint.evaluation.run import evaluate
from tiepoint.evaluation.session import run_session
from tiepoint.geometry import Transform
from tiepoint.matchers import MatcherOptions

SIZE = (160, 120)
WARPS = {
    "2": Transform.from_parameters(rotation_deg=20, scale=1.1, centre=(80, 60)),
    "3": Transform(np.array([[1.05, 0.1, -8], [-0.08, 0.95, 9], [2e-4, 3e-4, 1]])),
}


def picture(size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (size[1], size[0])).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5) + 2 * cv2.GaussianBlur(noise, (0, 0), 4)
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def write_sequence(folder, suffix=".png", seed=0, warps=WARPS):
    folder.mkdir(parents=True)
    pixels = cv2.cvtColor(picture(seed=seed), cv2.COLOR_GRAY2BGR)
    cv2.imwrite(str(folder / f"1{suffix}"), pixels)
    for k, warp in warps.items():
        warped = cv2.warpPerspective(pixels, warp.matrix, SIZE, flags=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{k}{suffix}"), warped)
        np.savetxt(folder / f"H_1_{k}", warp.matrix)


@pytest.fixture
def sequences(tmp_path):
    data = tmp_path / "data"
    for i, name in enumerate(["set_a/one", "set_a/two", "set_b/three"]):
        write_sequence(data / name, seed=i)
    return data


def run(pairs, contestant, tmp_path, workers=1, name="journal.jsonl"):
    return evaluate(Homography(), contestant, pairs, journal=tmp_path / name, workers=workers)


@pytest.mark.parametrize("short_side_px", [None, 60])
def test_true_correspondences_score_one_hundred(sequences, tmp_path, short_side_px):
    pairs = homography_pairs(sequences, short_side_px=short_side_px)
    for one in run(pairs, Oracle(0.0), tmp_path):
        assert one.record.accuracy == [1.0] * 10
        assert one.record.precision == [1.0, 1.0]
        assert max(one.record.error_px[column] for column in COLUMNS) < 1e-3
        assert one.record.num_keypoints is one.record.repeatability is None


@pytest.mark.parametrize("noise_px", [0.5, 1.0, 2.0])
def test_noise_scores_what_a_gaussian_must(sequences, tmp_path, noise_px):
    """The length of a Gaussian in the plane is at most t with probability 1 - exp(-t² / 2σ²) (Rayleigh)."""
    measured = run(homography_pairs(sequences), Oracle(noise_px), tmp_path)
    count = sum(one.record.num_matches for one in measured)
    assert count > 5000
    found = np.mean([one.record.accuracy for one in measured], axis=0)
    expected = 1 - np.exp(-(np.arange(1, 11) ** 2) / (2 * noise_px**2))
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / count)


def test_least_squares_beats_the_noise_as_it_should(sequences, tmp_path):
    """With 1000 matches and 1 px of noise the error at the corners is of the order of 4 / sqrt(1000) px."""
    measured = run(homography_pairs(sequences), Oracle(1.0), tmp_path)
    for column in ("dlt", "fit"):
        assert 0.02 < np.median([one.record.error_px[column] for one in measured]) < 0.3


def test_sift_finds_these_easy_warps(sequences, tmp_path):
    measured = run(homography_pairs(sequences), CatalogueMethod("sift", MatcherOptions()), tmp_path)
    assert np.median([one.record.error_px["fit"] for one in measured]) < 0.5
    assert all(one.record.repeatability > 0.3 for one in measured)
    assert all(0 < one.record.matching_score <= 1 for one in measured)
    assert all(one.encode0_s > 0 and one.match_s > 0 for one in measured)


def test_processes_give_the_same_results(sequences, tmp_path):
    pairs = homography_pairs(sequences)
    method = CatalogueMethod("orb", MatcherOptions())
    alone, together = (run(pairs, method, tmp_path, workers, f"{workers}.jsonl") for workers in (1, 2))
    assert [one.record for one in alone] == [one.record for one in together]


def test_a_method_that_is_not_there_says_so_from_processes_too(sequences, tmp_path):
    with pytest.raises(ValueError, match="unknown method"):
        run(homography_pairs(sequences), CatalogueMethod("surf", MatcherOptions()), tmp_path, workers=2)


@dataclass
class Counting(Contestant, Encoder):
    """An oracle that counts what it is asked, and fails on the pairs named."""

    fails_on: tuple[str, ...] = ()
    encoded: list = field(default_factory=list)
    matched: list = field(default_factory=list)

    name = "counting"

    def settings(self):
        return {}

    def prepare(self):
        return self

    def encode(self, frame):
        self.encoded.append(frame.image.path)

    def match(self, pair, encoded0, encoded1):
        if pair.key in self.fails_on:
            raise RuntimeError("out of ideas")
        self.matched.append(pair.key)
        return Oracle(0.0).match(pair, encoded0, encoded1)


def test_each_image_is_encoded_once(sequences, tmp_path):
    counting = Counting()
    run(homography_pairs(sequences), counting, tmp_path)
    assert len(counting.encoded) == len(set(counting.encoded)) == 9
    assert len(counting.matched) == 6


def test_a_pair_that_fails_counts_as_a_failure(sequences, tmp_path):
    counting = Counting(fails_on=("set_a/one:1-2",))
    pairs = homography_pairs(sequences)
    report = run_session(Homography(), [counting], pairs, data=sequences, out=tmp_path / "out")
    row = dict(zip(report.tables["matches"].columns, report.tables["matches"].rows[-1], strict=True))
    assert (row["set"], row["pairs"]) == ("all", 6)
    assert row["MMA@1/3/5/10"] == pytest.approx([100 * 5 / 6] * 4)
    error = dict(zip(report.tables["error"].columns, report.tables["error"].rows[-1], strict=True))
    assert error["fit failed"] == 1
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["failures"]["counting"] == {"set_a/one:1-2": "RuntimeError: out of ideas"}


def test_a_failure_halves_the_scores_and_leaves_the_number_of_keypoints(sequences, tmp_path):
    (sequences / "set_a/one/2.png").write_bytes(b"no picture")
    pairs = homography_pairs(sequences)[:2]
    method = CatalogueMethod("sift", MatcherOptions())
    report = run_session(Homography(), [method], pairs, data=sequences, out=tmp_path / "out")
    row = dict(zip(report.tables["matches"].columns, report.tables["matches"].rows[0], strict=True))
    record = run(pairs, method, tmp_path)[1].record
    assert row["keypoints"] == round(np.mean(record.num_keypoints))
    assert row["MS@3"] == pytest.approx(100 * record.matching_score / 2)
    assert row["rep@3"] == pytest.approx(100 * record.repeatability / 2)


def test_a_damaged_picture_is_a_failure_of_its_pairs_alone(sequences, tmp_path):
    (sequences / "set_b/three/2.png").write_bytes(b"no picture")
    measured = run(homography_pairs(sequences), Oracle(0.0), tmp_path)
    assert [one.pair.key for one in measured if one.failed] == ["set_b/three:1-2"]


def test_a_run_goes_on_where_it_stopped(sequences, tmp_path):
    pairs = homography_pairs(sequences)
    whole = run(pairs, Counting(), tmp_path)
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:4]) + lines[4][:30])  # killed while writing the fifth
    counting = Counting()
    again = run(pairs, counting, tmp_path)
    assert counting.matched == [pair.key for pair in pairs[4:]]
    assert [one.record for one in again] == [one.record for one in whole]


def test_other_settings_and_other_data_never_reuse_results(sequences, tmp_path):
    def matched(threshold_px):
        counting = Counting()
        pairs = homography_pairs(sequences)
        run_session(Homography(threshold_px=threshold_px), [counting], pairs, data=sequences, out=tmp_path / "out")
        return len(counting.matched)

    assert (matched(3), matched(3), matched(1)) == (6, 0, 6)
    cv2.imwrite(str(sequences / "set_a/one/2.png"), picture(seed=9))
    assert matched(3) == 6


def test_errors_are_measured_at_the_points_where_there_are_some(tmp_path):
    folder = tmp_path / "data/pair"
    write_sequence(folder, warps={"2": WARPS["2"]})
    points = np.array([[10.0, 10], [20, 30]])
    np.savetxt(folder / "points_1_2.txt", np.concatenate([points, WARPS["2"](points) + np.array([3, 4])], axis=1))
    (pair,) = homography_pairs(tmp_path / "data")
    (measured,) = run([pair], Oracle(0.0), tmp_path)
    assert measured.record.error_px["fit"] == pytest.approx(5, abs=1e-3)


def test_points_follow_a_resize(tmp_path):
    folder = tmp_path / "data/pair"
    write_sequence(folder, warps={"2": WARPS["2"]})
    points = np.array([[10.0, 10], [20, 30]])
    np.savetxt(folder / "points_1_2.txt", np.concatenate([points, WARPS["2"](points)], axis=1))
    measured = run(homography_pairs(tmp_path / "data", short_side_px=60), Oracle(0.0), tmp_path)
    assert measured[0].record.error_px["fit"] < 1e-3


def test_hpatches_lists(tmp_path):
    names = ["i_ajuntament", "v_bark", *HPATCHES_LARGE]
    for name in names:
        write_sequence(tmp_path / name, suffix=".ppm")
    everything = homography_pairs(tmp_path, scenes="116")
    assert len(everything) == 2 * len(names)
    listed = homography_pairs(tmp_path, scenes="108")
    assert {(pair.group, pair.subset) for pair in listed} == {
        ("i_ajuntament", "illumination"),
        ("v_bark", "viewpoint"),
    }
    assert listed[0].source0.read().image.size == SIZE
    assert homography_pairs(tmp_path, subset=1, scenes="108")[0].key == "i_ajuntament:1-2"


def test_short_side_is_resized_and_the_long_one_cut(tmp_path):
    write_sequence(tmp_path / "s")
    frame = homography_pairs(tmp_path, short_side_px=50)[0].source0.read()
    assert frame.image.size == (66, 50)  # 160 * 50 / 120 = 66.67


def test_broken_layouts_are_named(tmp_path):
    with pytest.raises(ValueError, match="no sequences"):
        homography_pairs(tmp_path)
    write_sequence(tmp_path / "s")
    with pytest.raises(ValueError, match="108"):
        homography_pairs(tmp_path, scenes="108")
    (tmp_path / "s/3.png").unlink()
    with pytest.raises(ValueError, match="no picture named 3"):
        homography_pairs(tmp_path)
    (tmp_path / "s/H_1_2").write_text("1 2 3")
    with pytest.raises(ValueError, match="3 x 3"):
        homography_pairs(tmp_path)


def test_files_of_a_run(sequences, tmp_path):
    out = tmp_path / "out"
    pairs = homography_pairs(sequences)
    methods = [Oracle(0.0), CatalogueMethod("orb", MatcherOptions())]
    report = run_session(Homography(), methods, pairs, data=sequences, out=out, settings={"subset": None})
    result = json.loads((out / "result.json").read_text())
    assert result["protocol"] == "homography"
    assert result["settings"] == {"threshold_px": 3.0, "seed": 0, "short_side_px": None, "subset": None}
    assert len(result["data_sha256"]) == 64
    assert {"tiepoint", "numpy", "opencv-python-headless", "poselib", "code"} <= result["versions"].keys()
    assert [method["method"] for method in result["methods"]] == ["oracle", "orb"]
    lines = (out / "pairs.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 6
    assert "error_px_fit" in lines[0]
    assert (out / "auc.csv").read_text().startswith("set,pairs,method,DLT AUC@1,DLT AUC@3")
    text = str(report)
    assert "| orb " in text
    assert "100.0/100.0/100.0/100.0" in text
