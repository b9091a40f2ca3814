"""Each pair's matches are kept, and made again only where something they depend on has changed."""

import cv2
import numpy as np
import pytest

from tiepoint.geometry import load_matches
from tiepoint.images import Image, read_image, write_image
from tiepoint.matchers import MatcherOptions, kept_encodings, matcher
from tiepoint.matchers.kept_encodings import KeptEncodings
from tiepoint.sets import matching
from tiepoint.sets.matching import SetConfig, match_pairs
from tiepoint.sets.pairs import all_pairs, photograph_names


@pytest.fixture
def folder(tmp_path):
    """Three views of one texture, each moved by ten pixels."""
    texture = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    texture = cv2.resize(texture, (400, 300), interpolation=cv2.INTER_CUBIC)
    for i in range(3):
        write_image(tmp_path / "set" / f"{i}.png", Image(np.ascontiguousarray(texture[:, 10 * i : 10 * i + 360])))
    return tmp_path / "set"


def test_pairs_are_matched_and_kept(folder, tmp_path, monkeypatch):
    config, pairs = SetConfig(folder=folder), all_pairs(photograph_names(folder))
    done = []
    found = match_pairs(config, pairs, tmp_path / "kept", progress=done.append)
    assert list(found.files) == pairs
    assert sum(done) == len(pairs)
    of_pair = load_matches(found.files["0.png", "2.png"])
    shift = np.median(of_pair.points1 - of_pair.points0, axis=0)
    assert shift == pytest.approx([-20, 0], abs=0.1)

    monkeypatch.setattr(matching, "matcher", lambda *_: pytest.fail("matched again"))
    assert match_pairs(config, pairs, tmp_path / "kept").files == found.files


def test_a_keypoint_is_in_the_same_place_in_every_pair(folder, tmp_path):
    pairs = all_pairs(photograph_names(folder))
    found = dict(match_pairs(SetConfig(folder=folder), pairs, tmp_path / "kept").matches())
    keypoints = {tuple(point) for point in matcher("sift").encode(read_image(folder / "1.png")).keypoints.tolist()}
    for points in (found["0.png", "1.png"].points1, found["1.png", "2.png"].points0):
        assert {tuple(point) for point in points.tolist()} <= keypoints


@pytest.mark.parametrize(
    ("method", "options", "at_keypoints"),
    [
        ("sift", MatcherOptions(four_way=True), True),
        ("sift", MatcherOptions(look="tiled"), False),
        ("superpoint", MatcherOptions(), True),
        ("superpoint", MatcherOptions(four_way=True), False),
        ("loftr", MatcherOptions(), False),
    ],
)
def test_matches_stay_at_keypoints_that_all_pairs_share(folder, method, options, at_keypoints):
    config = SetConfig(folder=folder, method=method, options=options)
    assert config.at_keypoints == at_keypoints
    assert (config.merge_px == 0) == at_keypoints


def test_what_changed_is_matched_again(folder, tmp_path):
    pairs = all_pairs(photograph_names(folder))
    before = match_pairs(SetConfig(folder=folder), pairs, tmp_path / "kept").files
    write_image(folder / "0.png", Image(np.zeros((300, 360), np.uint8)))
    after = match_pairs(SetConfig(folder=folder), pairs, tmp_path / "kept").files
    assert after["1.png", "2.png"] == before["1.png", "2.png"]
    assert after["0.png", "1.png"] != before["0.png", "1.png"]
    assert len(load_matches(after["0.png", "1.png"])) == 0
    others = SetConfig(folder=folder, options=MatcherOptions(max_num_keypoints=50))
    assert match_pairs(others, pairs, tmp_path / "kept").files["1.png", "2.png"] != before["1.png", "2.png"]


def test_a_damaged_file_of_matches_is_made_again(folder, tmp_path):
    pairs = all_pairs(photograph_names(folder))
    files = match_pairs(SetConfig(folder=folder), pairs, tmp_path / "kept").files
    whole = files[pairs[0]].read_bytes()
    for damaged in (b"", whole[:100]):
        files[pairs[0]].write_bytes(damaged)
        again = match_pairs(SetConfig(folder=folder), pairs, tmp_path / "kept")
        assert [len(of_pair) > 0 for _, of_pair in again.matches()] == [True] * 3


def test_all_that_is_left_out_is_told(folder, tmp_path):
    (folder / "1.png").write_bytes(b"no picture")
    pairs = [("0.png", "1.png"), ("1.png", "gone.png"), ("0.png", "2.png"), ("3.png", "1.png")]
    write_image(folder / "3.png", read_image(folder / "0.png"))
    found = match_pairs(SetConfig(folder=folder), pairs, tmp_path / "kept")
    assert list(found.files) == [("0.png", "2.png")]
    assert found.left_out.keys() == {"1.png", "3.png", "gone.png"}
    assert "1.png: is not an image" in found.left_out["1.png"]
    assert "gone.png: cannot be read" in found.left_out["gone.png"]
    assert "3.png: none that it was to be matched with could be read" in found.left_out["3.png"]


@pytest.mark.parametrize(("limit", "made"), [(400, "abcd"), (300, "abcdb")])
def test_what_is_needed_last_is_made_again_where_all_do_not_fit(monkeypatch, limit, made):
    monkeypatch.setattr(kept_encodings, "MAX_KEPT_BYTES", limit)
    asked = []

    def encode(key):
        asked.append(key)
        return np.zeros(100, np.uint8)

    pairs = [("a", "b"), ("c", "d"), ("a", "c"), ("a", "d"), ("c", "b")]
    kept = KeptEncodings(encode, pairs)
    for position, pair in enumerate(pairs):
        assert all(len(kept[key]) == 100 for key in pair)
        kept.done(position)
    assert "".join(asked) == made


def test_features_count_as_their_arrays():
    features = matcher("sift").encode(Image(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)))
    least = features.keypoints.nbytes + features.descriptors.nbytes + features.scores.nbytes
    assert kept_encodings.num_bytes(features) >= least
