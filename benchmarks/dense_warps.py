"""RoMa's small form on held-out photographs seen twice, on planes and with parallax: the dense warp and its certainty.

    python benchmarks/dense_warps.py PHOTOGRAPHS [--pairs 100] [--weights NAME_OR_FILE] [--picture FILE.png]

Views of 224 x 224, of a seed that no training uses. EPE is the median error in pixels over all pixels that both
views show, PCK the share of them within so many pixels. Certainty is judged as a classifier of the pixels that the
other view shows, and by its mean where the other picture is of something else.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from tiepoint.matchers.roma import ROMA_SMALL_CONFIG, load_network
from tiepoint.training.photographs import StoreConfig, open_photographs
from tiepoint.training.roma import RomaTrainingConfig
from tiepoint.training.roma_validation import RomaValidation
from tiepoint.weights import default_weights
from tiepoint.weights.store import cache_folder

SEED = 12345  # no training's


def table(photographs: Path, count: int, weights: str | None = None, picture: Path | None = None) -> str:
    """A Markdown table of the weights' figures; `picture` receives the first pairs."""
    store = open_photographs(photographs, cache_folder().parent / "photographs", StoreConfig(colour=True))
    network = load_network(ROMA_SMALL_CONFIG, weights or default_weights("roma-small")).eval()
    validation = RomaValidation(store, RomaTrainingConfig().pairs, count, SEED)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        f = validation.figures(network, torch.device("cpu"), picture or Path(folder) / "pairs.png")
    percent = {name: f"{100 * value:.1f}" for name, value in f.items()}
    return "\n".join(
        [
            "| | EPE px | PCK@3 |",
            "|---|---:|---:|",
            f"| {count} planes | {f['EPE_planes']:.2f} | {percent['PCK_3_planes']} |",
            f"| {count} with parallax | {f['EPE_parallax']:.2f} | {percent['PCK_3_parallax']} |",
            "",
            f"PCK@1/3/5 of both: {percent['PCK_1']}/{percent['PCK_3']}/{percent['PCK_5']}. Certainty: area under the "
            f"ROC curve {f['certainty_AUC']:.3f}; mean on unrelated pairs {f['unrelated']:.3f}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--weights")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    print(table(arguments.photographs, arguments.pairs, arguments.weights, arguments.picture))


if __name__ == "__main__":
    main()
