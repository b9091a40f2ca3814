"""LoFTR's fast form against the form that trains."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tiepoint.networks.loftr import gather_windows  # noqa: E402
from tiepoint.networks.loftr_inference import fine_windows  # noqa: E402
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
