"""Registration's protocol: a drawn case end to end, figures worked by hand, pairs that may be called unrelated."""

import cv2
import numpy as np
import pytest

from tiepoint.evaluation.contestants import CatalogueMethod, Oracle
from tiepoint.evaluation.pairs import PlanePair, UnknownPair
from tiepoint.evaluation.registration import RegistrationTrust, interval95, upper_bound95
from tiepoint.evaluation.registration_pairs import (
    MirroredSource,
    PatternSource,
    TiledSource,
    WarpedSource,
    registration_pairs,
)
from tiepoint.evaluation.session import run_session
from tiepoint.geometry import Transform
from tiepoint.matchers import MatcherOptions


def label(seed, size=(320, 240)):
    """Boxes, discs and letters on a plain ground."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), 150, np.uint8)
    for _ in range(40):
        x, y, w, h = (int(v) for v in rng.uniform((0, 0, 6, 6), (*size, 40, 40)))
        cv2.rectangle(pixels, (x, y), (x + w, y + h), rng.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
    for row in range(4):
        text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVWXYZ0123456789"), 10))
        cv2.putText(pixels, text, (10, 40 + 55 * row), cv2.FONT_HERSHEY_SIMPLEX, 1, (20, 20, 20), 2, cv2.LINE_AA)
    return pixels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sequences of one picture each beside the template, three photographs to be different, two to be warped."""
    root = tmp_path_factory.mktemp("data")
    turn = Transform.from_parameters(rotation_deg=7, scale=1.03, centre=(160, 120))
    for number, name in enumerate(("one", "two")):
        folder = root / "eval/homography/labels" / name
        folder.mkdir(parents=True)
        pixels = label(number)
        cv2.imwrite(str(folder / "1.png"), pixels)
        cv2.imwrite(str(folder / "2.png"), cv2.warpPerspective(pixels, turn.matrix, (320, 240), flags=cv2.INTER_CUBIC))
        np.savetxt(folder / "H_1_2", turn.matrix)
    for kind, seeds in (("train", range(10, 13)), ("val", range(20, 22))):
        (root / kind).mkdir()
        for seed in seeds:
            cv2.imwrite(str(root / kind / f"{seed}.png"), label(seed))
    return root


def test_a_drawn_case_from_pairs_to_files(data, tmp_path):
    pairs = registration_pairs(data, unrelated=20, subset=2)
    methods = [CatalogueMethod("sift", MatcherOptions())]
    report = run_session(RegistrationTrust(), methods, pairs, data=data, out=tmp_path)

    def rows(table):
        return [dict(zip(report.tables[table].columns, row, strict=True)) for row in report.tables[table].rows]

    (related,) = rows("related")
    assert (related["set"], related["solvable"], related["of them accepted"], related["wrong"]) == (
        "labels",
        2,
        2,
        0,
    )
    assert related["largest error px"] < 0.2
    assert rows("unrelated")[-1]["pairs"] == 20
    assert rows("unrelated")[-1]["accepted"] == 0
    assert rows("unrelated")[-1]["share below %"] == pytest.approx(100 * (1 - 0.05 ** (1 / 20)))
    (calibration,) = rows("calibration")
    assert (calibration["set"], calibration["accepted"]) == ("known warps", 4)
    assert calibration["below bound %"] == calibration["common area %"] == 100
    (refinement,) = rows("refinement")
    assert refinement["after / before"] < 0.6
    assert refinement["after px"] < 0.1
    assert "wrong" not in report.tables
    assert (tmp_path / "result.json").is_file()
    assert report.figures["calibration"][0].curves[0].style == "points"


@pytest.mark.parametrize("options", [MatcherOptions(look="multiscale", max_size_px=320), MatcherOptions(four_way=True)])
def test_methods_are_registered_with_their_own_options(data, tmp_path, options):
    pairs = registration_pairs(data, unrelated=0, subset=1)[:1]
    report = run_session(RegistrationTrust(), [CatalogueMethod("sift", options)], pairs, data=data, out=tmp_path)
    table = report.tables["related"]
    assert table.rows[0][table.columns.index("of them accepted")] == 1


