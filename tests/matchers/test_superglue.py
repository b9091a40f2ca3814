"""SuperGlue: equal to the published network, to its own plain form, and true to its symmetries."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiepoint.geometry import Features  # noqa: E402
from tiepoint.images import Image  # noqa: E402
from tiepoint.matchers import matcher as matcher_of_name  # noqa: E402
from tiepoint.matchers.base import MatcherOptions, SparseMatcher  # noqa: E402
from tiepoint.matchers.orb import Orb  # noqa: E402
from tiepoint.matchers.sift import Sift  # noqa: E402
from tiepoint.matchers.superglue import (  # noqa: E402
    FeatureBatch,
    SuperGlue,
    SuperGlueConfig,
    load_superglue,
    mutual_matches,
)
from tiepoint.matchers.superglue_inference import PreparedSuperGlue, fast_log_assignment  # noqa: E402
from tiepoint.matchers.superglue_matcher import (  # noqa: E402
    SuperGlueMatcher,
    SuperGlueOptions,
    build_orb_superglue,
    build_sift_superglue,
    build_superpoint_superglue,
    unit_descriptors,
)
from tiepoint.matchers.superpoint import SuperPoint, SuperPointConfig  # noqa: E402
from tiepoint.networks.optimal_transport import log_optimal_transport  # noqa: E402
from tiepoint.weights import WeightsError  # noqa: E402

PARITY = Path(__file__).parents[1] / "parity"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["d128", "d256"])
def parity(request: pytest.FixtureRequest, fill: ModuleType) -> dict[str, Any]:
    case, expected = fill.load_case(PARITY / "superglue" / f"{request.param}.json")
    tensors = {key: torch.from_numpy(value) for key, value in fill.make_weights(case["weights"]).items()}
    made = fill.make_inputs(case["inputs"])
    features = [
        Features(
            keypoints=made[f"keypoints{side}"],
            scores=made[f"scores{side}"],
            descriptors=made[f"descriptors{side}"],
            image_size=tuple(reversed(case["config"][f"size{side}"])),
        )
        for side in (0, 1)
    ]
    return {"case": case, "expected": expected, "tensors": tensors, "features": features}


def batch(features: Features) -> FeatureBatch:
    return FeatureBatch(
        torch.from_numpy(features.keypoints)[None],
        torch.from_numpy(features.scores)[None],
        torch.from_numpy(features.descriptors)[None],
        torch.tensor([features.image_size]),
    )


def random_features(count: int, dim: int, seed: int, size: tuple[int, int] = (640, 480)) -> Features:
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(count, dim)).astype(np.float32)
    return Features(
        keypoints=(rng.random((count, 2)) * size).astype(np.float32),
        scores=rng.random(count).astype(np.float32),
        descriptors=descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-6),
        image_size=size,
    )


def some_rows(features: Features, rows: np.ndarray) -> Features:
    return Features(
        keypoints=features.keypoints[rows],
        scores=features.scores[rows],
        descriptors=features.descriptors[rows],
        image_size=features.image_size,
    )


# ---------------------------------------------------------------- the published network


def test_parity_layer_by_layer(fill: ModuleType, parity: dict[str, Any]) -> None:
    case, expected = parity["case"], parity["expected"]
    network = load_superglue(parity["tensors"], "parity")
    side0, side1 = (batch(features) for features in parity["features"])
    with torch.no_grad():
        fill.compare(case, expected, "encoded0", network.kenc(side0)[0].numpy())
        outputs = list(network.layer_outputs(side0, side1))
        assert len(outputs) == 19
        for layer in (0, 1, 17):
            for side in (0, 1):
                output = outputs[layer + 1][side][0].numpy()
                fill.compare(case, expected, f"descriptors{side}_layer{layer}", output)
        fill.compare(case, expected, "similarity", network.similarity(*outputs[-1])[0].numpy())
        for iterations in (20, 100):
            log_assigned = network(side0, side1, iterations)[0]
            fill.compare(case, expected, f"log_assignment_{iterations}", log_assigned.numpy())


@pytest.mark.parametrize("iterations", [20, 100])
def test_parity_of_the_matcher(fill: ModuleType, parity: dict[str, Any], iterations: int) -> None:
    case, expected = parity["case"], parity["expected"]
    network = load_superglue(parity["tensors"], "parity")
    matcher = SuperGlueMatcher(network, SuperGlueOptions(num_iterations=iterations))
    features0, features1 = parity["features"]
    log_assigned = matcher.log_assignment(features0, features1)
    fill.compare(case, expected, f"log_assignment_{iterations}", log_assigned)
    found = matcher.match_features(features0, features1)
    for side, count in ((0, len(features0)), (1, len(features1))):
        matches, scores = np.full(count, -1), np.zeros(count, np.float32)
        matches[found.indices[:, side]] = found.indices[:, 1 - side]
        scores[found.indices[:, side]] = found.scores
        fill.compare(case, expected, f"matches{side}_{iterations}", matches)
        kept = matches >= 0
        wanted = np.asarray(expected[f"scores{side}_{iterations}"])
        assert np.allclose(scores[kept], wanted[kept], atol=case["outputs"][f"scores{side}_{iterations}"]["atol"])


@pytest.mark.parametrize(
    ("dim", "count", "num_tensors"), [(64, 760_705, 325), (128, 3_018_497, 332), (256, 12_023_297, 339)]
)
def test_sizes(dim: int, count: int, num_tensors: int) -> None:
    network = SuperGlue(SuperGlueConfig(descriptor_dim=dim))
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert len(network.state_dict()) == num_tensors
    assert load_superglue(network.state_dict(), "own").config.descriptor_dim == dim


def test_loading_names_what_does_not_fit(parity: dict[str, Any]) -> None:
    tensors = dict(parity["tensors"])
    tensors["gnn.layers.18.attn.merge.weight"] = torch.zeros(1)
    del tensors["bin_score"]
    with pytest.raises(WeightsError, match=r"1 missing: bin_score; 1 unknown: gnn\.layers\.18"):
        load_superglue(tensors, "file")
    with pytest.raises(WeightsError, match="is no SuperGlue"):
        load_superglue({"conv1a.weight": torch.zeros(1)}, "file")
    with pytest.raises(ValueError, match="64, 128 or 256"):
        SuperGlueConfig(descriptor_dim=96)


# ---------------------------------------------------------------- the assignment


def test_assignment_sums_to_its_marginals() -> None:
    similarity = 3 * torch.randn(1, 50, 70, generator=torch.Generator().manual_seed(0))
    assigned = log_optimal_transport(similarity, torch.tensor(1.0), 100)[0].exp()
    assert torch.allclose(assigned.sum(0)[:-1], torch.ones(70), atol=1e-4)
    assert torch.allclose(assigned.sum(1)[:-1], torch.ones(50), atol=1e-4)
    assert float(assigned.sum(0)[-1]) == pytest.approx(50, rel=1e-3)
    assert float(assigned.sum(1)[-1]) == pytest.approx(70, rel=1e-3)


def test_assignment_worked_by_hand() -> None:
    # One keypoint each and a dustbin score equal to theirs: by symmetry each entry is 1/2.
    assigned = log_optimal_transport(torch.full((1, 1, 1), 2.0), torch.tensor(2.0), 5)[0].exp()
    assert torch.allclose(assigned, torch.full((2, 2), 0.5))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (40, 3), (120, 150)])
@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0, 500.0])
@pytest.mark.parametrize("iterations", [0, 1, 2, 20, 57, 100])
def test_fast_assignment_is_equal(shape: tuple[int, int], spread: float, iterations: int) -> None:
    """Spread 500 leaves float32's exponents behind: the fall-back to the log domain is taken."""
    similarity = spread * torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    for bin_score in (1.0, -3 * spread, 3 * spread):
        plain = log_optimal_transport(
            similarity[None].double(), torch.tensor(bin_score, dtype=torch.float64), iterations
        )
        fast = fast_log_assignment(similarity.clone(), torch.tensor(bin_score), iterations)
        assert float((fast - plain[0]).abs().max()) < 2e-5 * max(10.0, spread)


