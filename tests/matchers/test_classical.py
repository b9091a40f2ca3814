"""SIFT, ORB and nearest neighbours: known warps recovered, known neighbours found, the degenerate answered."""

import cv2
import numpy as np
import pytest

from tiepoint.estimation import fit
from tiepoint.geometry import Features, Transform, corner_errors, load_matches, save_matches
from tiepoint.images import Image
from tiepoint.matchers import METHODS, Flann, MatcherOptions, NearestNeighbours, Orb, Sift, matcher
from tiepoint.matchers.nearest import NearestKeypoints


def picture(width=640, height=480, seed=0):
    """Smooth noise at several scales with hard-edged discs: textured like a photograph."""
    rng = np.random.default_rng(seed)
    gray = np.zeros((height, width), np.float32)
    for sigma in (1.2, 2.5, 5, 12, 30):
        layer = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), sigma)
        gray += layer / layer.std()
    gray = 120 + 30 * gray / gray.std()
    for _ in range(40):
        centre, radius = rng.uniform((0, 0), (width, height)), int(rng.uniform(4, 40))
        cv2.circle(gray, centre.astype(int).tolist(), radius, float(rng.uniform(20, 230)), -1, cv2.LINE_AA)
    return np.clip(gray, 0, 255).astype(np.uint8)


