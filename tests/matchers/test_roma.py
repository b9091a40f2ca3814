from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiepoint.images import Image  # noqa: E402
from tiepoint.matchers import roma_network  # noqa: E402
from tiepoint.matchers.base import MatcherOptions  # noqa: E402
from tiepoint.matchers.roma import (  # noqa: E402
    PRESETS,
    ROMA_SMALL_CONFIG,
    SMALL_PRESETS,
    Roma,
    RomaOptions,
    build_roma,
    build_roma_small,
    options_for,
)
from tiepoint.matchers.roma_network import (  # noqa: E402
    GaussianProcess,
    RefinerBlock,
    RomaConfig,
    RomaNetwork,
    decode_anchors,
    pixel_grid,
)
from tiepoint.weights.store import WeightsError  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Maps this small gain nothing from more, and waiting threads cost much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_network(seed: int = 0) -> RomaNetwork:
    torch.manual_seed(seed)
    return RomaNetwork(ROMA_SMALL_CONFIG)


@pytest.fixture(scope="module")
def roma() -> Roma:
    return Roma(small_network(), RomaOptions(resolution_px=56, upsample_px=80, num_matches=300))


def picture(height: int, width: int, seed: int = 0) -> Image:
    generator = np.random.default_rng(seed)
    rough = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.repeat(np.repeat(rough, 8, 0), 8, 1)[:height, :width]
    return Image(np.ascontiguousarray(smooth))


def test_published_network_has_the_published_size() -> None:
    with torch.device("meta"):
        network = RomaNetwork(RomaConfig())
    own = {key: t for key, t in network.state_dict().items() if not key.startswith("trunk.")}
    trunk = dict(network.trunk.state_dict().items())
    assert len(own) == 603
    assert sum(p.numel() for key, p in network.named_parameters() if not key.startswith("trunk.")) == 111_288_336
    assert len(trunk) == 343
    assert sum(t.numel() for t in trunk.values()) == 304_368_640


def test_gaussian_process_returns_the_targets_where_features_are_distinct() -> None:
    """Features all orthogonal, temperature small: the kernel is near the identity, so E comes back / 1.1."""
    process = GaussianProcess(16)
    features = torch.eye(20).view(1, 20, 4, 5)
    posterior = process.posterior(features)
    mean = process(features, features, posterior)
    positions = torch.cos(8 * torch.pi * process.pos_conv(pixel_grid((4, 5), features)))
    torch.testing.assert_close(mean, positions.flatten(2).transpose(1, 2) / 1.1, atol=0.2, rtol=0)


def test_anchor_of_a_corner_keeps_to_its_corner_when_mended() -> None:
    logits = torch.full((1, 64), -20.0)
    logits[0, 8] = 5.0  # row 1, column 0 of 8 x 8
    logits[0, 7] = 4.5  # row 0, column 7: its neighbour in memory, at the opposite edge of the picture
    torch.testing.assert_close(decode_anchors(logits, rim_wraps=False), torch.tensor([[-0.875, -0.625]]))
    assert decode_anchors(logits, rim_wraps=True)[0, 0] > -0.5


def test_refiner_in_strips_equals_itself_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = RefinerBlock(8).eval()
    maps = torch.randn(1, 8, 23, 11).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        whole = block(maps)
        monkeypatch.setattr(roma_network, "KEPT_BYTES", 0)
        for rows in (1, 2, 5, 22, 40):
            monkeypatch.setattr(roma_network, "STRIP_BYTES", maps.nbytes * rows // 23 + 1)
            torch.testing.assert_close(block(maps), whole, atol=1e-6, rtol=1e-5)


def test_two_views_of_any_sizes_give_a_warp_and_matches(roma: Roma) -> None:
    image0, image1 = picture(90, 130), picture(60, 40, 1)
    encoding0, encoding1 = roma.encode(image0), roma.encode(image1)
    dense = roma.match_dense(encoding0, encoding1)
    assert dense.warp.shape == (80, 160, 4)
    assert dense.certainty.shape == (80, 160)
    assert np.abs(dense.warp).max() <= 1
    assert dense.certainty.min() >= 0
    assert dense.certainty.max() <= 1
    assert dense.size0 == (130, 90)
    assert dense.extent0 == (1.0, round(90 * 80 / 130) / 80)
    assert dense.extent1 == (round(40 * 80 / 60) / 80, 1.0)
    matches = roma(image0, image1)
    assert len(matches) == 300
    for points, (width, height) in ((matches.points0, (130, 90)), (matches.points1, (40, 60))):
        assert (points >= -0.5 - 1e-3).all()
        assert (points <= np.array([width, height]) - 0.5 + 1e-3).all()


def test_padding_has_no_certainty(roma: Roma) -> None:
    dense = roma.match_dense(roma.encode(picture(40, 160)), roma.encode(picture(160, 40, 1)))
    own0, there = dense.warp[:, :80, :2], dense.warp[:, :80, 2:]
    in_padding = (own0[..., 1] > 2 * dense.extent0[1] - 1) | (there[..., 0] > 2 * dense.extent1[0] - 1)
    assert in_padding.mean() > 0.5
    assert (dense.certainty[:, :80][in_padding] == 0).all()


def test_swapping_the_images_swaps_the_result(roma: Roma) -> None:
    encoding0, encoding1 = roma.encode(picture(80, 120)), roma.encode(picture(100, 90, 1))
    one, other = roma.match_dense(encoding0, encoding1), roma.match_dense(encoding1, encoding0)
    np.testing.assert_array_equal(one.certainty[:, :80], other.certainty[:, 80:])
    np.testing.assert_array_equal(one.warp[:, :80], other.warp[:, 80:][..., [2, 3, 0, 1]])


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (200, 7)])
def test_tiny_pictures_have_an_encoding(roma: Roma, size: tuple[int, int]) -> None:
    matches = roma(picture(*size), picture(90, 130))
    assert matches.size0 == size[::-1]
    assert np.isfinite(matches.points0).all()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_blank_pictures_match_nothing(roma: Roma, value: int) -> None:
    blank = Image(np.full((70, 90), value, np.uint8))
    assert len(roma(blank, picture(90, 130))) == 0
    assert len(roma(picture(90, 130), blank)) == 0
    assert len(roma(blank, blank)) == 0


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_and_grey_pictures_are_taken(roma: Roma, dtype: type) -> None:
    pixels = picture(90, 130).pixels[..., 0].astype(dtype)
    assert len(roma(Image(pixels), picture(90, 130))) == 300


