"""SuperPoint: equal to the published networks, to its own plain form, and well behaved at every size."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from tiepoint.images import Image, resize  # noqa: E402
from tiepoint.matchers.superpoint import (  # noqa: E402
    Normalisation,
    SuperPoint,
    SuperPointConfig,
    keypoint_probability,
    load_superpoint,
    published_tensors,
    refined,
    sample_descriptors,
    suppress,
)
from tiepoint.matchers.superpoint_extractor import (  # noqa: E402
    SuperPointExtractor,
    SuperPointOptions,
    padded_input,
    strongest,
)
from tiepoint.matchers.superpoint_inference import PreparedSuperPoint  # noqa: E402
from tiepoint.weights import WeightsError  # noqa: E402

PARITY = Path(__file__).parents[1] / "parity"
VARIANTS = ["none", "before_relu", "after_relu"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parity_case(fill: ModuleType, name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], np.ndarray]:
    case, expected = fill.load_case(PARITY / "superpoint" / f"{name}.json")
    tensors = {key: torch.from_numpy(value) for key, value in fill.make_weights(case["weights"]).items()}
    return case, expected, tensors, fill.make_inputs(case["inputs"])["image"]


def random_network(normalisation: str, dim: int = 128, seed: int = 0) -> SuperPoint:
    """Lively random weights: every statistic and factor differs from its neutral value, some factors < 0."""
    torch.manual_seed(seed)
    network = SuperPoint(SuperPointConfig(descriptor_dim=dim, normalisation=normalisation))
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 4:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1:
            tensor.normal_(std=0.1).add_(1.0 if name.endswith("bn.weight") else 0.0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data[::7] *= -1
    network.detector[1].conv.weight.data *= 3
    return network.eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blurred noise, uint8."""
    rough = torch.rand(1, 1, height + 4, width + 4, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(rough, 5, stride=1)[0, 0]
    return (255 * (smooth - smooth.min()) / (smooth.max() - smooth.min()).clamp(min=1e-6)).byte().numpy()


# ---------------------------------------------------------------- published networks


@pytest.mark.parametrize("prepared", [False, True])
def test_parity_magicleap(fill: ModuleType, prepared: bool) -> None:
    case, expected, tensors, image = parity_case(fill, "magicleap")
    network = load_superpoint(tensors, "parity")
    assert network.config == SuperPointConfig(descriptor_dim=256, normalisation="none")
    run = PreparedSuperPoint(network, CPU, torch.float32) if prepared else network
    with torch.no_grad():
        maps = run(padded_input(image)[None])
    probability = keypoint_probability(maps.logits)
    config = case["config"]
    peaks = suppress(probability, config["nms_radius"])[0]
    keypoints, scores = strongest(peaks, 0.0, config["remove_borders"], config["max_keypoints"])
    fill.compare(case, expected, "probability", probability[0].numpy())
    fill.compare(case, expected, "keypoints", keypoints.numpy())
    fill.compare(case, expected, "scores", scores.numpy())
    fill.compare(case, expected, "coarse_descriptors", maps.descriptors[0].numpy())
    for sampler in ("legacy", "exact"):
        sampled = sample_descriptors(maps.descriptors[0], keypoints, sampler)
        fill.compare(case, expected, f"descriptors_{sampler}", sampled.numpy())


@pytest.mark.parametrize("prepared", [False, True])
def test_parity_gauss2(fill: ModuleType, prepared: bool) -> None:
    case, expected, tensors, image = parity_case(fill, "gauss2")
    network = load_superpoint(tensors, "parity")
    assert network.config.normalisation == "before_relu"
    run = PreparedSuperPoint(network, CPU, torch.float32) if prepared else network
    with torch.no_grad():
        maps = run(padded_input(image)[None])
    fill.compare(case, expected, "semi", maps.logits[0].numpy())
    fill.compare(case, expected, "desc", maps.descriptors[0].numpy())


@pytest.mark.parametrize(
    ("normalisation", "dim", "count", "num_tensors"),
    [
        ("none", 64, 1_251_521, 24),
        ("none", 128, 1_267_969, 24),
        ("none", 256, 1_300_865, 24),
        ("before_relu", 64, 1_254_339, 84),
        ("after_relu", 128, 1_270_915, 84),
        ("after_relu", 256, 1_304_067, 84),
    ],
)
def test_sizes(normalisation: str, dim: int, count: int, num_tensors: int) -> None:
    network = SuperPoint(SuperPointConfig(descriptor_dim=dim, normalisation=normalisation))
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert len(network.state_dict()) == num_tensors


def test_loading_names_what_does_not_fit(fill: ModuleType) -> None:
    tensors = parity_case(fill, "magicleap")[2]
    with pytest.raises(WeightsError, match="unknown: conv5a"):
        load_superpoint({**tensors, "conv5a.weight": torch.zeros(1)}, "file")
    with pytest.raises(WeightsError, match=r"missing: backbone\.3\.0\.conv\.bias"):
        load_superpoint({name: t for name, t in tensors.items() if name != "conv4a.bias"}, "file")
    with pytest.raises(WeightsError, match="is no SuperPoint"):
        load_superpoint({"fc.weight": torch.zeros(1)}, "file")


# ---------------------------------------------------------------- the prepared form


@pytest.mark.parametrize("normalisation", VARIANTS)
@pytest.mark.parametrize("size", [(8, 8), (8, 16), (24, 328), (248, 304), (480, 640)])
def test_prepared_form_is_equal(normalisation: str, size: tuple[int, int]) -> None:
    network = random_network(normalisation)
    images = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = network(images)
    prepared = PreparedSuperPoint(network, CPU, torch.float32)(images)
    scale = float(plain.logits.abs().max())
    assert float((prepared.logits - plain.logits).abs().max()) < 2e-5 * scale
    assert float((prepared.descriptors - plain.descriptors).abs().max()) < 2e-5


def test_half_precision_comes_near() -> None:
    network = random_network("after_relu")
    images = padded_input(picture(240, 320))[None]
    with torch.no_grad():
        plain = network(images)
    half = PreparedSuperPoint(network, CPU, torch.bfloat16)(images)
    assert half.logits.dtype == torch.float32
    assert float((half.descriptors * plain.descriptors).sum(1).min()) > 0.99


@pytest.mark.parametrize("normalisation", VARIANTS)
def test_trains(normalisation: str) -> None:
    network = SuperPoint(SuperPointConfig(descriptor_dim=64, normalisation=normalisation)).train()
    maps = network(torch.rand(2, 1, 32, 40))
    (maps.logits.square().mean() + maps.descriptors[:, :8].square().mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


# ---------------------------------------------------------------- decoding


def test_probability_worked_by_hand() -> None:
    logits = torch.full((1, 65, 2, 3), -20.0)
    logits[0, 8 * 5 + 6, 1, 2] = 20.0  # row 5, column 6 of cell (1, 2)
    probability = keypoint_probability(logits)
    assert probability.shape == (1, 16, 24)
    assert probability[0, 8 + 5, 16 + 6] == pytest.approx(1)
    assert probability[0, 0, 0] == pytest.approx(1 / 65)
    shuffled = F.pixel_shuffle(logits.softmax(1)[:, :-1], 8)
    assert torch.allclose(probability, shuffled[:, 0])


def pooled_suppression(scores: torch.Tensor, radius: int) -> torch.Tensor:
    """The two-round rule as it is written in the methods page, by pooling."""

    def mx(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, 2 * radius + 1, stride=1, padding=radius)

    mask = scores == mx(scores)
    for _ in range(2):
        near = mx(mask.float()) > 0
        rest = torch.where(near, torch.zeros_like(scores), scores)
        mask = mask | ((rest == mx(rest)) & ~near)
    return torch.where(mask, scores, torch.zeros_like(scores))


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (64, 91)])
@pytest.mark.parametrize("levels", [3, 1000])
def test_suppression_is_the_two_round_rule(radius: int, size: tuple[int, int], levels: int) -> None:
    generator = torch.Generator().manual_seed(radius)
    scores = torch.randint(levels, (2, *size), generator=generator) / levels  # with many ties
    assert torch.equal(suppress(scores, radius), pooled_suppression(scores, radius))


