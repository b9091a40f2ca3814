"""RoMa against the published implementation: stored outputs, and romatch itself where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiepoint.images import Image  # noqa: E402
from tiepoint.matchers.roma import IMAGENET_DEVIATION, IMAGENET_MEAN, Roma, RomaOptions  # noqa: E402
from tiepoint.matchers.roma_network import (  # noqa: E402
    Pyramid,
    RomaConfig,
    RomaNetwork,
    decode_anchors,
    pixel_grid,
)
from tiepoint.weights.store import load_strictly  # noqa: E402

PARITY = Path(__file__).parents[1] / "parity"
TOKENS = (8, 12)


@pytest.fixture(scope="module")
def fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def states(fill: ModuleType) -> dict[str, dict[str, torch.Tensor]]:
    case, _ = fill.load_case(PARITY / "roma" / "coarse.json")
    return {
        part: {
            key: torch.from_numpy(value) for key, value in fill.make_weights(case["weights"][part]).items()
        }
        for part in ("roma", "dinov2")
    }


def build(states: dict[str, dict[str, torch.Tensor]]) -> RomaNetwork:
    """The published network, loaded strictly from both published state dicts."""
    network = RomaNetwork(RomaConfig())
    trunk = {f"trunk.{key}": value for key, value in states["dinov2"].items()}
    load_strictly(network, states["roma"] | trunk, "parity")
    return network.eval()


def frames(*pictures: np.ndarray) -> torch.Tensor:
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    values = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures])
    return (values.float() / 255 - mean) / deviation


def swapped(pyramid: Pyramid) -> Pyramid:
    maps = {scale: features.flip(0) for scale, features in pyramid.maps.items()}
    posterior = None if pyramid.posterior is None else pyramid.posterior.flip(0)
    return Pyramid(size=pyramid.size, maps=maps, posterior=posterior)


def symmetric(warp: torch.Tensor, certainty: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    grid = pixel_grid(warp.shape[-2:], warp)[0]
    both = torch.cat([torch.cat([grid, warp[0]]), torch.cat([warp[1], grid])], 2)
    return both.permute(1, 2, 0).numpy(), torch.cat([certainty[0], certainty[1]], 1).numpy()


@pytest.mark.parametrize("rim_wraps", [True, False])
def test_anchors_decode_as_published_or_mended(fill: ModuleType, rim_wraps: bool) -> None:
    case, expected = fill.load_case(PARITY / "roma" / "anchors.json")
    logits = torch.from_numpy(fill.make_inputs(case["inputs"])["logits"]).permute(0, 2, 3, 1)
    fill.compare(case, expected, "mode", logits.argmax(-1).numpy())
    name = "warp_reference" if rim_wraps else "warp_mended"
    fill.compare(case, expected, name, decode_anchors(logits, rim_wraps=rim_wraps).numpy())


@pytest.mark.slow
@torch.inference_mode()
def test_every_stage_agrees(fill: ModuleType, states: dict[str, dict[str, torch.Tensor]]) -> None:
    network = build(states)
    case, expected = fill.load_case(PARITY / "roma" / "coarse.json")
    inputs = fill.make_inputs(case["inputs"])
    images = frames(inputs["image0"], inputs["image1"])

    def check(name: str, value: torch.Tensor) -> None:
        fill.compare(case, expected, name, value.numpy())

    check("dino_block0", network.trunk.blocks[0](network.trunk.embed(images)))
    check("dino", network.trunk(images))
    for stride, features in network.encoder.cnn(images).items():
        check(f"vgg{stride}", features)
    pyramid = network.encode(images)
    other = swapped(pyramid)
    mean = network.decoder.gps["16"](pyramid.maps[16], other.maps[16], other.posterior)
    check("gp", mean.transpose(1, 2).unflatten(2, TOKENS))
    coarse = network.coarse_match(pyramid, other)
    check("logits", coarse.logits.transpose(1, 2).unflatten(2, TOKENS))
    check("coarse_certainty", coarse.certainty)
    check("mode", coarse.logits.argmax(-1).unflatten(1, TOKENS))
    check("anchor_warp", coarse.warp.permute(0, 2, 3, 1))
    for step in network.refine(pyramid, other, coarse.warp, coarse.certainty, (16, 8, 4, 2, 1)):
        check(f"warp{step.scale}", step.warp)
        check(f"certainty{step.scale}", step.certainty)


@pytest.mark.slow
@pytest.mark.parametrize("prepared", [False, True])
@torch.inference_mode()
def test_results_agree_in_both_forms(
    fill: ModuleType, states: dict[str, dict[str, torch.Tensor]], prepared: bool
) -> None:
    network = build(states)
    if prepared:
        network.prepare_inference(torch.float32)
    case, expected = fill.load_case(PARITY / "roma" / "coarse.json")
    inputs = fill.make_inputs(case["inputs"])
    pyramid = network.encode(frames(inputs["image0"], inputs["image1"]))
    warp, certainty = symmetric(*network.match(pyramid, swapped(pyramid)))
    fill.compare(case, expected, "warp", warp)
    fill.compare(case, expected, "certainty", certainty)

    case, expected = fill.load_case(PARITY / "roma" / "upsampled.json")
    inputs = fill.make_inputs(case["inputs"])
    images = frames(inputs["high0"], inputs["high1"])
    fine = network.encode(images, coarse=False)
    for stride, features in () if prepared else network.encoder.cnn(images).items():
        fill.compare(case, expected, f"vgg{stride}", features.numpy())
    coarse = network.coarse_match(pyramid, swapped(pyramid))
    first = network.refine(pyramid, swapped(pyramid), coarse.warp, coarse.certainty, (16, 8, 4, 2, 1))[-1]
    for step in network.refine(fine, swapped(fine), first.warp, first.certainty, (8, 4, 2, 1)):
        fill.compare(case, expected, f"warp{step.scale}", step.warp.numpy())
        fill.compare(case, expected, f"certainty{step.scale}", step.certainty.numpy())
    warp, certainty = symmetric(*network.match(pyramid, swapped(pyramid), (fine, swapped(fine))))
    fill.compare(case, expected, "warp", warp)
    fill.compare(case, expected, "certainty", certainty)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # romatch's own
def test_agrees_with_romatch_from_the_same_pictures(
    fill: ModuleType, states: dict[str, dict[str, torch.Tensor]]
) -> None:
    """Preprocessing included: pictures of two sizes squashed to the square, second pass, symmetric output."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # what its import misses beside a CPU torch
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    romatch = pytest.importorskip("romatch", exc_type=ImportError)
    pillow = pytest.importorskip("PIL.Image")
    pictures = [fill.photo(150, 220, 3, 5), fill.photo(190, 180, 3, 5)]
    reference = romatch.roma_outdoor(
        "cpu",
        weights=states["roma"],
        dinov2_weights=states["dinov2"],
        coarse_res=112,
        upsample_res=168,
        amp_dtype=torch.float32,
        use_custom_corr=False,
    )
    warp, certainty = reference.match(*(pillow.fromarray(picture) for picture in pictures), device="cpu")
    roma = Roma(build(states), RomaOptions(resolution_px=112, upsample_px=168, fit="squash"))
    ours = roma.match_dense(*(roma.encode(Image(picture)) for picture in pictures))
    # Anchors of nearly equal probability may be told apart differently; none is here.
    np.testing.assert_allclose(ours.warp, warp[0].numpy(), atol=2e-5)
    inside = (
        np.abs(np.abs(ours.warp).max(-1) - 1) > 1e-4
    )  # on the border, rounding decides between 0 and more
    np.testing.assert_allclose(ours.certainty[inside], certainty[0].numpy()[inside], atol=2e-3)