def test_an_oracle_cannot_be_registered(data, tmp_path):
    pairs = registration_pairs(data, unrelated=0, subset=1)[:1]
    with pytest.raises(ValueError, match="expected a method of the catalogue, got oracle"):
        run_session(RegistrationTrust(), [Oracle(0.0)], pairs, data=data, out=tmp_path)


def test_pairs_are_as_many_as_asked_and_none_twice(data):
    pairs = registration_pairs(data, unrelated=31, subset=2)
    related = [pair for pair in pairs if isinstance(pair, PlanePair)]
    unrelated = [pair for pair in pairs if isinstance(pair, UnknownPair)]
    assert (len(related), len(unrelated)) == (2 + 4, 31)
    assert len({pair.key for pair in pairs}) == len(pairs)
    assert [pair.key for pair in registration_pairs(data, unrelated=31, subset=2)] == [pair.key for pair in pairs]


def test_what_shows_the_same_is_never_called_unrelated(tmp_path):
    names = ["deeppcb/00041041", "deeppcb/00041090", "deeppcb/12000001", "homogr/LePoint1", "homogr/LePoint3"]
    for name in [*names, "mvtec_screw/good_000", "mvtec_screw/good_021"]:
        folder = tmp_path / "eval/homography" / name
        folder.mkdir(parents=True)
        for k in "12":
            cv2.imwrite(str(folder / f"{k}.png"), label(0, (64, 64)))
        np.savetxt(folder / "H_1_2", np.eye(3))
    for kind in ("train", "val"):
        (tmp_path / kind).mkdir()
        cv2.imwrite(str(tmp_path / kind / "0.png"), label(1, (64, 64)))
    like = [{"00041041", "00041090"}, {"LePoint1", "LePoint3"}, {"good_000", "good_021"}]
    others = [pair for pair in registration_pairs(tmp_path, unrelated=500) if pair.subset == "other"]
    assert others
    for pair in others:
        shown = {pair.source0.path.parent.name, pair.source1.path.parent.name}
        assert len(shown) == 2
        assert shown not in like


def test_a_warped_photograph_lies_where_its_frame_says(data):
    path = data / "val/20.png"
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2GRAY)
    frame = WarpedSource(path, 3).read()
    height, width = pixels.shape
    back = cv2.warpPerspective(frame.image.pixels, frame.frame_from_file.inverse().matrix, (width, height))
    gray = cv2.cvtColor(back, cv2.COLOR_RGB2GRAY)
    assert np.corrcoef(gray[8:-8, 8:-8].ravel(), pixels[8:-8, 8:-8].ravel())[0, 1] > 0.9
    np.testing.assert_array_equal(WarpedSource(path, 3).read().image.pixels, frame.image.pixels)
    assert WarpedSource(path, 4).read().image.pixels.shape != frame.image.pixels.shape


def test_made_pictures_are_what_they_are_called(data):
    path = data / "val/20.png"
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(MirroredSource(path).read().image.pixels, pixels[:, ::-1])
    tiled = TiledSource(path, 4).read().image.pixels
    height, width = tiled.shape[0] // 4, tiled.shape[1] // 4
    np.testing.assert_array_equal(tiled[:height, :width], tiled[-height:, -width:])
    assert np.ptp(PatternSource("blank", 0).read().image.pixels) == 0
    for name in ("noise", "chequer", "stripes", "dots"):
        assert PatternSource(name, 0).read().image.pixels.std() > 1


def test_confidence_bounds_worked_by_hand():
    assert upper_bound95(0, 5000) == pytest.approx(3 / 5000, rel=0.01)  # the rule of three
    assert upper_bound95(0, 0) == 1
    assert interval95(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert interval95(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert upper_bound95(10, 10) == pytest.approx(1)
