"""RELF's checkpoints: this project's own, and the published ones, which are named and built by e2cnn 0.2.3."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tiepoint.networks.equivariant_resnet import EquivariantBackbone, ReResNet, ReWideResNet
from tiepoint.networks.steerable_basis import Parametrisation
from tiepoint.weights import WeightsError, load_strictly, load_weights

_PUBLISHED_PREFIX = re.compile(r"^(module\.)?model\.model\.")
# The published networks' final classifier and, in the WideResNet, the normalisation before it play no part in the
# features; indices only number the channels; a filter, saved in evaluation mode, repeats weights and basis.
_PUBLISHED_UNUSED = re.compile(r"^linear\.|^bn1\.batch_norm_\[1\]\.|\.indices_\d+$|\.filter$")


@dataclass(frozen=True)
class RelfModel:
    """A network in training form with its weights.

    published: whether these are the published ones, which need the published preprocessing.
    """

    network: EquivariantBackbone
    published: bool


def load_relf(weights: str | Path) -> RelfModel:
    """The network that named weights or a file were saved from; backbone and order are read off the tensors.

    Raises WeightsError when there is no such file, or its tensors fit no RELF network exactly.
    """
    return model_from(load_weights(weights), weights)


def model_from(state: dict[str, Tensor], source: str | Path) -> RelfModel:
    """The same for tensors already read; `source` says in messages where from."""
    published = any(_PUBLISHED_PREFIX.match(key) for key in state)
    if published:
        state = from_published_names(state)
    network = _empty_network(state, source, published)
    if published and not any(key.endswith(".basis") for key in state):
        own = network.state_dict()  # a checkpoint without its bases: they are those computed here
        state = {**state, **{key: tensor for key, tensor in own.items() if key.endswith(".basis")}}
    load_strictly(network, state, source)
    return RelfModel(network.eval(), published)


def from_published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published checkpoint under this project's names, without those that compute nothing."""
    renamed = {}
    for key, tensor in state.items():
        name = _PUBLISHED_PREFIX.sub("", key)
        if _PUBLISHED_UNUSED.search(name):
            continue
        name = re.sub(r"_basisexpansion\.block_expansion_\(.*\)\.sampled_basis$", "basis", name)
        renamed[re.sub(r"\.batch_norm_\[\d+\]\.", ".", name)] = tensor
    return renamed


def _empty_network(state: dict[str, Tensor], source: str | Path, published: bool) -> EquivariantBackbone:
    parametrisation: Parametrisation = "e2cnn" if published else "ring_fourier"
    if "layer4.0.conv1.weights" not in state:
        return ReWideResNet(parametrisation, published_flaw=published)
    stem = state.get("bn1.weight")
    if stem is None or len(stem) == 0 or 64 % len(stem) or len(stem) > 32:
        raise WeightsError(f"{source} fits no RELF network: no normalisation of the stem, bn1.weight")
    return ReResNet(64 // len(stem), parametrisation)