def warped(pixels, transform, size):
    return cv2.warpPerspective(pixels, transform.matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


WARPS = {
    "30 degrees": Transform.from_parameters(rotation_deg=30, centre=(320, 240)),
    "180 degrees": Transform.from_parameters(rotation_deg=180, centre=(319.5, 239.5)),
    "scale 0.5": Transform.from_parameters(scale=0.5, centre=(320, 240)),
    "scale 2": Transform.from_parameters(scale=2, centre=(320, 240)),
    "perspective": Transform(np.array([[1.05, 0.1, -20], [-0.08, 0.95, 30], [2e-4, 3e-4, 1]])),
}


@pytest.mark.parametrize("warp", WARPS)
def test_sift_recovers_a_known_warp_to_a_tenth_of_a_pixel(warp):
    pixels = picture()
    if warp == "scale 0.5":
        pixels = cv2.GaussianBlur(pixels, (0, 0), 0.8)  # or the warp itself would alias
    matches = matcher("sift")(Image(pixels), Image(warped(pixels, WARPS[warp], (640, 480))))
    estimate = fit(matches, "homography")
    assert np.median(corner_errors(estimate.model, WARPS[warp], (640, 480))) < 0.1


def test_coordinates_are_those_of_the_full_size_image():
    pixels = picture(1600, 1200, seed=3)
    shift = Transform.from_parameters(shift_px=(40, -24))
    options = MatcherOptions(max_size_px=640)
    matches = matcher("sift", options)(Image(pixels), Image(warped(pixels, shift, (1600, 1200))))
    assert matches.size0 == (1600, 1200)
    assert np.median(shift.residuals(matches.points0, matches.points1)) < 1
    offsets = np.median(matches.points1 - matches.points0, axis=0)
    np.testing.assert_allclose(offsets, (40, -24), atol=0.2)


def test_orb_recovers_a_rotation():
    pixels = picture()
    matches = matcher("orb")(Image(pixels), Image(warped(pixels, WARPS["30 degrees"], (640, 480))))
    estimate = fit(matches, "homography")
    assert corner_errors(estimate.model, WARPS["30 degrees"], (640, 480)).mean() < 2


DEGENERATE = {
    "blank": np.full((480, 640), 128, np.uint8),
    "1 x 1": np.zeros((1, 1), np.uint8),
    "3 x 200": picture(200, 3),
    "grey ramp": np.tile(np.arange(256, dtype=np.uint8), (64, 1)),
    "16-bit": (picture().astype(np.uint16) * 7 + 3000),
    "float with nan": np.where(picture() > 250, np.nan, picture().astype(np.float32) / 255).astype(np.float32),
    "rgba": np.dstack([picture()] * 3 + [np.full((480, 640), 255, np.uint8)]),
}


@pytest.mark.parametrize("method", ["sift", "orb"])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_any_image_has_an_encoding_and_matches_without_an_exception(method, kind):
    matches = matcher(method)(Image(DEGENERATE[kind]), Image(picture()))
    if kind in ("16-bit", "float with nan", "rgba"):
        assert len(matches) > 150
    if kind in ("blank", "1 x 1"):
        assert len(matches) == 0


def test_the_same_image_gives_the_same_features():
    first, second = Sift().extract(Image(picture())), Sift().extract(Image(picture()))
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    np.testing.assert_array_equal(first.descriptors, second.descriptors)
    assert (np.diff(first.scores) <= 0).all()


def features(descriptors):
    count = len(descriptors)
    return Features(
        keypoints=np.zeros((count, 2), np.float32),
        scores=np.ones(count, np.float32),
        descriptors=np.asarray(descriptors),
        image_size=(10, 10),
    )


def test_mutual_ratio_matches_worked_by_hand():
    """Row 0 is close to row 1 and far from the rest; rows 1 and 2 share a neighbour, which prefers row 2."""
    d0 = np.array([[0, 0], [10, 0], [10.4, 0]], np.float32)
    d1 = np.array([[30, 0], [0, 1], [10.5, 0]], np.float32)
    found = NearestNeighbours(ratio=0.8).match_features(features(d0), features(d1))
    np.testing.assert_array_equal(found.indices, [[0, 1], [2, 2]])
    np.testing.assert_allclose(found.scores, [1 - 1 / 10.5, 1 - 0.1 / np.hypot(10.4, 1)], atol=1e-5)
    strict = NearestNeighbours(ratio=0.05).match_features(features(d0), features(d1))
    np.testing.assert_array_equal(strict.indices, [[2, 2]])


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_blocks_agree_with_opencv_brute_force(dtype):
    rng = np.random.default_rng(0)
    d0, d1 = (rng.integers(0, 255, (n, 32)).astype(dtype) for n in (1300, 900))
    found = NearestNeighbours(ratio=None).match_features(features(d0), features(d1))
    norm = cv2.NORM_L2 if dtype == np.float32 else cv2.NORM_HAMMING
    expected = sorted((m.queryIdx, m.trainIdx) for m in cv2.BFMatcher(norm, crossCheck=True).match(d0, d1))
    if dtype == np.float32:  # Hamming distances tie, and then either neighbour is right
        np.testing.assert_array_equal(found.indices, expected)
    else:
        assert len(found.indices) == pytest.approx(len(expected), rel=0.2)


@pytest.mark.parametrize("extractor", [Sift(), Orb()])
def test_flann_finds_most_of_what_the_exact_search_finds(extractor):
    pixels = picture()
    f0, f1 = (extractor.extract(Image(p)) for p in (pixels, warped(pixels, WARPS["30 degrees"], (640, 480))))
    exact = {tuple(row) for row in NearestNeighbours().match_features(f0, f1).indices.tolist()}
    fast = {tuple(row) for row in Flann().match_features(f0, f1).indices.tolist()}
    assert len(exact & fast) > 0.6 * len(exact)


@pytest.mark.parametrize("search", [NearestNeighbours(), NearestNeighbours(ratio=None), Flann()])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize(("count0", "count1"), [(0, 0), (0, 5), (1, 5), (5, 1)])
def test_fewer_than_two_descriptors_match_nothing(search, dtype, count0, count1):
    found = search.match_features(features(np.ones((count0, 32), dtype)), features(np.ones((count1, 32), dtype)))
    assert found.indices.shape == (0, 2)


def of_several_descriptors(rng, num_keypoints, *, most=4):
    """Keypoints of one to `most` descriptors of unit length, their rows in no order."""
    number = rng.permutation(np.repeat(np.arange(num_keypoints), rng.integers(1, most + 1, num_keypoints)))
    described = rng.normal(size=(len(number), 16)).astype(np.float32)
    described /= np.linalg.norm(described, axis=1, keepdims=True)
    keypoints = np.stack([number % 7, number // 7], axis=1).astype(np.float32)
    found = Features(
        keypoints=keypoints, scores=np.ones(len(number), np.float32), descriptors=described, image_size=(99, 99)
    )
    return found, number


@pytest.mark.parametrize("ratio", [0.8, 0.95, 1.0])
def test_keypoints_of_several_descriptors_match_by_their_nearest(ratio):
    """Against all distances written down: least over the descriptors of each two keypoints, mutual, ratio."""
    rng = np.random.default_rng(3)
    (features0, number0), (features1, number1) = (of_several_descriptors(rng, n) for n in (700, 600))
    apart = np.sqrt(np.maximum(2 - 2 * features0.descriptors @ features1.descriptors.T.astype(float), 0))
    of_keypoints = np.full((700, 600), np.inf)
    np.minimum.at(of_keypoints, (number0[:, None], number1[None]), apart)
    nearest, second = np.sort(of_keypoints, axis=1)[:, :2].T
    mutual = of_keypoints.argmin(axis=0)[of_keypoints.argmin(axis=1)] == np.arange(700)
    kept = np.flatnonzero(mutual & (nearest / second < ratio))
    found = NearestKeypoints(ratio=ratio).match_features(features0, features1)
    rows0, rows1 = found.indices.T
    order = np.argsort(number0[rows0])
    assert 5 < len(kept) < 700
    np.testing.assert_array_equal(number0[rows0][order], kept)
    np.testing.assert_array_equal(number1[rows1][order], of_keypoints.argmin(axis=1)[kept])
    np.testing.assert_allclose(apart[rows0, rows1][order], nearest[kept], atol=1e-6)  # by the nearest descriptors
    np.testing.assert_allclose(found.scores[order], 1 - (nearest / second)[kept], atol=1e-4)


def test_keypoints_of_one_descriptor_match_as_neighbours_do():
    rng = np.random.default_rng(4)
    (features0, _), (features1, _) = (of_several_descriptors(rng, n, most=1) for n in (300, 200))
    found = NearestKeypoints(ratio=0.9).match_features(features0, features1)
    wanted = NearestNeighbours(ratio=0.9).match_features(features0, features1)
    assert sorted(found.indices.tolist()) == wanted.indices.tolist()


@pytest.mark.parametrize(("count0", "count1"), [(0, 0), (0, 5), (1, 5), (5, 1)])
def test_fewer_than_two_keypoints_match_nothing(count0, count1):
    rng = np.random.default_rng(5)
    found = [of_several_descriptors(rng, count)[0] for count in (count0, count1)]
    assert len(NearestKeypoints().match_features(*found).indices) == 0


@pytest.mark.parametrize("search", [NearestNeighbours(), Flann()])
def test_of_two_equal_neighbours_none_is_kept(search):
    rng = np.random.default_rng(0)
    described = rng.normal(size=(30, 128)).astype(np.float32)
    described[1] = described[0]  # as repeated print gives
    found = search.match_features(features(described), features(described)).indices[:, 0].tolist()
    assert found == list(range(2, 30))


@pytest.mark.parametrize("search", [NearestNeighbours(), Flann()])
@pytest.mark.parametrize(("second_bits", "kept"), [(12, False), (16, True)])
def test_the_ratio_of_bits_is_that_of_the_roots(search, second_bits, kept):
    """Nearest at 10 bits: sqrt(10 / 12) = 0.91 does not pass 0.85, sqrt(10 / 16) = 0.79 does."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2, (200, 256), np.uint8)

    def flipped(start, count):
        copy = bits.copy()
        copy[:, start : start + count] ^= 1
        return np.packbits(copy, axis=1)

    others = np.concatenate([flipped(0, 10), flipped(100, second_bits)])
    found = search.match_features(features(np.packbits(bits, axis=1)), features(others))
    assert (len(found.indices) > 190) == kept
    assert kept or len(found.indices) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"max_size_px": 0}, {"max_num_keypoints": -5}, {"max_enlargement": 0.5},
        {"precision": "half"}, {"look": "multi"}, {"search": "flan"},
    ],
)  # fmt: skip
def test_impossible_options_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        MatcherOptions(**changes)


def test_unknown_methods_list_those_there_are():
    with pytest.raises(ValueError, match="sift, orb"):
        matcher("surf")
    assert all(name == method.name for name, method in METHODS.items())


@pytest.mark.parametrize("suffix", [".npz", ".json", ".csv"])
def test_matches_come_back_from_a_file(tmp_path, suffix):
    matches = matcher("orb")(Image(picture()), Image(picture()))
    for kept in (matches, matches[:0]):
        save_matches(tmp_path / f"m{suffix}", kept)
        again = load_matches(tmp_path / f"m{suffix}")
        np.testing.assert_allclose(again.points0, kept.points0, atol=1e-5)
        np.testing.assert_allclose(again.points1, kept.points1, atol=1e-5)
        assert (again.size0, again.size1, again.method) == (kept.size0, kept.size1, "orb")
    (tmp_path / f"m{suffix}").write_bytes(b"not matches")
    with pytest.raises(ValueError, match=f"m{suffix}"):
        load_matches(tmp_path / f"m{suffix}")
