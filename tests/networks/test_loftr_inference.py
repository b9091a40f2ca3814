"""LoFTR's fast form against the form that trains."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from tiepoint.networks.loftr import SMALL, LoftrConfig, LoftrNetwork, gather_windows  # noqa: E402
from tiepoint.networks.loftr_inference import LoftrInference, fine_windows  # noqa: E402
from tiepoint.networks.resnet_fpn import FastResNetFPN, ResNetFPN, doubled, doubled_squares  # noqa: E402


def normalisations_filled(network, seed=0):
    """Random statistics, so that folding them is no identity."""
    torch.manual_seed(seed)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            torch.nn.init.normal_(part.weight, 1, 0.1)
            torch.nn.init.normal_(part.bias, 0, 0.1)
    return network.eval()


@pytest.mark.parametrize("size", [(2, 2), (7, 5), (30, 41)])
def test_squares_of_a_doubled_map_are_those_of_the_whole(size):
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    whole = doubled(x)
    for side in (1, 2, 9, 13):
        top, left = torch.randint(0, 2 * size[0], (20,)), torch.randint(0, 2 * size[1], (20,))
        rows, columns = top[:, None] + torch.arange(side), left[:, None] + torch.arange(side)
        squares = doubled_squares(x, rows, columns)
        for k in range(20):
            inside = squares[k, :, : 2 * size[0] - top[k], : 2 * size[1] - left[k]]
            wanted = whole[0, :, top[k] : top[k] + side, left[k] : left[k] + side]
            torch.testing.assert_close(inside, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
@torch.no_grad()
def test_windows_made_where_asked_are_those_of_the_whole_map(share):
    torch.manual_seed(1)
    backbone = normalisations_filled(ResNetFPN((16, 24, 32)))
    fast = FastResNetFPN(backbone)
    gray = torch.rand(1, 1, 88, 136)
    maps = backbone(gray)
    encoded = fast.pyramid(gray)
    torch.testing.assert_close(encoded.coarse, maps.coarse, atol=2e-5, rtol=1e-5)
    cells = torch.nonzero(torch.rand(11 * 17) <= share).squeeze(1)  # to the rim, where windows reach outside
    wanted = gather_windows(maps.fine, torch.zeros_like(cells), cells, 17)

    class Image:
        middle, half, grid = encoded.middle, encoded.half, (11, 17)

    torch.testing.assert_close(fine_windows(fast, Image, cells), wanted, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("matching", ["dual_softmax", "optimal_transport"])
def test_every_weight_is_trained(matching):
    """The coarse confidence and the offsets at given matches reach every parameter; masks and batches are taken."""
    torch.manual_seed(2)
    network = LoftrNetwork(replace(SMALL, matching=matching, num_coarse_pairs=1))
    gray0, gray1 = torch.rand(2, 1, 48, 64), torch.rand(2, 1, 56, 48)
    valid0, valid1 = torch.ones(2, 6, 8, dtype=torch.bool), torch.ones(2, 7, 6, dtype=torch.bool)
    valid0[1, 5:] = False
    valid1[0, :, 4:] = False
    maps0, maps1 = network.maps(gray0, gray1)
    tokens0, tokens1 = network.coarse_tokens(maps0.coarse, maps1.coarse, valid0, valid1)
    confidence = network.coarse_confidence(tokens0, tokens1, valid0, valid1)
    batch, cells0, cells1 = torch.tensor([0, 0, 1]), torch.tensor([9, 30, 11]), torch.tensor([7, 20, 15])
    windows0 = network.fine_windows(maps0, tokens0, batch, cells0)
    windows1 = network.fine_windows(maps1, tokens1, batch, cells1)
    _, _, fine = network.fine_matches(windows0, windows1)
    loss = -confidence[batch, cells0, cells1].log().mean() + (fine.offset**2).mean() + fine.sigma.mean()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    real = confidence[:, :48, :42]
    assert (real[1, 40:] < 1e-6).all()
    assert (real[0][:, 4::6] < 1e-6).all()


def test_padding_changes_nothing_in_the_matches():
    """An image padded below and to the right, with its grid told, matches as it does by itself but at that rim."""
    torch.manual_seed(3)
    network = normalisations_filled(LoftrNetwork(replace(SMALL, threshold=1e-6)))
    fast = LoftrInference(network)
    gray = torch.rand(1, 1, 96, 128)
    padded = torch.nn.functional.pad(gray, (0, 32, 0, 16))
    alone, told = fast.encode(gray)[0], fast.encode(padded, [(12, 16)])[0]
    assert told.grid == alone.grid
    near = torch.nn.functional.cosine_similarity(told.tokens, alone.tokens).view(12, 16)
    assert near[:8, :11].min() > 0.99
    assert len(fast.match(told, alone).cells0) > 0


def test_the_small_form_is_an_eighth():
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for config in (LoftrConfig(), SMALL):
        network = LoftrNetwork(config).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            maps0, maps1 = network.maps(torch.rand(1, 1, 64, 96), torch.rand(1, 1, 64, 96))
            network.coarse_tokens(maps0.coarse, maps1.coarse)
        counts.append(counter.get_total_flops())
    assert counts[1] < counts[0] / 7
