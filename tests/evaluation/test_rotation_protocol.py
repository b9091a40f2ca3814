"""Rotated pictures and their exact maps, the archive's layout, oracles over the circle."""

import cv2
import numpy as np
import pytest

from tiepoint.evaluation.contestants import CatalogueMethod, Oracle
from tiepoint.evaluation.rotation import ANGLES_DEG, Rotation, rotation_pairs
from tiepoint.evaluation.session import run_session
from tiepoint.evaluation.sources import QuarterTurnedSource, TurnedSource
from tiepoint.matchers import MatcherOptions


def picture(width=90, height=60, seed=0):
    noise = np.random.default_rng(seed).normal(0, 1, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.2)
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photograph.png"
    cv2.imwrite(str(path), picture())
    return path


def test_a_right_angle_on_the_expanded_canvas_is_exact(photograph):
    frame = TurnedSource(photograph, 90, expand=True).read()
    np.testing.assert_array_equal(frame.image.pixels, np.rot90(picture(), k=-1))  # clockwise
    np.testing.assert_allclose(frame.frame_from_file(np.array([[0.0, 0]])), [[59, 0]], atol=1e-9)


def test_a_whole_turn_is_the_picture_itself(photograph):
    np.testing.assert_array_equal(TurnedSource(photograph, 360).read().image.pixels, picture())


def test_the_expanded_canvas_holds_all_of_it(photograph):
    for angle in ANGLES_DEG:
        frame = TurnedSource(photograph, angle, expand=True).read()
        corners = frame.frame_from_file(np.array([[0.0, 0], [89, 0], [89, 59], [0, 59]]))
        assert (corners > -1e-6).all()
        assert (corners < np.array(frame.image.size) - 1 + 1e-6).all()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_take_pixels_where_they_say(photograph, turns):
    frame = QuarterTurnedSource(photograph, turns).read()
    (x, y), pixels = frame.frame_from_file(np.array([[17.0, 5]]))[0], frame.image.pixels
    assert pixels[round(y), round(x)] == picture()[5, 17]
    np.testing.assert_array_equal(pixels, np.rot90(picture(), k=turns))


def test_oracles_and_sift_over_the_circle(photograph, tmp_path):
    pairs = rotation_pairs(photograph.parent)
    assert len(pairs) == 2 * 36
    methods = [Oracle(0.0), Oracle(1.0), CatalogueMethod("sift", MatcherOptions())]
    report = run_session(Rotation(), methods, pairs, data=photograph.parent, out=tmp_path / "out")
    table = report.tables["rotation"]
    rows = {row[:1] + row[2:3]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    exact = rows["same canvas", "oracle, noise 0 px"]
    assert (exact["MMA@3/5/10"], exact["worst angle MMA@3"]) == ((100, 100, 100), 100)
    expected = 100 * (1 - np.exp(-(3**2) / 2))
    assert rows["expanded canvas", "oracle, noise 1 px"]["MMA@3/5/10"][0] == pytest.approx(expected, abs=0.5)
    assert rows["expanded canvas", "sift"]["MMA@3/5/10"][0] > 80
    assert rows["expanded canvas", "sift"]["total points"] > 20
    chart = report.figures["rotation"][0]
    assert chart.curves[0].x[0] == 0
    assert list(chart.curves[0].x[1:]) == list(ANGLES_DEG)


def test_the_archive_is_taken_as_it_is(tmp_path):
    scene = tmp_path / "v_bark"
    scene.mkdir()
    for angle in (0, 10, 350):
        cv2.imwrite(str(scene / f"1_rot{angle}.jpg"), picture())
        turn = cv2.getRotationMatrix2D((44.5, 29.5), -angle, 1)
        np.savetxt(scene / f"1_rot{angle}.txt", np.vstack([turn, [0, 0, 1]]))
    pairs = rotation_pairs(tmp_path)
    assert [(pair.angle_deg, pair.subset) for pair in pairs] == [(10, "Roto-360"), (350, "Roto-360")]
    # OpenCV's angle is counter-clockwise as displayed, so -10 is clockwise: x turns towards y.
    moved = pairs[0].truth(np.array([[54.5, 29.5]]))[0]
    np.testing.assert_allclose(moved, [44.5 + 10 * np.cos(np.pi / 18), 29.5 + 10 * np.sin(np.pi / 18)], atol=1e-6)


def test_a_folder_without_pictures_says_so(tmp_path):
    with pytest.raises(ValueError, match="no pictures"):
        rotation_pairs(tmp_path)
