"""Equivariant kernels and convolutions: dimensions known by hand, equivariance, and the plain form."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiepoint.networks.equivariant_resnet import ReResNet, ReWideResNet  # noqa: E402
from tiepoint.networks.group_convolution import FieldBatchNorm, GroupConv2d, inference_form  # noqa: E402
from tiepoint.networks.steerable_basis import SteerableKernels  # noqa: E402

PARAMETRISATIONS = ["ring_fourier", "e2cnn"]


def turned(maps: torch.Tensor, order: int) -> torch.Tensor:
    """Maps (B, F * order, H, W) turned by 90 degrees counter-clockwise, group elements with them."""
    fields = torch.rot90(maps, 1, (2, 3)).unflatten(1, (-1, order))
    return fields.roll(order // 4, dims=2).flatten(1, 2)


def relative_gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def shake(network: torch.nn.Module) -> None:
    """Normalisations as after training: statistics of their own, not 0 and 1."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, FieldBatchNorm):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    network.eval()


# ---------------------------------------------------------------- bases


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize(
    ("order", "size", "source", "elements"),
    [
        (16, 1, "regular", 16),
        (16, 3, "regular", 128),
        (8, 3, "regular", 64),
        (16, 7, "trivial", 40),
        (8, 7, "trivial", 40),
    ],
)
def test_dimensions_of_the_residual_network(
    parametrisation: str, order: int, size: int, source: str, elements: int
) -> None:
    basis = SteerableKernels(order=order, parametrisation=parametrisation).basis(size, source, "regular")
    assert basis.shape == (elements, order, order if source == "regular" else 1, size * size)
    assert np.linalg.matrix_rank(basis.reshape(elements, -1).astype(float), tol=1e-4) == elements


@pytest.mark.parametrize(
    ("order", "size", "source"),
    [(8, 7, "trivial"), (16, 5, "trivial"), (8, 1, "regular"), (16, 3, "regular"), (8, 5, "regular")],
)
@pytest.mark.parametrize("slope_and_width", [(3.0, None), (0.8 * np.pi, 0.6)])
def test_both_parametrisations_span_one_space(
    order: int, size: int, source: str, slope_and_width: tuple[float, float | None]
) -> None:
    slope, width = slope_and_width
    bases = [
        SteerableKernels(
            order=order, cutoff_slope=slope, ring_width_px=width, parametrisation=parametrisation
        ).basis(size, source, "regular")
        for parametrisation in PARAMETRISATIONS
    ]
    assert bases[0].shape == bases[1].shape
    ours, theirs = (basis.reshape(len(basis), -1).T.astype(float) for basis in bases)
    solved = np.linalg.lstsq(ours, theirs, rcond=1e-7)[0]
    np.testing.assert_allclose(ours @ solved, theirs, atol=2e-6)


def test_elements_of_ring_fourier_are_of_one_size() -> None:
    basis = SteerableKernels(order=16).basis(3, "regular", "regular")
    power = (basis.astype(float) ** 2).sum(axis=(2, 3))  # of every element, as each output channel sees it
    np.testing.assert_allclose(power.mean(axis=1), 1, atol=1e-6)


def test_wrong_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        SteerableKernels(order=8).basis(4, "regular", "regular")
    with pytest.raises(ValueError, match="at least 2"):
        SteerableKernels(order=1)
    with pytest.raises(ValueError, match="trivial"):
        SteerableKernels(order=8).basis(3, "regular", "trivial")
    with pytest.raises(ValueError, match="divisor of 64"):
        ReResNet(12)


# ---------------------------------------------------------------- convolutions


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_turn_with_their_input(parametrisation: str, size: int, stride: int) -> None:
    torch.manual_seed(0)
    kernels = SteerableKernels(order=8, parametrisation=parametrisation)
    lifting = GroupConv2d(kernels, 3, 2, size, source="trivial", stride=stride)
    group = GroupConv2d(kernels, 2, 3, size, stride=stride)
    image = torch.randn(2, 3, 21, 21)
    with torch.no_grad():
        lifted = lifting(image)
        assert relative_gap(lifting(torch.rot90(image, 1, (2, 3))), turned(lifted, 8)) < 1e-6
        fields = torch.randn(2, 16, 21, 21)
        assert relative_gap(group(turned(fields, 8)), turned(group(fields), 8)) < 1e-6


