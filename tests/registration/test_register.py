"""Registration: right where it can be, refused where it cannot, refined to a fraction of a pixel."""

from dataclasses import replace

import numpy as np
import pytest

from tiepoint.estimation import fit
from tiepoint.geometry import Transform, frame_corners
from tiepoint.images import Image, gray_view
from tiepoint.matchers import Matcher, MatcherOptions, matcher
from tiepoint.registration import Limits, Registrar, RegistrationConfig, valid_mask, warp_image
from tiepoint.registration.agreement import Likeness
from tiepoint.registration.prediction import common_corners
from tiepoint.registration.refinement import prepare_template, refine_by_intensity
from tiepoint.registration.support import chance_of_inlier, log10_false_alarms

from drawings import SIZE, TRUTHS, drawn, seen


def errors(transform, truth):
    corners = frame_corners(SIZE)
    return transform.residuals(truth.inverse()(corners), corners)


@pytest.fixture(scope="module")
def registrar(template_pixels):
    return Registrar(Image(template_pixels), matcher("sift"))


@pytest.mark.parametrize("number", range(len(TRUTHS)))
def test_views_are_accepted_within_their_predicted_error(registrar, template_pixels, number):
    result = registrar.register(Image(seen(template_pixels, TRUTHS[number], seed=number)))
    assert result.accepted, result.verdict.reasons
    error = errors(result.transform, TRUTHS[number]).max()
    assert error < 0.15
    assert error < result.prediction.bound95_px < 1
    assert result.refinement.kept


class Rough(Matcher):
    """SIFT's matches, the best 60 of them with noise."""

    name = "rough"

    def __init__(self, noise_px):
        self.sift, self.noise_px = matcher("sift", MatcherOptions(refine=False)), noise_px

    def encode(self, image):
        return self.sift.encode(image)

    def match(self, encoding0, encoding1):
        found = self.sift.match(encoding0, encoding1)
        found = found[np.argsort(-found.scores, kind="stable")[:60]]
        noise = np.random.default_rng(0).normal(0, self.noise_px, found.points1.shape)
        return replace(found, points1=(found.points1 + noise).astype(np.float32))


def test_what_rough_matches_do_not_carry_is_judged_again_with_them_refined(template_pixels, monkeypatch):
    source = Image(seen(template_pixels, TRUTHS[1], seed=0))
    registrar = Registrar(Image(template_pixels), Rough(noise_px=5))
    with monkeypatch.context() as patched:
        patched.setattr("tiepoint.registration.register.refine_matches", lambda matches, *_: matches)
        assert not registrar.register(source).accepted
    result = registrar.register(source)
    assert result.accepted, result.verdict.reasons
    assert errors(result.transform, TRUTHS[1]).max() < 0.15