def test_suppression_by_hand() -> None:
    scores = torch.tensor([[[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]]])
    # 0.9 silences its neighbour; what is left is a falling slope, whose top stays: 0.7, then 0.5.
    kept = suppress(scores, 1)[0, 0].nonzero().flatten().tolist()
    assert kept == [0, 2, 4]


def test_strongest_orders_cuts_and_keeps_off_the_border() -> None:
    peaks = torch.zeros(20, 30)
    peaks[4, 4], peaks[15, 25], peaks[3, 10], peaks[10, 26], peaks[9, 9] = 0.2, 0.5, 0.9, 0.9, 0.001
    keypoints, scores = strongest(peaks, 0.005, 4, None)
    assert keypoints.tolist() == [[25, 15], [4, 4]]
    assert scores.tolist() == pytest.approx([0.5, 0.2])
    assert strongest(peaks, 0.005, 4, 1)[0].tolist() == [[25, 15]]
    assert strongest(peaks, 0.005, 10, None)[0].shape == (0, 2)
    assert strongest(peaks, 0.005, 40, None)[0].shape == (0, 2)


def test_refinement_finds_the_centre_of_a_blob() -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
    blob = torch.exp(-((x - 20.3) ** 2 + (y - 11.7) ** 2) / (2 * 0.7**2))
    assert torch.allclose(refined(torch.tensor([[20.0, 12.0]]), blob), torch.tensor([[20.3, 11.7]]), atol=0.02)
    corner = torch.zeros(40, 50)
    corner[0, 0] = 1.0
    assert refined(torch.tensor([[0.0, 0.0]]), corner).tolist() == [[0, 0]]


