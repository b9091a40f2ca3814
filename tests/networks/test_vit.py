from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tiepoint.networks.folding import fold_batch_norms  # noqa: E402
from tiepoint.networks.linear import Linear  # noqa: E402
from tiepoint.networks.vgg import VggPyramid  # noqa: E402
from tiepoint.networks.vit import Attention, Block, VisionTransformer, VitConfig  # noqa: E402

SMALL = VitConfig(dim=32, num_heads=4, depth=2, table_side=5)


def test_linear_equals_torch_on_both_routes() -> None:
    torch.manual_seed(0)
    ours, theirs = Linear(24, 40), nn.Linear(24, 40)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x))  # with gradients
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-5)


def test_position_table_is_left_alone_at_its_own_size_and_resized_elsewhere() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(SMALL)
    nn.init.normal_(vit.pos_embed)
    assert vit.positions(5, 5) is vit.pos_embed
    wide = vit.positions(4, 9)
    assert wide.shape == (1, 1 + 36, 32)
    torch.testing.assert_close(wide[:, 0], vit.pos_embed[:, 0])
    # The published factor has 0.1 more: the first sample stands at 0.5 * 5 / 4.1 - 0.5 rather than * 5 / 4.
    table = vit.pos_embed[:, 1:].view(1, 5, 5, 32).permute(0, 3, 1, 2)
    plain = nn.functional.interpolate(table, size=(4, 9), mode="bicubic")
    assert (wide[0, 1:].t().reshape(32, 4, 9) - plain[0]).abs().max() > 1e-3


def test_any_multiple_of_the_patch_makes_one_vector_a_patch() -> None:
    vit = VisionTransformer(SMALL)
    assert vit(torch.randn(2, 3, 14, 42)).shape == (2, 32, 1, 3)


def test_folding_layer_scale_changes_nothing() -> None:
    torch.manual_seed(0)
    block = Block(32, 4, qkv_bias=True, layer_scale=True)
    nn.init.uniform_(block.ls1.gamma)
    nn.init.uniform_(block.ls2.gamma)
    tokens = torch.randn(1, 9, 32)
    before = block(tokens)
    block.fold_layer_scale()
    torch.testing.assert_close(block(tokens), before, atol=1e-6, rtol=1e-5)


def test_attention_in_bfloat16_is_near_float32() -> None:
    torch.manual_seed(0)
    attention = Attention(64, 4, qkv_bias=True)
    tokens = torch.randn(2, 50, 64)
    with torch.inference_mode():
        exact = attention(tokens)
        rough = attention.to(torch.bfloat16)(tokens).float()
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_folding_batch_norms_changes_nothing() -> None:
    torch.manual_seed(0)
    pyramid = VggPyramid((4, 6, 8, 10))
    images = torch.randn(2, 3, 37, 50)
    pyramid(images)  # running statistics away from their start
    pyramid.eval()
    before = pyramid(images)
    assert {stride: tuple(maps.shape[1:]) for stride, maps in before.items()} == {
        1: (4, 37, 50),
        2: (6, 18, 25),
        4: (8, 9, 12),
        8: (10, 4, 6),
    }
    fold_batch_norms(pyramid)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in pyramid.modules())
    for stride, maps in pyramid(images).items():
        torch.testing.assert_close(maps, before[stride], atol=1e-5, rtol=1e-4)