IMPOSSIBLE = {
    "unrelated": drawn(seed=5),
    "blank": np.full((480, 640, 3), 128, np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8),
    "chequered": np.kron(np.indices((24, 32)).sum(0) % 2, np.ones((20, 20))).astype(np.uint8) * 255,
    "mirrored": np.ascontiguousarray(drawn()[:, ::-1]),
    "1 x 1": np.zeros((1, 1), np.uint8),
    "thin": drawn(size=(640, 3)),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_the_impossible_is_refused_with_reasons(registrar, kind):
    result = registrar.register(Image(IMPOSSIBLE[kind]))
    assert not result.accepted
    assert all(result.verdict.reasons)


def facade():
    """Symmetric all but its lettering and one row of ornaments: mirrored it fits well."""
    half = drawn(seed=3, size=(320, 480))
    pixels = np.ascontiguousarray(np.hstack([half, half[:, ::-1]]))
    pixels[150:300] = drawn(seed=4)[150:300]
    return pixels


@pytest.mark.parametrize("noise_px", [4, 5])
def test_the_mirror_image_is_refused_with_rough_matches_too(noise_px):
    pixels = facade()
    result = Registrar(Image(pixels), Rough(noise_px)).register(Image(np.ascontiguousarray(pixels[:, ::-1])))
    assert not result.accepted


def test_the_mirror_image_of_a_symmetric_object_is_refused():
    pixels = facade()
    registrar = Registrar(Image(pixels), matcher("sift"))
    result = registrar.register(Image(np.ascontiguousarray(pixels[:, ::-1])))
    assert [check.name for check in result.verdict.checks if not check.passed] == ["handedness"]
    assert "mirrored" in result.verdict.reasons[0]
    assert registrar.register(Image(pixels)).accepted


def test_bounds_refuse_what_fixture_and_camera_cannot_do(template_pixels):
    upright = RegistrationConfig(limits=Limits(max_rotation_deg=20, scale_range=(0.9, 1.1)))
    registrar = Registrar(Image(template_pixels), matcher("sift"), upright)
    turned = registrar.register(Image(seen(template_pixels, TRUTHS[1])))
    assert any("turned by 171.0 degrees (limit 20)" in reason for reason in turned.verdict.reasons)
    scaled = registrar.register(Image(seen(template_pixels, TRUTHS[3])))
    assert any("scale 1.2" in reason for reason in scaled.verdict.reasons)
    assert registrar.register(Image(seen(template_pixels, TRUTHS[0]))).accepted


def test_a_mask_leaves_the_rest_of_the_template_out(template_pixels):
    """Half of the template shows something else in the source; masked, it does not count against it."""
    pixels = seen(template_pixels, TRUTHS[0])
    mask = np.zeros((480, 640), bool)
    mask[:, :400] = True
    registrar = Registrar(Image(template_pixels), matcher("sift"), mask=mask)
    result = registrar.register(Image(pixels))
    assert result.accepted
    assert mask[tuple(np.rint(result.matches.points1[:, ::-1]).astype(int).T)].all()
    with pytest.raises(ValueError, match="mask: expected shape"):
        Registrar(Image(template_pixels), matcher("sift"), mask=mask[:100])


def test_a_mask_over_one_quarter_is_judged_by_that_quarter(template_pixels):
    mask = np.zeros((480, 640), bool)
    mask[240:, :320] = True
    registrar = Registrar(Image(template_pixels), matcher("sift"), mask=mask)
    result = registrar.register(Image(seen(template_pixels, TRUTHS[0])))
    assert result.accepted, result.verdict.reasons
    corners = np.array([[0, 240], [319, 240], [319, 479], [0, 479]])
    inside = result.transform.residuals(TRUTHS[0].inverse()(corners), corners)
    assert inside.max() < result.prediction.bound95_px


def test_the_common_area_of_a_mask_is_worked_by_hand():
    mask = np.zeros((480, 640), bool)
    mask[100, 30] = mask[200, 80] = True
    registrar = Registrar(Image(drawn()), matcher("sift"), mask=mask)
    rectangle = [[30, 100], [80, 100], [80, 200], [30, 200]]
    np.testing.assert_array_equal(registrar._counted, rectangle)
    shift = Transform.from_parameters(shift_px=(50, 0))  # of the rectangle, x = 50 ... 80 is covered
    common = common_corners(shift, SIZE, SIZE, registrar._counted)
    np.testing.assert_allclose([common.min(axis=0), common.max(axis=0)], [[50, 100], [80, 200]])


def test_refinement_at_least_halves_the_error(template_pixels):
    before, after = [], []
    tiles = prepare_template(gray_view(Image(template_pixels)))
    sift = matcher("sift", MatcherOptions(refine=False))
    for seed in range(8):
        rng = np.random.default_rng(seed)
        truth = Transform.from_parameters(
            rotation_deg=rng.uniform(-30, 30), scale=rng.uniform(0.8, 1.2), centre=(320, 240)
        )
        source = Image(seen(template_pixels, truth, seed=seed, noise=5, blur=1.0))
        start = fit(sift(source, Image(template_pixels)), "homography").model
        found = refine_by_intensity(tiles, gray_view(source), start, max_motion_px=5)
        before.append(errors(start, truth).mean())
        after.append(errors(found.transform, truth).mean())
    assert np.median(after) < 0.5 * np.median(before)
    assert np.median(after) < 0.05


def test_refinement_of_the_unrelated_is_not_kept_and_never_raises(template_pixels):
    tiles = prepare_template(gray_view(Image(template_pixels)))
    for pixels in IMPOSSIBLE.values():
        start = Transform.from_parameters(shift_px=(0.5, 0.5))
        found = refine_by_intensity(tiles, gray_view(Image(pixels)), start, max_motion_px=3)
        if not found.kept:
            assert found.transform is start
            assert found.reason
    far = Transform.from_parameters(shift_px=(5000, 0))
    assert not refine_by_intensity(tiles, gray_view(Image(template_pixels)), far, max_motion_px=3).kept


def test_refinement_whose_steps_end_nowhere_is_not_kept(template_pixels, monkeypatch):
    def nowhere(*_):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr("tiepoint.registration.refinement._align", nowhere)
    gray, start = gray_view(Image(template_pixels)), Transform.identity()
    found = refine_by_intensity(prepare_template(gray), gray, start, max_motion_px=3)
    assert not found.kept
    assert found.transform is start


def test_agreement_of_an_image_with_itself_and_with_another(template_pixels):
    gray = gray_view(Image(template_pixels))
    alike = Likeness(gray)
    same = alike((gray * 0.6).astype(np.uint8), Transform.identity())
    assert same.structure > 0.95
    assert same.overlap == pytest.approx(1, abs=0.01)
    other = alike(gray_view(Image(drawn(seed=9))), Transform.identity())
    assert abs(other.structure) < 0.2


def test_warp_keeps_depth_and_marks_what_the_source_does_not_cover():
    source = np.full((40, 60), 60_000, np.uint16)
    shift = Transform.from_parameters(shift_px=(10, 5))
    warped = warp_image(Image(source), shift, (80, 50))
    valid = valid_mask((60, 40), shift, (80, 50))
    expected = np.zeros((50, 80), bool)
    expected[5:45, 10:70] = True
    np.testing.assert_array_equal(valid, expected)
    assert warped.pixels.dtype == np.uint16
    np.testing.assert_array_equal(warped.pixels, np.where(expected, 60_000, 0))


def test_nearest_mixes_no_labels():
    labels = np.zeros((60, 80), np.uint8)
    labels[10:40, 20:60] = 7
    turn = Transform.from_parameters(rotation_deg=10, scale=0.3, centre=(40, 30))
    assert set(np.unique(warp_image(Image(labels), turn, (80, 60)).pixels)) > {0, 7}
    warped = warp_image(Image(labels), turn, (80, 60), interpolation="nearest")
    assert set(np.unique(warped.pixels)) == {0, 7}


def test_false_alarms_worked_by_hand():
    """n = 10, k = 6, m = 4, p = 0.01: 6 * C(10,6) * C(6,4) * 1e-4 = 6 * 210 * 15 * 1e-4 = 1.89."""
    assert 10 ** log10_false_alarms(10, 6, 4, 0.01) == pytest.approx(1.89)
    assert log10_false_alarms(10, 4, 4, 0.01) == np.inf
    square = np.random.default_rng(0).uniform(0, 100, (4000, 2)).astype(np.float32)
    # A uniform square of side L has a standard deviation of L / sqrt(12) along each axis.
    assert chance_of_inlier(square, 3) == pytest.approx(np.pi * 9 / (16 * 100**2 / 12), rel=0.05)