def test_exact_sampler_is_exact() -> None:
    rows, columns = 30, 40
    y, x = torch.meshgrid(torch.arange(rows) * 8 + 3.5, torch.arange(columns) * 8 + 3.5, indexing="ij")
    ramp = torch.stack([x, y, torch.full_like(x, 100.0)])  # a map that is linear in the pixel
    points = torch.tensor([[3.5, 3.5], [160.2, 77.9], [315.5, 235.5], [10.0, 200.0]])
    expected = F.normalize(torch.cat([points, torch.full((4, 1), 100.0)], 1), dim=1)
    assert torch.allclose(sample_descriptors(ramp, points, "exact"), expected, atol=1e-6)
    drift = sample_descriptors(ramp, points, "legacy")[2]
    assert float(drift[0] / drift[2] * 100) == pytest.approx(315.5 - 3.5 * 312 / 315.5, abs=0.1)


@pytest.mark.parametrize("sampler", ["exact", "legacy"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (3, 4)])
def test_samplers_at_the_edges(sampler: str, shape: tuple[int, int]) -> None:
    maps = F.normalize(torch.randn(16, *shape, generator=torch.Generator().manual_seed(0)), dim=0)
    rows, columns = shape
    corners = torch.tensor([[0.0, 0.0], [8 * columns - 1.0, 8 * rows - 1.0]])
    sampled = sample_descriptors(maps, corners, sampler)
    assert torch.allclose(sampled[0], maps[:, 0, 0], atol=1e-6)
    assert torch.allclose(sampled.norm(dim=1), torch.ones(2))
    if sampler == "exact":
        assert torch.allclose(sampled[1], maps[:, -1, -1], atol=1e-6)
    assert sample_descriptors(maps, torch.zeros(0, 2), sampler).shape == (0, 16)


# ---------------------------------------------------------------- photographs


def extractor(normalisation: str = "after_relu", **options: Any) -> SuperPointExtractor:
    return SuperPointExtractor(random_network(normalisation), SuperPointOptions(**{"max_size_px": None, **options}))


def test_border_cells_have_keypoints() -> None:
    image = Image(picture(101, 139))
    features = extractor(border_px=0, max_num_keypoints=None, radius_px=2).extract(image)
    assert features.keypoints[:, 0].max() > 136  # of the cell that starts at 136, cut by the edge
    assert features.keypoints[:, 1].max() > 96
    assert features.keypoints[:, 0].max() <= 138
    assert features.keypoints[:, 1].max() <= 100
    assert features.image_size == (139, 101)
    assert np.allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)
    assert (np.diff(features.scores) <= 0).all()


