"""SuperGlue's network prepared to run fast on one pair: the assignment of `superglue.SuperGlue`, sooner.

What it does differently, none of which changes the result beyond rounding: normalisations and the merging of
heads are folded into the products next to them; each head's channels lie side by side, so attention needs no
copies; both images go through one product; and Sinkhorn's iterations are products of a kernel with vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiepoint.matchers.superglue import (
    NUM_HEADS,
    AttentionalLayer,
    FeatureBatch,
    SuperGlue,
    normalised_keypoints,
)
from tiepoint.networks.optimal_transport import log_masses, with_dustbins

_ITERATIONS_BETWEEN_CHECKS = 10
_LARGEST_LOG_SCALING = 30.0  # of Sinkhorn's scalings, whose products with the kernel must stay within float32


class _Linear(NamedTuple):
    """weight: (out, in), bias: (out,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(N, out) from (N, in)."""
        if x.device.type != "cpu":
            return F.linear(x, self.weight, self.bias)
        # As a 1 x 1 convolution over an image of N x 1 pixels: torch gives those to oneDNN, which on processors
        # other than Intel's is 1.1 (Zen 4) to 2 times (Zen 5) as fast as what it gives matrix products to.
        image = x.view(1, len(x), 1, -1).permute(0, 3, 1, 2)
        return F.conv2d(image, self.weight[:, :, None, None], self.bias).view(1, len(self.bias), -1)[0].T


class _Layer(NamedTuple):
    projections: _Linear  # D to 3 D: queries, keys, values, each head after head
    hidden: _Linear  # 2 D to 2 D, of the keypoints and their unmerged messages
    update: _Linear  # 2 D to D


class PreparedSuperGlue:
    """A SuperGlue in evaluation mode on a device, in a number type; the network given is left as it is.

    The keypoint encoder and the assignment are computed in float32 whatever `dtype` is.
    """

    def __init__(self, network: SuperGlue, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._encoder = [self._moved(linear, torch.float32) for linear in _folded(network.kenc.encoder)]
        self._layers = [self._prepared(layer) for layer in network.gnn.layers if isinstance(layer, AttentionalLayer)]
        self._projection = self._moved(_linear(network.final_proj), torch.float32)
        self.bin_score = network.bin_score.detach().to(device, torch.float32)

    @torch.inference_mode()
    def __call__(self, features0: FeatureBatch, features1: FeatureBatch, num_iterations: int) -> Tensor:
        """(M + 1, N + 1) float32 log assignment of one pair (batches of one), M and N at least 1."""
        similarity = self.similarity(self.attended(features0, features1), features0.keypoints.shape[1])
        return fast_log_assignment(similarity, self.bin_score, num_iterations)

    def attended(self, features0: FeatureBatch, features1: FeatureBatch) -> Tensor:
        """(M + N, D) outputs of the last layer, image 0's keypoints before image 1's."""
        x = torch.cat([self._encoded(features0), self._encoded(features1)]).to(self.dtype)
        count0 = features0.keypoints.shape[1]
        for index, layer in enumerate(self._layers):
            message = _attention(layer.projections(x), count0, crosses=index % 2 == 1)
            x = x + layer.update(layer.hidden(torch.cat([x, message], dim=1)).relu_())
        return x

    def similarity(self, x: Tensor, count0: int) -> Tensor:
        """(M, N) float32 scores of all pairs, from `attended`; `count0` is M."""
        projected = self._projection(x.float())
        compare = _Linear(projected[count0:], projected.new_zeros(len(projected) - count0))
        return compare(projected[:count0]).div_(x.shape[1] ** 0.5)

    def _encoded(self, features: FeatureBatch) -> Tensor:
        """(N, D) descriptors with their keypoints' places and scores."""
        keypoints, scores, descriptors, size = (tensor.to(self.device, torch.float32) for tensor in features)
        x = torch.cat([normalised_keypoints(keypoints, size)[0], scores[0, :, None]], dim=1)
        for linear in self._encoder[:-1]:
            x = linear(x).relu_()
        return descriptors[0] + self._encoder[-1](x)

    def _prepared(self, layer: AttentionalLayer) -> _Layer:
        projections = [_linear(projection) for projection in layer.attn.proj]
        dim = len(projections[0].bias)
        head_after_head = torch.arange(dim).view(-1, NUM_HEADS).T.flatten()
        merge = _linear(layer.attn.merge)
        hidden, update = _folded(layer.mlp)
        on_x, on_message = hidden.weight.double().chunk(2, dim=1)
        merged = on_message @ merge.weight.double()
        offset = on_message @ merge.bias.double()
        return _Layer(
            self._moved(
                _Linear(
                    torch.cat([projection.weight[head_after_head] for projection in projections]),
                    torch.cat([projection.bias[head_after_head] for projection in projections]),
                )
            ),
            self._moved(_Linear(torch.cat([on_x, merged[:, head_after_head]], 1), hidden.bias + offset)),
            self._moved(update),
        )

    def _moved(self, linear: _Linear, dtype: torch.dtype | None = None) -> _Linear:
        return _Linear(*(tensor.to(self.device, dtype or self.dtype).contiguous() for tensor in linear))


def _attention(projected: Tensor, count0: int, crosses: bool) -> Tensor:
    """(M + N, D) messages from (M + N, 3 D) queries, keys and values; the first `count0` rows are image 0's."""
    heads = projected.view(len(projected), 3, NUM_HEADS, -1).permute(1, 2, 0, 3)[:, None]
    queries, keys, values = heads  # (1, heads, M + N, D / heads) each
    own, other = slice(0, count0), slice(count0, None)
    messages = []
    for of, source in ((own, other if crosses else own), (other, own if crosses else other)):
        message = F.scaled_dot_product_attention(queries[:, :, of], keys[:, :, source], values[:, :, source])
        messages.append(message[0].transpose(0, 1).flatten(1))
    return torch.cat(messages)


def fast_log_assignment(similarity: Tensor, bin_score: Tensor, num_iterations: int) -> Tensor:
    """`optimal_transport.log_optimal_transport` of one pair: (M + 1, N + 1) from (M, N).

    With potentials u, v found so far, the kernel exp(Z + u + v) has rows and columns that nearly sum as they
    should, and iterations only rescale it, by products with vectors. The first iteration, in the log domain,
    finds such potentials; whenever the scalings leave a safe range, the iterations since the last check are
    done again in the log domain.
    """
    couplings = with_dustbins(similarity[None], bin_score)[0]
    log_mu, log_nu = log_masses(couplings)
    u, v = torch.zeros_like(log_mu), torch.zeros_like(log_nu)
    if num_iterations > 0:
        u, v = _iterate_in_log_domain(couplings, log_mu, log_nu, v, 1)
    kernel, mu, nu = _kernel(couplings, u, v), log_mu.exp(), log_nu.exp()
    scale0, scale1 = torch.ones_like(u), torch.ones_like(v)
    for done in range(1, num_iterations, _ITERATIONS_BETWEEN_CHECKS):
        todo = min(_ITERATIONS_BETWEEN_CHECKS, num_iterations - done)
        before = scale1
        for _ in range(todo):
            scale0 = mu / (kernel @ scale1)
            scale1 = nu / (scale0 @ kernel)
        if not _is_safe(scale0, scale1):
            u, v = _iterate_in_log_domain(couplings, log_mu, log_nu, v + before.log(), todo)
            kernel, scale0, scale1 = _kernel(couplings, u, v), torch.ones_like(u), torch.ones_like(v)
    u, v = u + scale0.log(), v + scale1.log()
    return couplings.add_(u[:, None]).add_(v)


def _kernel(couplings: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return (couplings + u[:, None]).add_(v).exp_()


def _is_safe(scale0: Tensor, scale1: Tensor) -> bool:
    logs = torch.cat([scale0, scale1]).log().abs()
    return bool(logs.max() <= _LARGEST_LOG_SCALING)  # False for infinities and for what is not a number


def _iterate_in_log_domain(
    couplings: Tensor, log_mu: Tensor, log_nu: Tensor, v: Tensor, num_iterations: int
) -> tuple[Tensor, Tensor]:
    for _ in range(num_iterations):
        u = log_mu - torch.logsumexp(couplings + v, dim=1)
        v = log_nu - torch.logsumexp(couplings + u[:, None], dim=0)
    return u, v


def _linear(conv: nn.Module) -> _Linear:
    assert isinstance(conv, nn.Conv1d)
    assert conv.bias is not None
    return _Linear(conv.weight.detach()[..., 0], conv.bias.detach())


def _folded(layers: nn.Sequential) -> list[_Linear]:
    """A perceptron's products, each with the normalisation that follows it."""
    folded: list[_Linear] = []
    for layer in layers:
        if isinstance(layer, nn.Conv1d):
            folded.append(_linear(layer))
        elif isinstance(layer, nn.BatchNorm1d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            factor = layer.weight.detach() * torch.rsqrt(layer.running_var + layer.eps)
            weight, bias = folded.pop()
            offset = layer.bias.detach() - layer.running_mean * factor
            folded.append(_Linear(weight * factor[:, None], bias * factor + offset))
    return folded