def test_mutual_matches_worked_by_hand() -> None:
    probabilities = torch.tensor([[0.7, 0.1, 0.2], [0.6, 0.1, 0.3], [0.1, 0.15, 0.75], [0.1, 0.6, 0.3]])
    indices, scores = mutual_matches(probabilities.log(), 0.2)
    assert indices.tolist() == [[0, 0]]  # row 1 prefers column 0 too; column 1 is best for row 2, below 0.2
    assert scores.tolist() == pytest.approx([0.7])
    assert mutual_matches(probabilities.log(), 0.1)[0].tolist() == [[0, 0], [2, 1]]


# ---------------------------------------------------------------- the matcher


def sharp_network() -> SuperGlue:
    """Random, but for a projection and a dustbin score that let keypoints of like descriptors match."""
    torch.manual_seed(0)
    network = SuperGlue(SuperGlueConfig(descriptor_dim=64)).eval()
    torch.nn.init.constant_(network.bin_score, 12.0)
    for name, parameter in network.named_parameters():
        if name.endswith(("mlp.3.weight", "kenc.encoder.6.weight")):
            parameter.data *= 0.1
    torch.nn.init.orthogonal_(network.final_proj.weight.data[..., 0], gain=14.0)
    return network


@pytest.fixture(scope="module")
def matcher() -> SuperGlueMatcher:
    return SuperGlueMatcher(sharp_network(), SuperGlueOptions())


