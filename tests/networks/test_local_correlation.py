from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from tiepoint.networks.local_correlation import local_correlation, sample_at  # noqa: E402


def made(batch: int, channels: int, h: int, w: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    map0 = torch.randn(batch, channels, h, w, generator=generator)
    map1 = torch.randn(batch, channels, height, width, generator=generator)
    warp = torch.rand(batch, 2, h, w, generator=generator) * 2.6 - 1.3  # some of it outside
    return map0, map1, warp


def correlated_by_sampling(
    map0: torch.Tensor, map1: torch.Tensor, warp: torch.Tensor, radius: int
) -> torch.Tensor:
    """The definition, written out: sample every offset of the window."""
    height, width = map1.shape[-2:]
    found = []
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            step = torch.tensor([2 * dx / width, 2 * dy / height]).view(1, 2, 1, 1)
            grid = (warp + step).permute(0, 2, 3, 1)
            found.append((map0 * F.grid_sample(map1, grid, align_corners=False)).sum(1))
    return torch.stack(found, 1) / map0.shape[1] ** 0.5


@pytest.mark.parametrize("shape", [(1, 8, 5, 7, 5, 7), (2, 16, 6, 4, 9, 3), (1, 4, 1, 1, 1, 1)])
@pytest.mark.parametrize("radius", [1, 3])
def test_equals_its_definition(shape: tuple[int, int, int, int, int, int], radius: int) -> None:
    map0, map1, warp = made(*shape)
    expected = correlated_by_sampling(map0, map1, warp, radius)
    torch.testing.assert_close(local_correlation(map0, map1, warp, radius), expected, atol=1e-5, rtol=1e-4)
    grid = warp.permute(0, 2, 3, 1)
    torch.testing.assert_close(
        sample_at(map1, warp), F.grid_sample(map1, grid, align_corners=False), atol=1e-5, rtol=1e-4
    )


def test_a_known_shift_peaks_at_its_offset() -> None:
    map1 = torch.eye(12).view(1, 12, 3, 4)  # every cell its own channel
    x, y = (torch.arange(4) * 2 + 1) / 4 - 1, (torch.arange(3) * 2 + 1) / 3 - 1
    warp = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    map0 = map1.roll((-1, -2), (2, 3))  # map0(x, y) = map1(x + 2, y + 1)
    window = local_correlation(map0, map1, warp[None], 2)[0, :, 0, 0].view(5, 5)
    assert divmod(int(window.argmax()), 5) == (2 + 1, 2 + 2)
    assert window.max() == pytest.approx(12**-0.5)


def test_gradients_are_those_of_the_definition() -> None:
    map0, map1, warp = made(2, 6, 4, 5, 6, 3)
    first, second = (map0.clone().requires_grad_() for _ in range(2))
    target = map1.clone().requires_grad_()
    weights = torch.randn(2, 25, 4, 5, generator=torch.Generator().manual_seed(4))
    (local_correlation(first, target, warp, 2) * weights).sum().backward()
    (correlated_by_sampling(second, map1, warp, 2) * weights).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, atol=1e-4, rtol=1e-4)
    assert target.grad is None  # as published: nothing flows to the other image from here

    read = map1.clone().requires_grad_()
    plain = map1.clone().requires_grad_()
    (sample_at(read, warp) * map0).sum().backward()
    (F.grid_sample(plain, warp.permute(0, 2, 3, 1), align_corners=False) * map0).sum().backward()
    torch.testing.assert_close(read.grad, plain.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_warp_that_left_the_picture_reads_nothing(value: float) -> None:
    map0, map1, warp = made(1, 4, 3, 3, 5, 5)
    away = torch.full_like(warp, value)
    assert (local_correlation(map0, map1, away, 2) == 0).all()
    assert (sample_at(map1, away) == 0).all()


def test_memory_does_not_grow_with_the_window() -> None:
    """A window of 15 x 15 unfolded would be 225 times the map; what is allocated is far less."""
    map0, map1, warp = made(1, 256, 24, 24, 24, 24)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        local_correlation(map0, map1, warp, 7)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert allocated < 0.3 * 225 * map1.nbytes
