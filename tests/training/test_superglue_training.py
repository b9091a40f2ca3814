"""SuperGlue's training: labels on worked cases, the loss, the start, and that a run resumes exactly."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiepoint.matchers.nearest import NearestNeighbours  # noqa: E402
from tiepoint.matchers.sift import Sift  # noqa: E402
from tiepoint.matchers.superglue import FeatureBatch, SuperGlue, SuperGlueConfig  # noqa: E402
from tiepoint.matchers.superglue_matcher import SuperGlueMatcher, SuperGlueOptions  # noqa: E402
from tiepoint.training.engine import Compute, Interrupted, LoopConfig, train  # noqa: E402
from tiepoint.training.feature_pool import PairOfFeatures, PoolConfig, make_pool  # noqa: E402
from tiepoint.training.pairs import PairConfig  # noqa: E402
from tiepoint.training.record import Run  # noqa: E402
from tiepoint.training.superglue import (  # noqa: E402
    SuperGlueTraining,
    SuperGlueTrainingConfig,
    TrueMatches,
    balanced_loss,
    start_as_nearest_neighbours,
    true_matches,
)
from tiepoint.training.warps import WarpConfig  # noqa: E402


def features(points, descriptors=None):
    keypoints = torch.tensor(points, dtype=torch.float32)[None]
    count = keypoints.shape[1]
    if descriptors is None:
        descriptors = torch.zeros(count, 64)
    return FeatureBatch(keypoints, torch.ones(1, count), descriptors[None], torch.tensor([[64, 48]]))


def shifted_by(x, y):
    return torch.tensor([[[1.0, 0, x], [0, 1, y], [0, 0, 1]]])


def test_true_matches_are_mutual_and_near_none_are_far_and_the_rest_is_ignored():
    pairs = PairOfFeatures(
        features([[10, 10], [30, 20], [50, 40], [10, 40]]),
        features([[15, 11], [38.5, 20], [15.8, 10]]),
        shifted_by(5.0, 0.0),
    )
    truth = true_matches(pairs, positive_px=3, negative_px=5)
    # 0 goes to (15, 10): 0.8 px from 2 and 1 px from 0. 1 goes to (35, 20): 3.5 px from 1. 2, 3 have nothing near.
    assert truth.partner0.tolist() == [[2, -1, 3, 3]]
    assert truth.partner1.tolist() == [[-1, -1, 0]]


def test_the_loss_is_the_mean_of_either_kind():
    log_assigned = torch.log(torch.tensor([[[0.5, 0.1, 0.4], [0.2, 0.2, 0.6], [0.3, 0.7, 0.0]]]))
    truth = TrueMatches(torch.tensor([[0, 2]]), torch.tensor([[0, -1]]))
    matched, alone = balanced_loss(log_assigned, truth)
    assert matched.item() == pytest.approx(-np.log(0.5))
    assert alone.item() == pytest.approx(-np.log(0.6))


def test_the_loss_of_nothing_is_zero():
    ignored = TrueMatches(torch.tensor([[-1, -1]]), torch.tensor([[-1, -1]]))
    matched, alone = balanced_loss(torch.zeros(1, 3, 3), ignored)
    assert matched.item() == alone.item() == 0


def test_it_starts_as_nearest_neighbours():
    torch.manual_seed(0)
    descriptors = torch.nn.functional.normalize(torch.randn(20, 64), dim=1)
    noisy = torch.nn.functional.normalize(descriptors + 0.3 * torch.randn(20, 64) / 8, dim=1)
    order = torch.randperm(20)
    points = (torch.rand(20, 2) * 40).numpy()
    pairs = PairOfFeatures(features(points, descriptors), features(points[order], noisy[order]), shifted_by(0.0, 0.0))
    truth = true_matches(pairs, 3, 5)
    network = SuperGlue(SuperGlueConfig(descriptor_dim=64))
    start_as_nearest_neighbours(network, pairs, truth)
    network.eval()
    assigned = network(pairs.features0, pairs.features1)
    assert torch.equal(assigned[0, :-1].argmax(1), torch.argsort(order))
    assert assigned[0, :-1, :-1].amax(1).exp().min() > 0.5


@pytest.fixture
def photographs(checkered_photographs):
    return checkered_photographs


@pytest.fixture(scope="module")
def checkered_photographs():
    from tiepoint.training.photographs import Photographs

    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (4, 16, 16, 1), np.uint8), np.ones((1, 8, 8, 1), np.uint8))
    return Photographs([f"{i}.png" for i in range(4)], pixels, "toy")


CONFIG = SuperGlueTrainingConfig(
    pairs=PairConfig(size=(96, 96), warp1=WarpConfig(rotation_deg=20, perspective=0.1)),
    pool=PoolConfig(num_views=2, num_keypoints=64),
    num_keypoints=(32, 64),
    num_iterations=5,
    num_validation=2,
    loop=LoopConfig(
        steps=4,
        batch_size=2,
        precision="fp32",
        warm_up_steps=1,
        learning_rate=1e-3,
        validate_every=10,
        average_decay=0.5,
    ),
)


@pytest.fixture
def pool(photographs, tmp_path):
    extractor = Sift(max_num_keypoints=64, contrast_threshold=0.01)
    return make_pool(
        photographs, tmp_path / "pool", extractor, "sift", CONFIG.pairs, CONFIG.pool, lambda done, total: None
    )


def test_the_pool_holds_what_the_views_show(pool):
    """Matches by descriptor alone fit the homographies that the pool states."""
    rows = torch.arange(4)
    pairs = pool.pairs(rows, torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long), 64, torch.device("cpu"))
    truth = true_matches(pairs, 3, 5)
    assert ((truth.partner0 >= 0) & (truth.partner0 < 64)).sum() > 20
    cosine = pairs.features0.descriptors @ pairs.features1.descriptors.mT
    best = cosine.argmax(2)
    right = (best == truth.partner0)[(truth.partner0 >= 0) & (truth.partner0 < cosine.shape[2])]
    assert right.float().mean() > 0.4  # of 62 each: by chance 0.02


def test_a_pool_of_other_settings_is_refused(pool, photographs, tmp_path):
    with pytest.raises(ValueError, match="other photographs or settings"):
        make_pool(photographs, tmp_path / "pool", Sift(), "orb", CONFIG.pairs, CONFIG.pool, lambda done, total: None)


def test_views_without_keypoints_are_passed_over(pool, photographs):
    counts = pool.counts.copy()
    counts[:2] = 0
    task = SuperGlueTraining(CONFIG, dataclasses.replace(pool, counts=counts), Sift(), photographs)
    for seed in range(8):
        assert torch.isfinite(
            task.loss(1, 1.0, torch.Generator().manual_seed(seed), Compute(torch.device("cpu"))).total
        )
    counts[2] = 0
    with pytest.raises(ValueError, match="found them in 25%"):
        SuperGlueTraining(CONFIG, dataclasses.replace(pool, counts=counts), Sift(), photographs)


@pytest.mark.parametrize("deep", [False, True])
def test_the_loss_falls(pool, photographs, deep):
    task = SuperGlueTraining(dataclasses.replace(CONFIG, deep_supervision=deep), pool, Sift(), photographs)
    optimiser = torch.optim.Adam(task.network.parameters(), lr=1e-4)
    losses = []
    for _ in range(25):
        loss = task.loss(2, 1.0, torch.Generator().manual_seed(0), Compute(torch.device("cpu")))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss.total.item())
    assert losses[-1] < 0.9 * losses[0]


def test_interrupted_and_resumed_equals_uninterrupted(pool, photographs, tmp_path):
    def run(folder, **more):
        task = SuperGlueTraining(CONFIG, pool, Sift(max_num_keypoints=64), photographs)
        return train(task, CONFIG.loop, Run(tmp_path / folder), on_progress=lambda text: None, **more), task.network

    _, whole = run("whole")
    with pytest.raises(Interrupted):
        run("parts", stop_after=2)
    _, parts = run("parts", resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def test_what_is_trained_matches(pool, photographs):
    """The untrained start, run as users run it, agrees with nearest neighbours on most of its matches."""
    task = SuperGlueTraining(CONFIG, pool, Sift(), photographs)
    pair = task.held_out[0]
    extractor = Sift(max_num_keypoints=64)
    found0, found1 = extractor.extract(pair.image0), extractor.extract(pair.image1)
    by_network = SuperGlueMatcher(task.network.eval(), SuperGlueOptions()).match_features(found0, found1)
    by_distance = NearestNeighbours(ratio=None).match_features(found0, found1)
    common = {tuple(row) for row in by_network.indices.tolist()} & {tuple(row) for row in by_distance.indices.tolist()}
    assert len(common) > 0.9 * len(by_network.indices) > 5