def pair(shared: int = 60) -> tuple[Features, Features, np.ndarray]:
    """Two sets with `shared` true pairs: row i of the first is row order[i] of the second."""
    features0, features1 = random_features(90, 64, 1), random_features(110, 64, 2, (500, 300))
    order = np.random.default_rng(3).permutation(110)[:shared]
    features1.descriptors[order] = features0.descriptors[:shared]
    features1.keypoints[order] = features0.keypoints[:shared] * (500 / 640, 300 / 480)
    return features0, features1, order


def test_finds_the_true_pairs(matcher: SuperGlueMatcher) -> None:
    features0, features1, order = pair()
    found = matcher.match_features(features0, features1)
    assert found.indices.dtype == np.int64
    assert found.scores.dtype == np.float32
    right = [row < 60 and order[row] == column for row, column in found.indices]
    assert len(right) > 40
    assert np.mean(right) > 0.9


def test_the_order_of_keypoints_does_not_matter(matcher: SuperGlueMatcher) -> None:
    features0, features1, _ = pair()
    rng = np.random.default_rng(4)
    order0, order1 = rng.permutation(len(features0)), rng.permutation(len(features1))
    found = matcher.match_features(features0, features1)
    mixed = matcher.match_features(some_rows(features0, order0), some_rows(features1, order1))
    back = np.stack([order0[mixed.indices[:, 0]], order1[mixed.indices[:, 1]]], 1)
    rows = np.argsort(back[:, 0])
    assert np.array_equal(back[rows], found.indices)
    assert np.allclose(mixed.scores[rows], found.scores, atol=1e-4)


def test_swapping_the_images_swaps_the_matches() -> None:
    """Up to what Sinkhorn's iterations, which end with image 1's side, have still to go."""
    matcher = SuperGlueMatcher(sharp_network(), SuperGlueOptions(num_iterations=1000))
    features0, features1, _ = pair()
    found, swapped = (
        matcher.match_features(features0, features1),
        matcher.match_features(features1, features0),
    )
    rows = np.argsort(swapped.indices[:, 1])
    assert np.array_equal(swapped.indices[rows][:, ::-1], found.indices)
    assert np.allclose(swapped.scores[rows], found.scores, atol=1e-3)


def test_an_empty_side_matches_nothing(matcher: SuperGlueMatcher) -> None:
    nothing, features = random_features(0, 64, 0), random_features(5, 64, 1)
    for sides in ((nothing, features), (features, nothing), (nothing, nothing)):
        found = matcher.match_features(*sides)
        assert found.indices.shape == (0, 2)
        assert found.scores.shape == (0,)
    with pytest.raises(ValueError, match="keypoints in both images"):
        matcher.log_assignment(nothing, features)


