"""SuperGlue's network (Sarlin, DeTone, Malisiewicz, Rabinovich, CVPR 2020), over features of any detector.

This is the form that is trained and that holds a checkpoint; `superglue_matcher.py` runs it on features.
Inside, features are channels first: (B, D, N). The names of the modules are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiepoint.networks.optimal_transport import log_optimal_transport
from tiepoint.weights import WeightsError, load_strictly

NUM_HEADS = 4
NUM_LAYERS = 18  # self and cross in turn
_ENCODER_CHANNELS = {64: (32, 64), 128: (32, 64, 128), 256: (32, 64, 128, 256)}


@dataclass(frozen=True, kw_only=True)
class SuperGlueConfig:
    """descriptor_dim: D, of the descriptors it matches: 64, 128 (SIFT's) or 256 (SuperPoint's, ORB's bits)."""

    descriptor_dim: int = 256

    def __post_init__(self) -> None:
        if self.descriptor_dim not in _ENCODER_CHANNELS:
            raise ValueError(f"descriptor_dim: expected 64, 128 or 256, got {self.descriptor_dim}")


class FeatureBatch(NamedTuple):
    """Features of a batch of images with N keypoints each.

    keypoints: (B, N, 2) (x, y) in pixels. scores: (B, N). descriptors: (B, N, D), of unit length.
    image_size: (B, 2) (width, height).
    """

    keypoints: Tensor
    scores: Tensor
    descriptors: Tensor
    image_size: Tensor


class Attention(nn.Module):
    """Multi-head attention of each keypoint to those of a source (equations 3 to 5)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.ModuleList(nn.Conv1d(dim, dim, 1) for _ in range(3))  # queries, keys, values
        self.merge = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        queries, keys, values = self._heads(x, source)
        message = F.scaled_dot_product_attention(queries, keys, values)  # (B, heads, N, D / heads)
        merged: Tensor = self.merge(message.permute(0, 3, 1, 2).flatten(1, 2))
        return merged

    def probabilities(self, x: Tensor, source: Tensor) -> Tensor:
        """(B, heads, N, M): how much each keypoint of x heeds each of the source; rows sum to one."""
        queries, keys, _ = self._heads(x, source)
        return torch.softmax(queries @ keys.mT / queries.shape[-1] ** 0.5, dim=-1)

    def _heads(self, x: Tensor, source: Tensor) -> list[Tensor]:
        """Queries, keys, values, each (B, heads, N, D / heads). Channel c belongs to head c mod 4."""
        inputs = (x, source, source)
        return [
            project(of).unflatten(1, (-1, NUM_HEADS)).permute(0, 2, 3, 1).contiguous()  # as fused attention asks
            for project, of in zip(self.proj, inputs, strict=True)
        ]


class AttentionalLayer(nn.Module):
    """The residual update of every keypoint by what it gathers from the source (equation 3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn = Attention(dim)
        self.mlp = perceptron([2 * dim, 2 * dim, dim])

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        update: Tensor = self.mlp(torch.cat([x, self.attn(x, source)], dim=1))
        return x + update


class AttentionalNetwork(nn.Module):
    """Self and cross layers in turn, the same for both images."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttentionalLayer(dim) for _ in range(NUM_LAYERS))


class KeypointEncoder(nn.Module):
    """A vector of D for each keypoint's place and score (equation 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder = perceptron([3, *_ENCODER_CHANNELS[dim], dim])

    def forward(self, features: FeatureBatch) -> Tensor:
        """(B, D, N)."""
        place = normalised_keypoints(features.keypoints, features.image_size)
        encoded: Tensor = self.encoder(torch.cat([place, features.scores[..., None]], dim=-1).mT)
        return encoded


class SuperGlue(nn.Module):
    """Keypoint encoder, attentional graph neural network, and the scores for optimal matching (figure 3)."""

    def __init__(self, config: SuperGlueConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.descriptor_dim
        self.kenc = KeypointEncoder(dim)
        self.gnn = AttentionalNetwork(dim)
        self.final_proj = nn.Conv1d(dim, dim, 1)
        self.bin_score = nn.Parameter(torch.tensor(1.0))

    def forward(self, features0: FeatureBatch, features1: FeatureBatch, num_iterations: int = 100) -> Tensor:
        """(B, M + 1, N + 1) log assignment of the M and N keypoints; the last row and column are the dustbins.

        exp of row i sums to 1 over all columns, of column j over all rows, once the iterations have converged.
        """
        *_, (x0, x1) = self.layer_outputs(features0, features1)
        return log_optimal_transport(self.similarity(x0, x1), self.bin_score, num_iterations)

    def layer_outputs(self, features0: FeatureBatch, features1: FeatureBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, D, M) and (B, D, N): first the encoded features of both images, then after each layer."""
        x0 = features0.descriptors.mT + self.kenc(features0)
        x1 = features1.descriptors.mT + self.kenc(features1)
        yield x0, x1
        for layer, crosses in self._layers():
            x0, x1 = layer(x0, x1 if crosses else x0), layer(x1, x0 if crosses else x1)
            yield x0, x1

    def attention(self, features0: FeatureBatch, features1: FeatureBatch) -> list[tuple[Tensor, Tensor]]:
        """For each layer, what the keypoints of image 0 and of image 1 heed: (B, heads, queries, keys) each."""
        outputs = self.layer_outputs(features0, features1)
        found = []
        for (layer, crosses), (x0, x1) in zip(self._layers(), outputs, strict=False):
            probabilities = layer.attn.probabilities
            found.append((probabilities(x0, x1 if crosses else x0), probabilities(x1, x0 if crosses else x1)))
        return found

    def similarity(self, x0: Tensor, x1: Tensor) -> Tensor:
        """(B, M, N) scores of all pairs, of the last layer's outputs (equations 6 and 7)."""
        scores: Tensor = self.final_proj(x0).mT @ self.final_proj(x1) / x0.shape[1] ** 0.5
        return scores

    def _layers(self) -> Iterator[tuple[AttentionalLayer, bool]]:
        """Each layer, and whether it looks across to the other image."""
        for index, layer in enumerate(self.gnn.layers):
            assert isinstance(layer, AttentionalLayer)
            yield layer, index % 2 == 1


def perceptron(channels: list[int]) -> nn.Sequential:
    """Convolutions over single keypoints, normalised and rectified but for the last, whose bias starts at zero."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels[:-1]):
        layers += [nn.Conv1d(before, after, 1), nn.BatchNorm1d(after), nn.ReLU()]
    last = nn.Conv1d(channels[-2], channels[-1], 1)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def normalised_keypoints(keypoints: Tensor, image_size: Tensor) -> Tensor:
    """Keypoints (B, N, 2) from the centre of their image (B, 2), in units of 0.7 times its longer side."""
    size = image_size[:, None].to(keypoints.dtype)
    return (keypoints - size / 2) / (0.7 * size.amax(-1, keepdim=True))


def mutual_matches(log_assigned: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """(K, 2) rows of image 0 and 1 that are each other's best above `threshold`, and (K,) their probabilities.

    log_assigned: (M + 1, N + 1), of one pair.
    """
    inside = log_assigned[:-1, :-1]
    best, columns = inside.max(dim=1)
    rows = torch.arange(len(columns), device=inside.device)
    kept = (inside.argmax(dim=0)[columns] == rows) & (best.exp() > threshold)
    return torch.stack([rows[kept], columns[kept]], dim=1), best[kept].exp()


def load_superglue(tensors: dict[str, Tensor], source: str) -> SuperGlue:
    """The network of a checkpoint, ready to run; D follows from the tensors. source: for messages.

    Raises WeightsError when the tensors are not exactly those of a SuperGlue.
    """
    if "final_proj.weight" not in tensors or len(tensors["final_proj.weight"]) not in _ENCODER_CHANNELS:
        raise WeightsError(f"{source} is no SuperGlue: it holds {', '.join(list(tensors)[:4])}, ...")
    network = SuperGlue(SuperGlueConfig(descriptor_dim=len(tensors["final_proj.weight"])))
    load_strictly(network, tensors, source)
    return network.eval()