def test_a_small_image_is_enlarged() -> None:
    pixels = picture(96, 128)
    found = extractor(max_size_px=640, max_enlargement=2.0).extract(Image(pixels))
    enlarged, _ = resize(pixels, (256, 192))
    there = extractor().extract(Image(enlarged))
    assert len(found) > 20
    assert np.allclose((found.keypoints + 0.5) * 2 - 0.5, there.keypoints, atol=1e-4)
    assert np.allclose(found.descriptors, there.descriptors, atol=1e-5)


def test_a_shift_by_8_px_shifts_the_keypoints() -> None:
    pixels = picture(200, 240)
    run = extractor(max_num_keypoints=None, border_px=0)
    whole, cut = run.extract(Image(pixels)), run.extract(Image(np.ascontiguousarray(pixels[8:, 16:])))
    reach = 42 + 12  # receptive field and suppression
    shifted = {(x - 16, y - 8): row for row, (x, y) in enumerate(whole.keypoints) if x >= 16 + reach and y >= 8 + reach}
    found = {(x, y): row for row, (x, y) in enumerate(cut.keypoints) if x >= reach and y >= reach}
    assert len(found) > 20
    assert shifted.keys() == found.keys()
    for point, row in found.items():
        assert np.allclose(cut.descriptors[row], whole.descriptors[shifted[point]], atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 7), (8, 8), (9, 17), (33, 500)])
def test_any_size(size: tuple[int, int]) -> None:
    features = extractor(radius_px=1, border_px=0).extract(Image(picture(*size)))
    assert features.keypoints.dtype == np.float32
    assert features.descriptors.shape == (len(features), 128)
    assert (features.keypoints >= 0).all()
    assert (features.keypoints <= (size[1] - 1, size[0] - 1)).all()
    assert len(extractor().extract(Image(picture(*size)))) >= 0


def test_blank_image_has_features_or_none() -> None:
    for value in (0, 255):
        features = extractor().extract(Image(np.full((64, 80), value, np.uint8)))
        assert np.isfinite(features.descriptors).all()


def test_coordinates_are_those_of_the_full_size_image() -> None:
    small = picture(120, 160)
    large = np.repeat(np.repeat(small, 2, 0), 2, 1)  # averages back to `small`
    at_small, at_large = extractor().extract(Image(small)), extractor(max_size_px=160).extract(Image(large))
    assert np.allclose(at_large.keypoints, at_small.keypoints * 2 + 0.5)
    assert at_large.image_size == (320, 240)


def test_batches_are_equal_to_single_images() -> None:
    images = [Image(picture(64, 80, 1)), Image(picture(50, 40, 2)), Image(picture(64, 80, 3))]
    run = extractor(subpixel=True)
    for together, image in zip(run.extract_batch(images), images, strict=True):
        alone = run.extract(image)
        assert np.array_equal(together.keypoints, alone.keypoints)
        assert np.array_equal(together.descriptors, alone.descriptors)
    assert run.extract_batch([]) == []


def test_colour_and_depth() -> None:
    grey = picture(64, 80)
    run = extractor()
    of_grey = run.extract(Image(grey))
    of_colour = run.extract(Image(np.repeat(grey[..., None], 3, 2)))
    assert np.array_equal(of_grey.keypoints, of_colour.keypoints)
    run.extract(Image(grey.astype(np.uint16) * 200))


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_size_px", 0), ("max_enlargement", 0.5), ("max_num_keypoints", 0), ("radius_px", -1), ("threshold", 1.5)],
)
def test_options_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        SuperPointOptions(**{name: value})


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "fp16"), ("cpu", "fp8"), ("abacus", "fp32"), ("cuda:99", "fp32")]
)
def test_impossible_devices_are_told(device: str, precision: str) -> None:
    with pytest.raises(ValueError, match=r"device|precision"):
        SuperPointExtractor(random_network("none"), SuperPointOptions(), device=device, precision=precision)


@pytest.mark.parametrize("normalisation", ["none", "before_relu", "after_relu"])
def test_a_network_is_known_again_by_its_published_names(normalisation: Normalisation) -> None:
    network = SuperPoint(SuperPointConfig(descriptor_dim=64, normalisation=normalisation))
    again = load_superpoint(published_tensors(network), "again")
    assert again.config == network.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())