@pytest.mark.parametrize("counts", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_few_keypoints(matcher: SuperGlueMatcher, counts: tuple[int, int]) -> None:
    features0, features1 = random_features(counts[0], 64, 1), random_features(counts[1], 64, 2, (1, 1))
    log_assigned = matcher.log_assignment(features0, features1)
    assert log_assigned.shape == (counts[0] + 1, counts[1] + 1)
    assert np.isfinite(log_assigned).all()


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_prepared_form_is_equal(dim: int) -> None:
    torch.manual_seed(dim)
    network = SuperGlue(SuperGlueConfig(descriptor_dim=dim))
    network.train()
    side0, side1 = (batch(random_features(count, dim, count)) for count in (150, 130))
    with torch.no_grad():
        for _ in range(3):
            network(side0, side1, 1)  # moves the running statistics off their start
        network.eval()
        plain = network(side0, side1, 30)[0]
    prepared = PreparedSuperGlue(network, CPU, torch.float32)(side0, side1, 30)
    assert float((prepared - plain).abs().max()) < 1e-4


def test_half_precision_keeps_the_matches(matcher: SuperGlueMatcher) -> None:
    features0, features1, _ = pair()
    half = SuperGlueMatcher(sharp_network(), SuperGlueOptions(), precision="bf16")
    exact = {tuple(row) for row in matcher.match_features(features0, features1).indices}
    near = {tuple(row) for row in half.match_features(features0, features1).indices}
    assert len(exact & near) > 0.9 * len(exact | near)


def test_attention_rows_sum_to_one() -> None:
    network = SuperGlue(SuperGlueConfig(descriptor_dim=64)).eval()
    side0, side1 = batch(random_features(7, 64, 0)), batch(random_features(5, 64, 1))
    with torch.no_grad():
        found = network.attention(side0, side1)
    assert len(found) == 18
    for index, (of0, of1) in enumerate(found):
        assert of0.shape == (1, 4, 7, 5 if index % 2 else 7)
        assert of1.shape == (1, 4, 5, 7 if index % 2 else 5)
        assert torch.allclose(of0.sum(-1), torch.ones(1, 4, 7), atol=1e-5)


def test_trains() -> None:
    torch.manual_seed(0)
    network = SuperGlue(SuperGlueConfig(descriptor_dim=64)).train()
    sides = [
        FeatureBatch(torch.rand(2, n, 2) * 100, torch.rand(2, n), torch.randn(2, n, 64) / 8, torch.full((2, 2), 100))
        for n in (12, 9)
    ]
    before = network(*sides, 10)
    assert before.shape == (2, 13, 10)
    (-before[:, :9, :9].diagonal(dim1=1, dim2=2).mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


# ---------------------------------------------------------------- features of any detector


def test_descriptors_of_every_kind_have_unit_length() -> None:
    bits = np.array([[0b10000001, 0], [255, 255]], np.uint8)
    assert np.allclose(unit_descriptors(bits)[0] * 4, [1, -1, -1, -1, -1, -1, -1, 1] + [-1] * 8)
    lowe = np.abs(np.random.default_rng(0).normal(size=(3, 128))).astype(np.float32) * 40
    assert np.allclose(unit_descriptors(lowe) ** 2, lowe / lowe.sum(1, keepdims=True), atol=1e-6)
    unit = random_features(4, 64, 0).descriptors
    assert np.array_equal(unit_descriptors(unit), unit)
    assert unit_descriptors(np.zeros((0, 32), np.uint8)).shape == (0, 256)


def blobs(seed: int) -> Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (24, 32), dtype=np.uint8)
    return Image(np.repeat(np.repeat(coarse, 8, 0), 8, 1))


@pytest.mark.parametrize(("extractor", "dim"), [(Sift(), 128), (Sift(root=False), 128), (Orb(), 256)])
def test_sift_and_orb(extractor: Any, dim: int) -> None:
    torch.manual_seed(1)
    network = SuperGlue(SuperGlueConfig(descriptor_dim=dim)).eval()
    run = SparseMatcher("any+superglue", extractor, SuperGlueMatcher(network, SuperGlueOptions(match_threshold=0)))
    image = blobs(0)
    matches = run(image, image)
    assert len(matches) > 0
    assert ((matches.scores >= 0) & (matches.scores <= 1)).all()
    assert len(run(image, Image(np.zeros((50, 60), np.uint8)))) == 0


def test_another_dimension_is_told(matcher: SuperGlueMatcher) -> None:
    features = random_features(5, 128, 0)
    with pytest.raises(ValueError, match="64 dimensions, got 128"):
        matcher.match_features(features, features)


def test_without_weights_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv("TIEPOINT_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match="tiepoint weights fetch magicleap-superglue-indoor"):
        build_superpoint_superglue(MatcherOptions(weights="magicleap-superglue-indoor"))
    with pytest.raises(WeightsError, match="is no file"):
        build_superpoint_superglue(MatcherOptions(weights=str(tmp_path / "absent.pth")))


def test_builders_take_a_file(tmp_path: Path) -> None:
    for dim, build in ((128, build_sift_superglue), (256, build_orb_superglue)):
        path = tmp_path / f"{dim}.pth"
        torch.save(SuperGlue(SuperGlueConfig(descriptor_dim=dim)).state_dict(), path)
        run = build(MatcherOptions(weights=str(path), max_num_keypoints=50, max_size_px=200))
        assert len(run.encode(blobs(1))) <= 50
        run(blobs(1), blobs(2))


def test_superpoint_and_superglue_of_ones_own(tmp_path: Path) -> None:
    superpoint, superglue = tmp_path / "sp.pth", tmp_path / "sg.pth"
    torch.save(SuperPoint(SuperPointConfig(descriptor_dim=64, normalisation="after_relu")).state_dict(), superpoint)
    torch.save(SuperGlue(SuperGlueConfig(descriptor_dim=64)).state_dict(), superglue)
    run = build_superpoint_superglue(MatcherOptions(weights=f"{superpoint}+{superglue}", max_size_px=200))
    run(blobs(1), blobs(2))


@pytest.mark.parametrize(
    ("method", "weights", "told"),
    [
        ("superpoint+superglue", "tiepoint-superglue-sift", "of sift\\+superglue, not of superpoint\\+superglue"),
        ("sift+superglue", "tiepoint-superglue", "of superpoint\\+superglue, not of sift\\+superglue"),
        ("superpoint+superglue", "tiepoint-superglue+tiepoint-superpoint", "not of superpoint"),
    ],
)
def test_weights_of_another_method_are_refused(method: str, weights: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        matcher_of_name(method, MatcherOptions(weights=weights))


def test_methods_without_weights_take_no_notice_of_them() -> None:
    """As when several methods are evaluated with one --weights, and in `auto`."""
    assert matcher_of_name("sift", MatcherOptions(weights="tiepoint-superpoint")).name == "sift"


def test_three_weights_are_told() -> None:
    with pytest.raises(WeightsError, match="did you mean"):
        matcher_of_name("superpoint+superglue", MatcherOptions(weights="tiepoint-superpoint+a+b"))


@pytest.mark.parametrize(("build", "dim"), [(build_sift_superglue, 256), (build_orb_superglue, 128)])
def test_weights_of_another_dimension_are_refused_when_built(build: Any, dim: int, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(SuperGlue(SuperGlueConfig(descriptor_dim=dim)).state_dict(), path)
    with pytest.raises(ValueError, match=f"match {dim}-dimensional descriptors"):
        build(MatcherOptions(weights=str(path)))


def test_published_files_bring_their_features_along(tmp_path: Path) -> None:
    """A path ends like the name does: the SuperPoint it was trained over is asked for."""
    path = tmp_path / "superglue_outdoor.pth"
    torch.save(SuperGlue(SuperGlueConfig(descriptor_dim=256)).state_dict(), path)
    with pytest.raises(WeightsError, match="magicleap-superpoint is not on this machine"):
        build_superpoint_superglue(MatcherOptions(weights=str(path)))
    with pytest.raises(ValueError, match="their licence forbids"):
        matcher_of_name("superpoint+superglue", MatcherOptions(weights=str(path), commercial_only=True))


def test_a_licence_counts_for_either_of_two_weights() -> None:
    options = MatcherOptions(weights="open-superpoint+magicleap-superglue-indoor", commercial_only=True)
    with pytest.raises(ValueError, match="magicleap-superglue-indoor: their licence forbids"):
        matcher_of_name("superpoint+superglue", options)
