"""The papers' equations in plain PyTorch, one operation after the other: what the benchmarks compare with.

Functions of a checkpoint's tensors in the published naming, written for nothing but likeness to the text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def superpoint(
    w: dict[str, Tensor], image: Tensor, radius: int, threshold: float, border: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints (N, 2), scores (N,), descriptors (N, D) of an image (1, 1, H, W); SuperPoint without BatchNorm."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = w[f"conv{name}.weight"]
        return F.conv2d(x, weight, w[f"conv{name}.bias"], padding=weight.shape[-1] // 2)

    x = image
    for stage in "1234":
        x = F.relu(conv(x, stage + "a"))
        x = F.relu(conv(x, stage + "b"))
        if stage != "4":
            x = F.max_pool2d(x, 2, 2)
    probability = F.softmax(conv(F.relu(conv(x, "Pa")), "Pb"), 1)[:, :-1]
    scores = F.pixel_shuffle(probability, 8)[0, 0]
    descriptors = F.normalize(conv(F.relu(conv(x, "Da")), "Db"), dim=1)

    def window_maximum(s: Tensor) -> Tensor:
        return F.max_pool2d(s[None, None], 2 * radius + 1, stride=1, padding=radius)[0, 0]

    zeros = torch.zeros_like(scores)
    kept = scores == window_maximum(scores)
    for _ in range(2):
        silenced = window_maximum(kept.float()) > 0
        rest = torch.where(silenced, zeros, scores)
        kept = kept | ((rest == window_maximum(rest)) & ~silenced)
    scores = torch.where(kept, scores, zeros)

    height, width = scores.shape
    y, x_ = torch.where(scores > threshold)
    values = scores[y, x_]
    inside = (x_ >= border) & (x_ < width - border) & (y >= border) & (y < height - border)
    keypoints, values = torch.stack([x_, y], 1)[inside], values[inside]
    values, order = torch.topk(values, min(count, len(values)))
    keypoints = keypoints[order].float()

    rows, columns = descriptors.shape[2:]
    last = torch.tensor([8 * columns - 4.5, 8 * rows - 4.5])
    grid = (keypoints - 3.5) / last * 2 - 1
    sampled = F.grid_sample(descriptors, grid[None, None], mode="bilinear", align_corners=True)[0, :, 0]
    return keypoints, values, F.normalize(sampled, dim=0).T


def superglue(
    w: dict[str, Tensor],
    keypoints: list[Tensor],
    scores: list[Tensor],
    descriptors: list[Tensor],
    sizes: list[tuple[int, int]],
    iterations: int,
) -> Tensor:
    """(M + 1, N + 1) log assignment of two images' keypoints (N, 2), scores (N,), descriptors (N, D)."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"])

    def encoded(side: int) -> Tensor:
        size = torch.tensor(sizes[side], dtype=torch.float32)
        place = (keypoints[side] - size / 2) / (0.7 * size.max())
        x = torch.cat([place.T, scores[side][None]])[None]
        last = max(int(key.split(".")[2]) for key in w if key.startswith("kenc."))
        for index in range(0, last, 3):
            x = F.relu(norm(conv(x, f"kenc.encoder.{index}"), f"kenc.encoder.{index + 1}"))
        return descriptors[side].T[None] + conv(x, f"kenc.encoder.{last}")

    def update(x: Tensor, source: Tensor, layer: str) -> Tensor:
        dim = x.shape[1]
        q, k, v = (
            conv(of, f"{layer}.attn.proj.{i}").view(1, dim // 4, 4, -1) for i, of in enumerate((x, source, source))
        )
        similarity = torch.einsum("bdhn,bdhm->bhnm", q, k) / (dim // 4) ** 0.5
        message = torch.einsum("bhnm,bdhm->bdhn", F.softmax(similarity, dim=-1), v)
        message = conv(message.reshape(1, dim, -1), f"{layer}.attn.merge")
        hidden = F.relu(norm(conv(torch.cat([x, message], dim=1), f"{layer}.mlp.0"), f"{layer}.mlp.1"))
        return x + conv(hidden, f"{layer}.mlp.3")

    x0, x1 = encoded(0), encoded(1)
    for index in range(18):
        layer = f"gnn.layers.{index}"
        if index % 2 == 0:
            x0, x1 = update(x0, x0, layer), update(x1, x1, layer)
        else:
            x0, x1 = update(x0, x1, layer), update(x1, x0, layer)
    f0, f1 = conv(x0, "final_proj"), conv(x1, "final_proj")
    z = torch.einsum("bdn,bdm->bnm", f0, f1)[0] / f0.shape[1] ** 0.5

    m, n = z.shape
    bin_score = w["bin_score"]
    z = torch.cat([torch.cat([z, bin_score.expand(m, 1)], 1), bin_score.expand(1, n + 1)], 0)
    c = -torch.log(torch.tensor(float(m + n)))
    log_mu = torch.cat([c.expand(m), (c + torch.log(torch.tensor(float(n))))[None]])
    log_nu = torch.cat([c.expand(n), (c + torch.log(torch.tensor(float(m))))[None]])
    u, v = torch.zeros_like(log_mu), torch.zeros_like(log_nu)
    for _ in range(iterations):
        u = log_mu - torch.logsumexp(z + v[None, :], dim=1)
        v = log_nu - torch.logsumexp(z + u[:, None], dim=0)
    return z + u[:, None] + v[None, :] - c
