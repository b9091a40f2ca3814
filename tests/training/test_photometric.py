"""Light and camera: seeded, bounded, and nothing at zero strength."""

import dataclasses

import pytest
import torch

from tiepoint.training.photometric import PhotometricConfig, disturbed

NOTHING = PhotometricConfig(**{field.name: 0 for field in dataclasses.fields(PhotometricConfig)})
STRENGTHS = {
    "contrast": 1.0, "brightness": 0.3, "gamma": 1.0, "shade": 0.4, "blur_px": 2.0, "motion_px": 9.0,
    "noise": 0.1, "impulse": 0.02, "compression": 0.5, "patches": 3,
}  # fmt: skip


def pictures(height: int = 40, width: int = 52) -> torch.Tensor:
    return torch.rand(6, 1, height, width, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


def changed(config: PhotometricConfig, seed: int = 1, images: torch.Tensor | None = None) -> torch.Tensor:
    return disturbed(pictures() if images is None else images, config, torch.Generator().manual_seed(seed))


def test_nothing_changes_nothing():
    assert torch.equal(changed(NOTHING), pictures())


@pytest.mark.parametrize("name", STRENGTHS)
def test_each_change_changes_and_stays_a_picture(name):
    config = dataclasses.replace(NOTHING, **{name: STRENGTHS[name]})
    result = changed(config)
    assert result.shape == pictures().shape
    assert 0 <= result.min() <= result.max() <= 1
    assert (result - pictures()).abs().max() > 0.01
    assert torch.equal(result, changed(config))
    assert not torch.equal(result, changed(config, seed=2))


def test_blur_keeps_a_flat_picture_and_the_middle_of_a_point():
    config = dataclasses.replace(NOTHING, blur_px=2.0, motion_px=9.0)
    flat = torch.full((4, 1, 24, 24), 0.4)
    torch.testing.assert_close(changed(config, images=flat), flat)
    point = torch.zeros(4, 1, 31, 31)
    point[:, :, 15, 15] = 1.0
    blurred = changed(config, images=point)[:, 0]
    place = torch.arange(31.0)
    for weights in (blurred.sum(1), blurred.sum(2)):
        torch.testing.assert_close((weights * place).sum(1) / weights.sum(1), torch.full((4,), 15.0), atol=1e-3, rtol=0)


def test_compression_keeps_a_flat_picture_and_odd_sizes():
    config = dataclasses.replace(NOTHING, compression=0.05)
    result = changed(config, images=pictures(19, 21))
    assert torch.equal(result[:, :, 16:], pictures(19, 21)[:, :, 16:])
    assert (result - pictures(19, 21)).abs().max() < 0.2


def test_tiny_pictures():
    assert changed(PhotometricConfig(), images=torch.full((1, 1, 1, 1), 0.5)).shape == (1, 1, 1, 1)
