"""Named checkpoints: origin, licence, hash; fetch, verify, load."""

from tiepoint.weights.catalogue import WEIGHTS, WeightsEntry
from tiepoint.weights.fetch import fetch
from tiepoint.weights.store import (
    WeightsError,
    default_weights,
    find_weights,
    identified,
    import_file,
    known_weights,
    load_strictly,
    load_weights,
    verify,
    weights_files,
)

__all__ = [
    "WEIGHTS",
    "WeightsEntry",
    "WeightsError",
    "default_weights",
    "fetch",
    "find_weights",
    "identified",
    "import_file",
    "known_weights",
    "load_strictly",
    "load_weights",
    "verify",
    "weights_files",
]