def test_bfloat16_stays_near_float32() -> None:
    options = RomaOptions(resolution_px=112, upsample_px=None)
    image0, image1 = picture(112, 112), picture(112, 112, 1)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        roma = Roma(small_network(), options, dtype=dtype)
        results.append(roma.match_dense(roma.encode(image0), roma.encode(image1)))
    gap_px = np.abs(results[1].warp - results[0].warp) * 56
    assert np.median(gap_px) < 0.5
    assert np.abs(results[1].certainty - results[0].certainty).mean() < 0.1


def test_all_parameters_learn() -> None:
    """One step of training reaches every parameter through `encode`, `coarse_match` and `refine`."""
    network = small_network().train()
    first, second = (network.encode(torch.randn(2, 3, 112, 112)) for _ in range(2))
    coarse = network.coarse_match(first, second)
    loss = coarse.logits.logsumexp(-1).mean() + coarse.certainty.square().mean()
    for step in network.refine(first, second, coarse.warp, coarse.certainty, (16, 8, 4, 2, 1)):
        loss = loss + step.warp.square().mean() + step.certainty.square().mean()
    loss.backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.slow
def test_training_overfits_a_shift() -> None:
    """The coarse stage learns which anchors a shifted picture's tokens lie at."""
    torch.manual_seed(0)
    config = replace(ROMA_SMALL_CONFIG, anchors_per_side=8)
    network = RomaNetwork(config).train()
    scene = torch.randn(1, 3, 14, 21).repeat_interleave(16, 2).repeat_interleave(16, 3)
    image0, image1 = scene[..., :112, :112], scene[..., :112, 32:144]  # image1(x) = image0(x + 32)
    target = pixel_grid((7, 7), scene)[0] - torch.tensor([2 * 32 / 112, 0]).view(2, 1, 1)
    inside = (target.abs() <= 1).all(0).flatten()
    column, row = ((target + 1) * 4).long().clamp(0, 7)
    labels = (row * 8 + column).flatten()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    for _ in range(60):
        coarse = network.coarse_match(network.encode(image0), network.encode(image1))
        loss = torch.nn.functional.cross_entropy(coarse.logits[0, inside], labels[inside])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (coarse.logits[0, inside].argmax(-1) == labels[inside]).float().mean() > 0.9


def test_presets_follow_the_size_allowed() -> None:
    assert options_for(MatcherOptions(), PRESETS, 864) == RomaOptions()
    assert options_for(MatcherOptions(max_size_px=863), PRESETS, 864).upsample_px is None
    assert options_for(MatcherOptions(max_size_px=300, max_num_keypoints=7), PRESETS, 864) == RomaOptions(
        resolution_px=224, upsample_px=None, num_matches=7
    )
    with pytest.raises(ValueError, match="at least 224"):
        options_for(MatcherOptions(max_size_px=200), PRESETS, 864)
    assert options_for(MatcherOptions(), SMALL_PRESETS, 448) == RomaOptions(resolution_px=224, upsample_px=448)


@pytest.mark.parametrize("wrong", [{"resolution_px": 500}, {"upsample_px": 400}, {"upsample_px": 860}])
def test_wrong_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected a multiple"):
        RomaOptions(**wrong)


def test_building_from_a_file_of_this_project(tmp_path: Path) -> None:
    path = tmp_path / "roma_small.pt"
    torch.save(small_network().state_dict(), path)
    roma = build_roma_small(MatcherOptions(weights=str(path), max_size_px=224, max_num_keypoints=50))
    assert roma.name == "roma-small"
    assert not roma.network.config.rim_wraps
    assert len(roma(picture(90, 130), picture(90, 130, 1))) == 50


def test_building_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIEPOINT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="roma_outdoor"):
        build_roma(MatcherOptions(weights="roma_outdoor"))
    path = tmp_path / "other.pt"
    torch.save({"trunk.cls_token": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="does not fit RomaNetwork"):
        build_roma_small(MatcherOptions(weights=str(path)))
    with pytest.raises(ValueError, match="bf16 or fp32"):
        build_roma_small(MatcherOptions(weights=str(path), precision="fp16"))
