"""Streamed matching against the confidence matrix written down."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tiepoint.networks.mutual_matching import (  # noqa: E402
    dual_softmax,
    match_by_dual_softmax,
    match_by_optimal_transport,
)
from tiepoint.networks.optimal_transport import optimal_transport  # noqa: E402


def features(rows, columns, strength, seed=0):
    """Random features of which half are alike in both sets."""
    generator = torch.Generator().manual_seed(seed)
    features0 = torch.randn(rows, 16, generator=generator)
    features1 = torch.randn(columns, 16, generator=generator)
    shared = min(rows, columns) // 2
    features1[:shared] = features0[torch.randperm(rows, generator=generator)[:shared]]
    return strength * features0, features1


def mutual(confidence, threshold):
    """(row, column) of the entries above `threshold` that are the largest of their row and column."""
    best = (confidence == confidence.amax(1, keepdim=True)) & (confidence == confidence.amax(0, keepdim=True))
    return torch.nonzero(best & (confidence > threshold))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (70, 45), (129, 200)])
@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0])  # from nearly level to far beyond what exp can hold
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.4])
@pytest.mark.parametrize("block", [32, 1000])
def test_dual_softmax_streamed_is_dual_softmax(size, strength, threshold, block):
    features0, features1 = features(*size, strength)
    confidence = dual_softmax((0.5 * features0.double() @ features1.T.double())[None])[0]
    found = match_by_dual_softmax(features0, features1, 0.5, threshold, block)
    # Where double and single precision disagree on what is above 0 or the threshold is no matter.
    wanted = mutual(confidence, max(threshold, 1e-30))
    sure = found.confidence > 1e-30
    assert torch.stack([found.rows, found.columns], 1)[sure].tolist() == wanted.tolist()
    expected = confidence[found.rows, found.columns].float()
    torch.testing.assert_close(found.confidence, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (70, 45), (129, 200)])
@pytest.mark.parametrize("strength", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("block", [32, 1000])
@pytest.mark.parametrize("num_iterations", [1, 3, 20])
def test_optimal_transport_streamed_is_optimal_transport(size, strength, block, num_iterations):
    features0, features1 = features(*size, strength)
    bin_score = torch.tensor(1.5)
    whole = optimal_transport(
        (0.5 * features0.double() @ features1.T.double())[None], bin_score.double(), num_iterations
    )[0]
    found = match_by_optimal_transport(features0, features1, 0.5, bin_score, num_iterations, 0.01, block)
    assert torch.stack([found.rows, found.columns], 1).tolist() == mutual(whole[:-1, :-1], 0.01).tolist()
    torch.testing.assert_close(found.confidence, whole[found.rows, found.columns].float(), rtol=2e-3, atol=1e-6)


def test_transport_moves_every_mass():
    """After many iterations each row holds 1, each column 1, the dustbins what is left for them."""
    features0, features1 = features(30, 20, 1.0)
    moved = optimal_transport((features0 @ features1.T)[None], torch.tensor(1.0), 200)[0]
    torch.testing.assert_close(moved.sum(0), torch.tensor([1.0] * 20 + [30.0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.sum(1), torch.tensor([1.0] * 30 + [20.0]), rtol=1e-2, atol=1e-2)


def test_transport_of_one_cell_each_by_hand():
    """One real row and column, all scores 0: the scores do not tell them apart, so half goes each way."""
    moved = optimal_transport(torch.zeros(1, 1, 1), torch.tensor(0.0), 3)[0]
    torch.testing.assert_close(moved, torch.full((2, 2), 0.5))


def test_the_prefilter_drops_what_the_dustbin_takes_most_of():
    features0, features1 = features(60, 50, 1.0)
    bin_score = torch.tensor(2.0)
    whole = optimal_transport((0.5 * features0 @ features1.T)[None], bin_score, 3)[0]
    rows = whole[:-1].argmax(1) < 50
    columns = whole[:, :-1].argmax(0) < 60
    wanted = mutual(whole[:-1, :-1] * rows[:, None] * columns, 1e-4)
    found = match_by_optimal_transport(features0, features1, 0.5, bin_score, 3, 1e-4, 16, prefilter=True)
    assert torch.stack([found.rows, found.columns], 1).tolist() == wanted.tolist()
    assert 0 < len(wanted) < len(match_by_optimal_transport(features0, features1, 0.5, bin_score, 3, 1e-4, 16).rows)