def test_a_blob_turned_by_an_eighth_moves_the_fields_by_one() -> None:
    """45 degrees of a smooth pattern, drawn anew: exact but for the sampling of the kernel."""
    y, x = np.mgrid[30:-31:-1, -30:31].astype(float)

    def pattern(angle: float) -> torch.Tensor:
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        picture = np.exp(-(((u - 4) / 14) ** 2) - (v / 7) ** 2) * np.cos(0.25 * u + 0.3)
        return torch.from_numpy(picture.astype(np.float32))[None, None]

    torch.manual_seed(1)
    lifting = GroupConv2d(SteerableKernels(order=8), 1, 4, 7, source="trivial")
    with torch.no_grad():
        at_centre = [lifting(pattern(angle))[0, :, 30, 30].view(4, 8) for angle in (0.0, np.pi / 4)]
    gaps = [relative_gap(at_centre[1], at_centre[0].roll(shift, dims=1)) for shift in range(8)]
    assert int(np.argmin(gaps)) == 1
    assert gaps[1] < 0.04 < min(gaps[0], gaps[2]) / 2


def test_field_normalisation_pools_the_group() -> None:
    torch.manual_seed(0)
    norm = FieldBatchNorm(3, 4)
    x = torch.randn(2, 12, 5, 6) * 3 + 1
    fields = norm(x).view(2, 3, 4, 5, 6)
    assert torch.allclose(fields.mean(dim=(0, 2, 3, 4)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(fields.var(dim=(0, 2, 3, 4), unbiased=False), torch.ones(3), atol=1e-3)
    assert norm.running_mean.shape == (3,)


# ---------------------------------------------------------------- networks

NETWORKS = {
    "re_resnet C16": lambda: ReResNet(16),
    "re_resnet C8": lambda: ReResNet(8),
    "re_resnet C16, e2cnn": lambda: ReResNet(16, "e2cnn"),
    "wide": lambda: ReWideResNet(),
    "wide, published": lambda: ReWideResNet("e2cnn", published_flaw=True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_inference_form_equals_training_form(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    shake(network)
    plain = inference_form(network)
    assert not any(isinstance(module, GroupConv2d | FieldBatchNorm) for module in plain.modules())
    assert any(isinstance(module, GroupConv2d) for module in network.modules())  # the original is untouched
    image = torch.randn(2, 3, 34, 49)
    with torch.no_grad():
        trained, run = network(image), plain(image)
    for stride, fields, a, b in zip(network.strides, network.num_fields, trained, run, strict=True):
        assert a.shape == (2, fields * network.order, -(-34 // stride), -(-49 // stride))
        assert relative_gap(b, a) < 1e-5


@pytest.mark.parametrize("name", ["re_resnet C16", "re_resnet C8", "re_resnet C16, e2cnn", "wide"])
def test_networks_turn_with_the_image(name: str) -> None:
    """Sides of 16 k + 1: the stages of a turned image are the turned stages."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    shake(network)
    plain = inference_form(network)
    image = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        maps, of_turned = plain(image), plain(torch.rot90(image, 1, (2, 3)))
    for before, after in zip(maps, of_turned, strict=True):
        assert relative_gap(after, turned(before, network.order)) < 1e-5


def test_the_published_flaw_does_not_turn() -> None:
    """Group 3 ends in trivial fields: its channels stay where they are, so its histogram shows no rotation."""
    network = ReWideResNet("e2cnn", published_flaw=True)
    shake(network)
    plain = inference_form(network)
    image = torch.randn(1, 3, 49, 49)
    with torch.no_grad():
        maps, of_turned = plain(image), plain(torch.rot90(image, 1, (2, 3)))
    for before, after in zip(maps[:2], of_turned[:2], strict=True):
        assert relative_gap(after, turned(before, 8)) < 1e-5
    assert relative_gap(of_turned[2], torch.rot90(maps[2], 1, (2, 3))) < 1e-5
    assert relative_gap(of_turned[2], turned(maps[2], 8)) > 0.5


def test_even_sides_break_the_symmetry() -> None:
    """Why images are brought to 16 k + 1."""
    network = ReResNet(8)
    shake(network)
    plain = inference_form(network)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before, after = plain(image)[0], plain(torch.rot90(image, 1, (2, 3)))[0]
    assert relative_gap(after, turned(before, 8)) > 0.1


def test_parameter_counts_of_the_paper() -> None:
    """622,136 and 1,244,272; the wide one's 2,613,523 count a classifier of 5,130 and 1,024 of a normalisation
    that the features do not use."""
    counts = [
        sum(p.numel() for p in NETWORKS[name]().parameters()) for name in ("re_resnet C16", "re_resnet C8")
    ]
    assert counts == [622_136, 1_244_272]
    wide = sum(p.numel() for p in NETWORKS["wide, published"]().parameters())
    assert wide == 2_613_523 - 5_130 - 1_024


def test_the_training_form_learns() -> None:
    torch.manual_seed(0)
    network = ReResNet(8).train()
    image, target = torch.randn(2, 3, 33, 33), torch.randn(2, 512, 3, 3)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = (network(image)[-1] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_ring_fourier_files_hold_coefficients_alone() -> None:
    assert not any(key.endswith("basis") for key in ReResNet(8).state_dict())
    assert any(key.endswith("basis") for key in ReResNet(8, "e2cnn").state_dict())
