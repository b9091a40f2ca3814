"""RELF's sampling, aligning and extractor: known answers, rotation, and images in which there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiepoint.geometry import Features  # noqa: E402
from tiepoint.geometry.rotation_vote import relative_rotation  # noqa: E402
from tiepoint.images import Image  # noqa: E402
from tiepoint.matchers.base import MatcherOptions, SparseMatcher  # noqa: E402
from tiepoint.matchers.nearest import NearestKeypoints  # noqa: E402
from tiepoint.matchers.relf import (  # noqa: E402
    PUBLISHED_CONFIG,
    Pyramid,
    RelfConfig,
    RelfExtractor,
    build_relf,
    level_sizes,
)
from tiepoint.matchers.relf_sampling import (  # noqa: E402
    align,
    group_pool,
    orientation_candidates,
    sample_features,
)
from tiepoint.matchers.relf_weights import load_relf  # noqa: E402
from tiepoint.matchers.sift import Sift  # noqa: E402
from tiepoint.networks.equivariant_resnet import ReResNet, ReWideResNet  # noqa: E402
from tiepoint.networks.group_convolution import FieldBatchNorm, inference_form  # noqa: E402
from tiepoint.weights import WeightsError  # noqa: E402


class Fixed:
    """A detector that finds the points it is given."""

    def __init__(self, points: np.ndarray) -> None:
        self.points = points.astype(np.float32)

    def extract(self, image: Image) -> Features:
        count = len(self.points)
        return Features(
            keypoints=self.points,
            scores=np.linspace(1, 0.5, count, dtype=np.float32),
            descriptors=np.zeros((count, 0), np.float32),
            image_size=image.size,
        )

    def extract_batch(self, images: list[Image]) -> list[Features]:
        return [self.extract(image) for image in images]


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Blotches of many sizes, uint8 RGB."""
    rng = np.random.default_rng(seed)
    total = torch.zeros(1, 3, height, width)
    for cell in (4, 8, 16, 32):
        coarse = torch.from_numpy(rng.normal(0, 1, (1, 3, height // cell + 2, width // cell + 2)))
        total += torch.nn.functional.interpolate(coarse.float(), (height, width), mode="bilinear") * cell**0.5
    return ((total[0].permute(1, 2, 0) * 14 + 127).clamp(0, 255)).to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def network() -> ReResNet:
    """Untrained, its normalisations fitted to a picture."""
    torch.manual_seed(0)
    made = ReResNet(16).train()
    example = torch.from_numpy((picture(129, 97, 9).astype(np.float32) - 127) / 128).permute(2, 0, 1)[None]
    for module in made.modules():
        if isinstance(module, FieldBatchNorm):
            module.momentum = 1.0  # one pass sets the statistics
    with torch.no_grad():
        made(example)
    return inference_form(made)


def points_of(width: int, height: int, count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(12, [width - 13, height - 13], (count, 2)).astype(np.float32)


def quarter_turn(pixels: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both turned by 90 degrees counter-clockwise."""
    width = pixels.shape[1]
    return np.rot90(pixels).copy(), np.stack([points[:, 1], width - 1 - points[:, 0]], axis=1)


# ---------------------------------------------------------------- sampling and aligning


@pytest.mark.parametrize("published_grid", [False, True])
@pytest.mark.parametrize("size", [(97, 65), (80, 61)])
def test_sampling_reads_what_a_whole_map_would_give(
    network: ReResNet, published_grid: bool, size: tuple[int, int]
) -> None:
    """Published: the map of all stages, resized with corners aligned. Ours: every stage at its own stride."""
    width, height = size
    images = torch.randn(2, 3, height, width)
    points = torch.from_numpy(np.stack([points_of(width, height, 20, seed) for seed in (1, 2)]))
    functional = torch.nn.functional
    with torch.no_grad():
        found = sample_features(network, images, points, published_grid=published_grid)
        maps = network(images)
        if published_grid:
            finest = maps[0].shape[2:]
            resized = [functional.interpolate(m, finest, mode="bilinear", align_corners=True) for m in maps]
            strides = [width / finest[1]] * len(maps)
        else:
            resized, strides = maps, network.strides
        expected = []
        for stage, stride in zip(resized, strides, strict=True):
            last = torch.tensor([stage.shape[3] - 1, stage.shape[2] - 1])
            position = points / stride
            if not published_grid:
                position = position.clamp(torch.zeros(2), last)
            grid = (2 * position / last - 1)[:, None]
            expected.append(functional.grid_sample(stage, grid, align_corners=True)[:, :, 0].transpose(1, 2))
    np.testing.assert_allclose(found.flatten(2), torch.cat(expected[::-1], dim=2), atol=2e-5)


def test_sampling_passes_gradients() -> None:
    network = ReResNet(8).train()
    images, points = torch.randn(2, 3, 33, 33), torch.rand(2, 5, 2) * 32
    sample_features(network, images, points, published_grid=False).square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) and bool((p.grad != 0).any()) for p in network.parameters())


def test_candidates_by_hand() -> None:
    histogram = torch.tensor([[1.0, 5.0, 3.0, 2.9], [0, 0, 0, 0], [-1, -2, -0.5, -3], [2, 2, 0, 0]])
    keypoints, shifts = orientation_candidates(histogram, 0.6)
    assert keypoints.tolist() == [0, 0, 1, 2, 3, 3]
    assert shifts.tolist() == [1, 2, 0, 2, 0, 1]
    keypoints, shifts = orientation_candidates(histogram, None)
    assert keypoints.tolist() == [0, 1, 2, 3]
    assert shifts.tolist() == [1, 0, 2, 0]


def test_aligning_undoes_a_turn() -> None:
    torch.manual_seed(0)
    features = torch.rand(6, 5, 8)
    turned = features.roll(3, dims=2)
    described = []
    for version in (features, turned):
        keypoints, shifts = orientation_candidates(version[:, 0], None)
        described.append(align(version, keypoints, shifts))
        assert torch.allclose(described[-1].norm(dim=1), torch.ones(6), atol=1e-5)
        assert bool((described[-1].view(6, 5, 8)[:, 0].argmax(1) == 0).all())
    assert torch.equal(*described)
    for pooling in ("max", "mean", "norm"):
        assert torch.allclose(group_pool(features, pooling), group_pool(turned, pooling), atol=1e-6)
        assert group_pool(features, pooling).shape == (6, 5)
    assert bool(align(torch.zeros(1, 5, 8), torch.tensor([0]), torch.tensor([0])).isfinite().all())


# ---------------------------------------------------------------- sizes


def test_levels_lie_on_the_grid() -> None:
    assert level_sizes((640, 480), RelfConfig()) == [(641, 481)]
    assert level_sizes((4000, 3000), RelfConfig()) == [(1025, 769)]
    assert level_sizes((3, 1), RelfConfig()) == [(17, 17)]
    sizes = level_sizes((640, 480), RelfConfig(pyramid=Pyramid()))
    assert len(sizes) == 9
    assert sizes[0] == (1025, 769)
    assert sizes[-1] == (257, 193)
    assert all(side % 16 == 1 for size in sizes for side in size)


# ---------------------------------------------------------------- the extractor


SMALL_PYRAMID = Pyramid(max_size_px=160, min_size_px=80, levels_per_octave=2)


@pytest.mark.parametrize("config", [RelfConfig(), RelfConfig(pyramid=SMALL_PYRAMID)], ids=["level", "pyramid"])
def test_features_turn_with_the_image(network: ReResNet, config: RelfConfig) -> None:
    """90 degrees, 4 of 16 group elements, exactly: at any image size, since levels are brought to 16 k + 1."""
    pixels, points = picture(150, 110), points_of(150, 110, 60)
    turned_pixels, turned_points = quarter_turn(pixels, points)
    extractor = RelfExtractor(network, Fixed(points), config)
    before = extractor.features_at(Image(pixels), points)
    after = extractor.features_at(Image(turned_pixels), turned_points)
    assert float((after - before.roll(4, dims=2)).norm() / before.norm()) < 1e-5


def test_a_sixteenth_turn_holds_approximately(network: ReResNet) -> None:
    """22.5 degrees about the centre, inside the disc that stays in the picture: error as the page states."""
    import cv2

    pixels = cv2.GaussianBlur(picture(193, 193), (0, 0), 1.5)
    matrix = cv2.getRotationMatrix2D((96, 96), 22.5, 1)
    turned_pixels = cv2.warpAffine(pixels, matrix, (193, 193), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, 80), 45 * np.sqrt(rng.uniform(0, 1, 80))
    points = np.stack([96 + radius * np.cos(angle), 96 + radius * np.sin(angle)], 1).astype(np.float32)
    turned_points = (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    extractor = RelfExtractor(network, Fixed(points), RelfConfig())
    before = extractor.features_at(Image(pixels), points)
    after = extractor.features_at(Image(turned_pixels), turned_points)
    gaps = [float((after - before.roll(shift, dims=2)).norm() / before.norm()) for shift in range(16)]
    assert int(np.argmin(gaps)) == 1
    assert gaps[1] < 0.7


def test_a_turned_picture_is_matched_and_its_turn_known(network: ReResNet) -> None:
    pixels, points = picture(161, 129), points_of(161, 129, 150)
    turned_pixels, turned_points = quarter_turn(pixels, points)
    order = np.random.default_rng(5).permutation(150)
    features = [
        RelfExtractor(network, Fixed(found), RelfConfig()).extract(Image(image))
        for image, found in ((pixels, points), (turned_pixels, turned_points[order]))
    ]
    matcher = NearestKeypoints()
    found = matcher.match_features(*features)
    pairs0 = features[0].keypoints[found.indices[:, 0]]
    pairs1 = features[1].keypoints[found.indices[:, 1]]
    _, expected = quarter_turn(pixels, pairs0)
    right = np.abs(expected - pairs1).max(axis=1) < 1e-3
    assert len(found.indices) > 130
    assert right.mean() > 0.97
    assert len(np.unique(pairs0, axis=0)) == len(pairs0)
    vote = relative_rotation(*features, found.indices)
    assert vote.angle_deg == pytest.approx(-90, abs=1)  # counter-clockwise as displayed
    assert vote.support > 0.95


def test_keypoints_repeat_with_their_orientations(network: ReResNet) -> None:
    points = np.repeat(points_of(100, 90, 30), 2, axis=0)  # every position twice, as SIFT may give it
    image = Image(picture(100, 90))
    found = RelfExtractor(network, Fixed(points), RelfConfig(candidate_ratio=0.6)).extract(image)
    best = RelfExtractor(network, Fixed(points), RelfConfig(candidate_ratio=None)).extract(image)
    assert len(best) == 30
    assert len(found) > 30
    assert len(np.unique(found.keypoints, axis=0)) == 30
    assert found.descriptors.shape == (len(found), 1024)
    assert found.descriptors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-4)
    assert set(np.unique(best.angles_deg % 22.5)) == {0.0}
    rows = [np.flatnonzero((found.keypoints == point).all(axis=1)) for point in best.keypoints]
    assert all(angle in found.angles_deg[row] for angle, row in zip(best.angles_deg, rows, strict=True))


@pytest.mark.parametrize("config", [RelfConfig(), PUBLISHED_CONFIG], ids=["ours", "published"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (64, 64, 3)])
def test_nothing_to_find(network: ReResNet, config: RelfConfig, shape: tuple[int, ...]) -> None:
    matcher = SparseMatcher(
        "relf",
        RelfExtractor(network, Sift(max_num_keypoints=100), config),
        NearestKeypoints(),
    )
    blank = matcher.encode(Image(np.full(shape, 90, np.uint8)))
    assert len(blank) == 0
    assert blank.descriptors.shape == (0, 1024)
    assert len(matcher.match(blank, blank)) == 0


@pytest.mark.parametrize("config", [RelfConfig(), RelfConfig(published=True)], ids=["ours", "published"])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (200, 9)])
def test_any_size_and_depth(network: ReResNet, config: RelfConfig, size: tuple[int, int]) -> None:
    corners = np.array([[0, 0], [size[0] - 1, size[1] - 1]], np.float32)
    image = Image((np.random.default_rng(0).random((size[1], size[0])) * 65535).astype(np.uint16))
    features = RelfExtractor(network, Fixed(corners), config).features_at(image, corners)
    assert features.shape == (2, 64, 16)
    assert bool(features.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_lower_precision_comes_near(network: ReResNet, dtype: torch.dtype) -> None:
    image, points = Image(picture(100, 80)), points_of(100, 80, 40)
    config = RelfConfig(candidate_ratio=None)
    exact, rough = (
        RelfExtractor(network, Fixed(points), config, dtype=number).features_at(image, points)
        for number in (torch.float32, dtype)
    )
    assert rough.dtype == torch.float32
    assert float(torch.cosine_similarity(exact.flatten(1), rough.flatten(1)).min()) > 0.99


# ---------------------------------------------------------------- from weights to matcher


def test_own_weights_are_recognised(tmp_path) -> None:
    from safetensors.torch import save_file

    for made in (ReResNet(8), ReResNet(16), ReWideResNet()):
        path = tmp_path / "weights.safetensors"
        save_file(made.state_dict(), path)
        model = load_relf(path)
        assert not model.published
        assert type(model.network) is type(made)
        assert model.network.order == made.order
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), model.network.parameters(), strict=True))
    options = MatcherOptions(weights=str(path), max_size_px=64, max_num_keypoints=20)
    matcher = build_relf(options, Fixed(points_of(100, 80, 12)))
    assert matcher.name == "relf"
    matches = matcher(Image(picture(100, 80)), Image(picture(100, 80)))
    assert len(matches) == 12
    np.testing.assert_array_equal(matches.points0, matches.points1)
    assert matches.method == "relf"


def test_missing_weights_say_what_to_do() -> None:
    with pytest.raises(WeightsError):
        build_relf(MatcherOptions(weights="no-such-weights"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"device": "cuda:99"}, "device"), ({"device": "xpu"}, "device"), ({"precision": "fp16"}, "fp16")],
)
def test_what_the_machine_lacks_is_told(changes, told):
    with pytest.raises(ValueError, match=told):
        build_relf(MatcherOptions(**changes))
