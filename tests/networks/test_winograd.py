"""Convolutions with half the multiplications: the values of torch's own, wherever strips and steps of rows end."""

import pytest
import torch
from torch import nn

from tiepoint.networks import winograd
from tiepoint.networks.winograd import WinogradConv2d, faster, make_faster


def made(channels_in, channels_out, *, bias=True, **settings):
    torch.manual_seed(channels_in + channels_out)
    settings = {"kernel_size": 3, "padding": 1, **settings}
    return nn.Conv2d(channels_in, channels_out, bias=bias, **settings).requires_grad_(False)


def pictures(batch, channels, height, width):
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(height))
    return x.contiguous(memory_format=torch.channels_last)


def exact(conv, x):
    return conv.double()(x.double())


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 9, 30])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_plain_convolution_at_every_height(height, bias):
    conv, x = made(16, 24, bias=bias), pictures(2, 16, height, 7)
    found = WinogradConv2d(conv.weight, conv.bias)(x)
    torch.testing.assert_close(found.double(), exact(conv, x), rtol=0, atol=1e-5)
    assert found.stride(1) == 1  # channels-last


@pytest.mark.parametrize("height", [3, 6, 7, 20])
def test_without_row_padding_only_rows_with_both_neighbours_come_out(height):
    conv, x = made(8, 8), pictures(1, 8, height, 5)
    found = WinogradConv2d(conv.weight, conv.bias)(x, 0)
    torch.testing.assert_close(found.double(), exact(conv, x)[:, :, 1:-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("strip_bytes", [1, 5000, 20000])
@pytest.mark.parametrize("row_padding", [0, 1])
def test_strips_change_nothing(monkeypatch, strip_bytes, row_padding):
    conv, x = made(8, 16), pictures(2, 8, 37, 11)
    network = WinogradConv2d(conv.weight, conv.bias)
    whole = network(x, row_padding)
    monkeypatch.setattr(winograd, "STRIP_BYTES", strip_bytes)
    torch.testing.assert_close(network(x, row_padding), whole, rtol=0, atol=1e-6)


def test_rounding_stays_near_that_of_the_plain_convolution():
    conv, x = made(256, 256), pictures(1, 256, 60, 80)
    plain, network = conv(x).double(), WinogradConv2d(conv.weight, conv.bias)
    truth = exact(conv, x)
    error = (network(x).double() - truth).square().mean().sqrt()
    assert error < 5 * (plain - truth).square().mean().sqrt()
    assert error < 5e-6 * truth.std()


def test_takes_planes_as_well_as_channels_last():
    conv, x = made(8, 8), pictures(1, 8, 12, 9)
    network = WinogradConv2d(conv.weight, conv.bias)
    torch.testing.assert_close(network(x.contiguous()), network(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2},
        {"padding": 0},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 5, "padding": 2},
        {"padding_mode": "reflect"},
    ],
)
def test_other_convolutions_are_left_as_they_are(settings):
    conv = made(64, 64, **settings)
    assert faster(conv) is conv


def test_few_channels_and_half_precision_are_left_as_they_are():
    for conv in (made(32, 64), made(64, 64).to(torch.bfloat16)):
        assert faster(conv) is conv
    assert isinstance(faster(made(64, 64)), WinogradConv2d)


def test_a_network_is_changed_throughout_and_computes_the_same():
    network = nn.Sequential(made(3, 64), nn.ReLU(), nn.Sequential(made(64, 96), nn.ReLU(), made(96, 64, stride=2)))
    x = pictures(1, 3, 33, 21)
    before = network(x)
    make_faster(network)
    kinds = [type(module) for module in network.modules() if isinstance(module, nn.Conv2d | WinogradConv2d)]
    assert kinds == [nn.Conv2d, WinogradConv2d, nn.Conv2d]
    torch.testing.assert_close(network(x), before, rtol=0, atol=1e-5)
