"""LoFTR as a matcher: frames, sizes, limits, and kornia's implementation where it is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from tiepoint.images import Image  # noqa: E402
from tiepoint.matchers import loftr  # noqa: E402
from tiepoint.matchers.base import MatcherOptions  # noqa: E402
from tiepoint.matchers.loftr import Loftr, LoftrOptions, build_loftr, load_loftr, settings_of  # noqa: E402
from tiepoint.networks.loftr import CONFIGS, SMALL, LoftrConfig, LoftrNetwork  # noqa: E402
from tiepoint.weights.catalogue import WEIGHTS  # noqa: E402
from tiepoint.weights.store import WeightsError, find_weights  # noqa: E402

PARITY = Path(__file__).parents[1] / "parity"


def load_fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill = load_fill()


@pytest.fixture(scope="module")
def state():
    """Random weights under which matches are found."""
    case, _ = fill.load_case(PARITY / "loftr" / "dual_softmax_fixed.json")
    return {key: torch.from_numpy(value) for key, value in fill.make_weights(case["weights"]).items()}


def network(state, **changes):
    made = LoftrNetwork(LoftrConfig(threshold=0.02, **changes))
    made.load_state_dict(state, strict=True)
    return made.eval()


@pytest.fixture(scope="module")
def small():
    """The small form with random weights, so low a threshold that something always matches."""
    torch.manual_seed(0)
    return LoftrNetwork(replace(SMALL, threshold=1e-9, border_cells=0)).eval()


OWN_SIZE = LoftrOptions(max_enlargement=1.0)


@pytest.fixture(scope="module")
def photo():
    return fill.photo(120, 160, 1, 5)


def test_an_image_matches_itself_where_it_is(state, photo):
    matches = Loftr(network(state, frame="index"), OWN_SIZE)(Image(photo), Image(photo))
    assert len(matches) > 20
    # Random weights find the cell, and leave the place within it to chance.
    assert (np.abs(matches.points0 - matches.points1) <= 4).mean() > 0.9
    assert (matches.points0 % 8 == 0).all()
    assert matches.size0 == matches.size1 == (160, 120)
    assert matches.method == "loftr"


@pytest.mark.parametrize(("frame", "shift"), [("index", 0.0), ("corner", 0.5)])
def test_points_are_those_of_the_full_size_image(state, photo, frame, shift):
    """Cell (column, row) of an image seen at half its size is the point 16 (column, row) between pixel corners."""
    large = cv2.resize(photo, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    matcher = Loftr(network(state, frame=frame), LoftrOptions(max_size_px=160))
    matches = matcher(Image(large), Image(photo))
    same = matcher(Image(photo), Image(photo))
    np.testing.assert_allclose(matches.points1, same.points1, atol=1e-3)
    np.testing.assert_allclose((matches.points0 + 0.5) / 2, same.points0 + 0.5, atol=1e-3)
    np.testing.assert_allclose((same.points0 + shift) % 8, 0, atol=1e-4)


@pytest.mark.parametrize("size0", [(1, 1), (2, 9), (8, 8), (40, 33), (17, 200)])
@pytest.mark.parametrize("size1", [(1, 1), (61, 45)])
def test_any_size_has_an_answer_within_the_images(small, size0, size1):
    rng = np.random.default_rng(0)
    images = [Image(rng.integers(0, 256, size[::-1], dtype=np.uint8)) for size in (size0, size1)]
    matches = Loftr(small)(*images)
    for points, size in ((matches.points0, size0), (matches.points1, size1)):
        assert (points >= -0.5).all()
        assert (points <= np.array(size) - 0.5).all()
    assert matches.points0.dtype == matches.points1.dtype == matches.scores.dtype == np.float32
    assert ((matches.scores >= 0) & (matches.scores <= 1)).all()


def test_a_blank_image_matches_nothing(photo):
    matcher = Loftr(LoftrNetwork(replace(SMALL, threshold=0.2)).eval())
    blank = Image(np.full((96, 128), 90, np.uint8))
    assert len(matcher(blank, Image(photo))) == 0
    assert len(matcher(blank, blank)) == 0


def test_colour_and_depth_are_taken(small, photo):
    wanted = Loftr(small)(Image(photo), Image(photo))
    for pixels in (np.repeat(photo[..., None], 3, 2), np.dstack([photo] * 3 + [np.full_like(photo, 255)])):
        found = Loftr(small)(Image(pixels), Image(photo))
        np.testing.assert_array_equal(found.points0, wanted.points0)
    assert len(Loftr(small)(Image(photo.astype(np.uint16) * 257), Image(photo))) > 0


def test_the_best_matches_are_kept_in_order(small, photo):
    full = Loftr(small)(Image(photo), Image(photo))
    some = Loftr(small, LoftrOptions(max_num_matches=7))(Image(photo), Image(photo))
    assert len(some) == 7
    np.testing.assert_array_equal(np.sort(some.scores), np.sort(full.scores)[-7:])
    rows = [np.flatnonzero((full.points0 == point).all(axis=1))[0] for point in some.points0]
    assert rows == sorted(rows)


def test_a_batch_is_each_image_by_itself(small, photo):
    matcher = Loftr(small)
    images = [Image(photo), Image(photo[:64]), Image(np.ascontiguousarray(photo[:, ::-1]))]
    for image, encoding in zip(images, matcher.encode_batch(images), strict=True):
        alone = matcher.encode(image)
        torch.testing.assert_close(encoding.features.tokens, alone.features.tokens)
        assert encoding.size == alone.size == image.size


def test_named_weights_have_their_settings():
    named = {
        entry.name for entry in WEIGHTS.values() if entry.method == "loftr" and not entry.shipped
    }  # ours: by their card
    assert named <= CONFIGS.keys()
    assert CONFIGS["loftr-indoor-ds-new"].position_code == "fixed"
    assert CONFIGS["loftr-outdoor-ds"].position_code == "old"
    assert CONFIGS["loftr-outdoor-ot"].matching == "optimal_transport"
    assert settings_of("/tmp/outdoor_ot.ckpt", {}) == CONFIGS["loftr-outdoor-ot"]


def test_shipped_weights_are_set_up_by_their_card(monkeypatch):
    asked = []
    monkeypatch.setattr(loftr, "_settings_on_card", lambda card: asked.append(card) or SMALL)
    assert load_loftr("tiepoint-loftr").config == SMALL
    assert asked == [find_weights("tiepoint-loftr").with_suffix(".json")]


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {}}', '{"config": {"network": {"widths": [8, 8, 6]}}}'])
def test_a_card_that_is_not_loftrs_is_named(tmp_path, text):
    path = tmp_path / "mine.safetensors"
    save_file(LoftrNetwork(SMALL).state_dict(), path)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(WeightsError, match=r"mine\.json"):
        load_loftr(str(path))


@pytest.mark.parametrize("matching", ["dual_softmax", "optimal_transport"])
def test_a_file_says_how_it_is_set_up(tmp_path, matching):
    config = replace(SMALL, matching=matching, num_coarse_pairs=2)
    torch.save({"state_dict": LoftrNetwork(config).state_dict()}, tmp_path / "a.ckpt")
    matcher = build_loftr(MatcherOptions(weights=str(tmp_path / "a.ckpt"), max_size_px=320, max_num_keypoints=9))
    assert matcher.config == config
    assert matcher.options == LoftrOptions(max_size_px=320, max_num_matches=9)


def test_the_authors_weights_are_known_by_their_file_name(tmp_path):
    """Nothing in `indoor_ds.ckpt` tells it from `indoor_ds_new.ckpt`, whose position code is another."""
    published = {
        f"matcher.{name}": tensor for name, tensor in LoftrNetwork(CONFIGS["loftr-indoor-ds"]).state_dict().items()
    }
    for name in ("indoor_ds.ckpt", "renamed.ckpt"):
        torch.save({"state_dict": published}, tmp_path / name)
    assert load_loftr(str(tmp_path / "indoor_ds.ckpt")).config == CONFIGS["loftr-indoor-ds"]
    with pytest.raises(WeightsError, match=r"published under: .*indoor_ds\.ckpt"):
        load_loftr(str(tmp_path / "renamed.ckpt"))


def test_works_at_the_size_its_weights_were_made_for():
    network = load_loftr("tiepoint-loftr")
    assert Loftr(network).options == build_loftr(MatcherOptions()).options
    assert Loftr(network).options.max_size_px == network.config.max_size_px == 960


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="LoFTR"):
        build_loftr(MatcherOptions(weights=str(tmp_path / "other.pth")))


@pytest.mark.parametrize(
    "changes", [{"max_size_px": 0}, {"block": 0}, {"max_num_matches": -1}, {"max_enlargement": 0.5}]
)
def test_impossible_options_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        LoftrOptions(**changes)


@pytest.mark.parametrize("position_code", ["fixed", "old"])
@pytest.mark.parametrize("size1", [(160, 120), (136, 152)])
def test_kornia_finds_the_same_matches(state, position_code, size1):
    """Whole pictures at equal and unequal sizes, on random weights."""
    feature = pytest.importorskip("kornia.feature")
    picture0 = fill.photo(120, 160, 1, 201)
    picture1 = fill.warp(picture0, fill.second_view(120, 160, 3), size1[1], size1[0])
    threshold = 0.02 if position_code == "fixed" else 5e-4
    ours = LoftrNetwork(LoftrConfig(threshold=threshold, position_code=position_code, frame="index"))
    ours.load_state_dict(state, strict=True)
    matches = Loftr(ours.eval(), OWN_SIZE)(Image(picture0), Image(picture1))

    settings = kornia_settings(threshold, position_code == "fixed")
    theirs = feature.LoFTR(pretrained=None, config=settings)
    theirs.load_state_dict(state, strict=True)
    grays = [torch.from_numpy(picture.astype(np.float32) / 255)[None, None] for picture in (picture0, picture1)]
    with torch.no_grad():
        wanted = theirs.eval()({"image0": grays[0], "image1": grays[1]})
    assert len(matches) > 10
    np.testing.assert_array_equal(matches.points0, wanted["keypoints0"].numpy())
    np.testing.assert_allclose(matches.points1, wanted["keypoints1"].numpy(), atol=2e-3)
    np.testing.assert_allclose(matches.scores, wanted["confidence"].numpy(), atol=5e-4)


def kornia_settings(threshold, fixed):
    import copy

    from kornia.feature.loftr.loftr import default_cfg

    settings = copy.deepcopy(default_cfg)
    settings["coarse"]["temp_bug_fix"] = fixed
    settings["match_coarse"]["thr"] = threshold
    return settings
