"""Transformer layers with linear attention (Katharopoulos et al., ICML 2020), arranged as in LoFTR.

Tokens are (B, N, C), channel last. A mask of valid tokens is (B, N) bool, or None where all are valid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiepoint.networks.linear import Linear

EPSILON = 1e-6


class LinearTransformer(nn.Module):
    """Self and cross attention in turn over the tokens of two images (LoFTR, section 3.2).

    num_pairs: how many times (self, cross). Each layer has one set of weights for both images. In a cross layer
    image 0 goes first and image 1 attends to what it has become, so the result depends on the images' order.
    """

    def __init__(self, dim: int, num_heads: int, num_pairs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LinearTransformerLayer(dim, num_heads) for _ in range(2 * num_pairs))
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)

    def forward(
        self, x0: Tensor, x1: Tensor, valid0: Tensor | None = None, valid1: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x0, x1 = self.layers[0](x0, x0, valid0, valid0), self.layers[0](x1, x1, valid1, valid1)
        return self.after_first(x0, x1, valid0, valid1)

    def after_first(
        self, x0: Tensor, x1: Tensor, valid0: Tensor | None = None, valid1: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The rest, given what the first layer makes of each image by itself."""
        for i, layer in enumerate(self.layers[1:], start=1):
            if i % 2 == 0:
                x0, x1 = layer(x0, x0, valid0, valid0), layer(x1, x1, valid1, valid1)
            else:
                x0 = layer(x0, x1, valid0, valid1)
                x1 = layer(x1, x0, valid1, valid0)
        return x0, x1


class LinearTransformerLayer(nn.Module):
    """x plus a message read from the source; both norms are on the message, none on x."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads != 0:
            raise ValueError(f"dim: expected a multiple of {num_heads} heads, got {dim}")
        self.num_heads = num_heads
        self.q_proj = Linear(dim, dim, bias=False)
        self.k_proj = Linear(dim, dim, bias=False)
        self.v_proj = Linear(dim, dim, bias=False)
        self.merge = Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(
            Linear(2 * dim, 2 * dim, bias=False), nn.ReLU(inplace=True), Linear(2 * dim, dim, bias=False)
        )
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, source: Tensor, valid: Tensor | None = None, source_valid: Tensor | None = None
    ) -> Tensor:
        query = x.to(self.merge.weight.dtype)  # a layer in half precision leaves x itself in single
        source = source.to(query.dtype)
        q, k, v = (
            self._heads(self.q_proj(query)),
            self._heads(self.k_proj(source)),
            self._heads(self.v_proj(source)),
        )
        message: Tensor = self.merge(linear_attention(q, k, v, valid, source_valid).flatten(-2))
        message = self.mlp(torch.cat([query, self.norm1(message)], dim=-1))
        message = self.norm2(message)
        return x + message

    def _heads(self, x: Tensor) -> Tensor:
        # (B, N, C) to (B, N, heads, C / heads); -1 could not be told of an empty batch
        return x.view(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None, source_valid: Tensor | None = None
) -> Tensor:
    """(B, N, heads, D): attention with the kernel f(q) . f(k), f(x) = elu(x) + 1, in place of exp(q . k).

    By the order of its products it costs N D^2 where the softmax costs N^2 D. Means stand in for sums over
    the source, so that half precision does not overflow.
    """
    q, k = F.elu(q) + 1, F.elu(k) + 1
    if valid is not None:
        q = q * valid[:, :, None, None]
    if source_valid is not None:
        k = k * source_valid[:, :, None, None]
        v = v * source_valid[:, :, None, None]
    count = v.shape[1]
    summed = torch.einsum("bshd,bshv->bhdv", k, v / count)
    total = torch.einsum("bnhd,bhd->bnh", q, k.mean(dim=1)).float() + EPSILON / count
    return torch.einsum("bnhd,bhdv->bnhv", q, summed) * (1 / total).to(q.dtype).unsqueeze(-1)
