"""RoMa beside romatch on one machine, with the same made weights and the same pictures.

    python benchmarks/roma.py [--rounds 2] [CASE ...]        cases: 560, 864, bf16, sampling, template

Each side runs in a process of its own, and they take turns. romatch must be importable (with torchvision, kornia
and what else it imports, on PYTHONPATH); without it our side alone is measured. The full network is 1.7 GB of
weights, made by `tests/parity/fill.py`; a round of all cases takes ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
PARITY = ROOT / "tests" / "parity"
CASES = ("560", "864", "bf16", "sampling", "template")
SURE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=["romatch", "tiepoint"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.cases[0], arguments.side, arguments.out)
        return
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for case in arguments.cases or CASES:
        compare(case, arguments.rounds)


def compare(case: str, rounds: int) -> None:
    sides = ["tiepoint"] if case == "template" else ["romatch", "tiepoint"]
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        outs = {side: Path(folder) / side for side in sides}
        for _ in range(rounds):
            for side in sides:
                command = [sys.executable, __file__, case, "--side", side, "--out", str(outs[side])]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
        for side, results in found.items():
            told = {key: statistics.median(r[key] for r in results) for key in results[0]}
            print(
                f"{case:10}{side:10}" + "  ".join(f"{key} {value:.2f}" for key, value in told.items()),
                flush=True,
            )
        if len(sides) == 2:
            print(f"{case:10}ratio     {_ratio(found):.2f}")
            if case != "sampling":
                print(f"{case:10}          {_agreement(outs['romatch'], outs['tiepoint'])}", flush=True)


def _ratio(found: dict[str, list[dict[str, Any]]]) -> float:
    first, second = (statistics.median(r["seconds"] for r in found[side]) for side in ("romatch", "tiepoint"))
    return first / second


def _agreement(reference: Path, ours: Path) -> str:
    with np.load(f"{reference}.npz") as a, np.load(f"{ours}.npz") as b:
        gap_px = np.linalg.norm((b["warp"] - a["warp"]).reshape(*a["certainty"].shape, 2, 2), axis=-1).max(-1)
        gap_px *= a["certainty"].shape[0] / 2
        sure = a["certainty"] > SURE
        return (
            f"warps differ by {gap_px[sure].mean():.4f} px on average, median {np.median(gap_px[sure]):.4f}, where "
            f"certainty > {SURE} ({sure.mean():.0%}); certainty by {np.abs(b['certainty'] - a['certainty']).mean():.4f}"
        )


# --------------------------------------------------------------------------- one side, in a process of its own


def measure(case: str, side: str, out: Path) -> None:
    torch.set_num_threads(2)
    fill = _fill()
    pictures = _pictures(fill)
    if case == "sampling":
        measure_sampling(side)
        return
    upsample = 864 if case == "864" else None
    states = _states(fill)
    if side == "romatch":
        run = _romatch(states, pictures, upsample)
    else:
        run = _tiepoint(states, pictures, upsample, torch.bfloat16 if case == "bf16" else torch.float32, case)
    del states
    start = time.perf_counter()
    result, told = run()
    told = {"seconds": time.perf_counter() - start, **told, "peak_gb": _peak_gb()}
    if result is not None:
        np.savez(out.with_suffix(".npz"), warp=result[0], certainty=result[1])
    print(json.dumps(told))


def _tiepoint(
    states: Any, pictures: list[np.ndarray], upsample: int | None, dtype: torch.dtype, case: str
) -> Any:
    from tiepoint.images import Image
    from tiepoint.matchers.roma import ROMA_CONFIG, Roma, RomaOptions
    from tiepoint.matchers.roma_network import RomaNetwork

    with torch.device("meta"):
        network = RomaNetwork(ROMA_CONFIG)
    trunk = {f"trunk.{key}": value for key, value in states["dinov2"].items()}
    network.load_state_dict(states["roma"] | trunk, strict=True, assign=True)
    roma = Roma(network, RomaOptions(resolution_px=560, upsample_px=upsample, fit="squash"), dtype=dtype)
    images = [Image(picture) for picture in pictures]

    def pair() -> Any:
        start = time.perf_counter()
        encodings = [roma.encode(image) for image in images]
        middle = time.perf_counter()
        dense = roma.match_dense(*encodings)
        return (dense.warp, dense.certainty), {
            "encode": middle - start,
            "match": time.perf_counter() - middle,
        }

    def template() -> Any:
        """One source more, its template encoded before: n of these against n of `pair`."""
        first = roma.encode(images[0])
        start = time.perf_counter()
        second = roma.encode(images[1])
        middle = time.perf_counter()
        roma.match_dense(first, second)
        encode, match = middle - start, time.perf_counter() - middle
        return None, {
            "encode": encode,
            "match": match,
            "ten_pairs_over_ten_sources": 10 * (2 * encode + match) / (11 * encode + 10 * match),
        }

    return template if case == "template" else pair


def _romatch(states: Any, pictures: list[np.ndarray], upsample: int | None) -> Any:
    romatch = _import_romatch()
    from PIL import Image as PillowImage

    model = romatch.roma_outdoor(
        "cpu",
        weights=states["roma"],
        dinov2_weights=states["dinov2"],
        coarse_res=560,
        upsample_res=upsample or 560,
        amp_dtype=torch.float32,
        use_custom_corr=False,
        upsample_preds=upsample is not None,
    )

    def pair() -> Any:
        warp, certainty = model.match(*(PillowImage.fromarray(p) for p in pictures), device="cpu")
        return (warp[0].numpy(), certainty[0].numpy()), {}

    return pair


def measure_sampling(side: str) -> None:
    """10,000 matches of a smooth made warp at 560 x 560; memory over what stood before."""
    side_px = 560
    centres = (np.arange(side_px, dtype=np.float32) * 2 + 1) / side_px - 1
    own = np.stack(np.meshgrid(centres, centres), -1)
    there = own * 0.9 + 0.05 * np.sin(3 * own[..., ::-1])
    warp = np.concatenate([np.concatenate([own, there], -1), np.concatenate([there, own], -1)], 1).astype(
        np.float32
    )
    certainty = np.random.default_rng(0).uniform(0, 1, warp.shape[:2]).astype(np.float32)
    if side == "romatch":
        romatch = _import_romatch()
        from romatch.models.matcher import RegressionMatcher

        assert romatch
        model = RegressionMatcher.__new__(RegressionMatcher)
        torch.nn.Module.__init__(model)
        model.sample_mode, model.sample_thresh = "threshold_balanced", 0.05
        tensors = torch.from_numpy(warp), torch.from_numpy(certainty)
        before, start = _peak_gb(), time.perf_counter()
        count = len(model.sample(*tensors, num=10_000)[0])
    else:
        from tiepoint.matchers.dense_warp import DenseWarp

        dense = DenseWarp(warp=warp, certainty=certainty, size0=(side_px, side_px), size1=(side_px, side_px))
        before, start = _peak_gb(), time.perf_counter()
        count = len(dense.sample(10_000))
    told = {"seconds": time.perf_counter() - start, "extra_gb": _peak_gb() - before, "matches": count}
    print(json.dumps(told))


def _import_romatch() -> ModuleType:
    """romatch, with the operators declared that torchvision misses beside a CPU build of torch."""
    _import_romatch.library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[attr-defined]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            _import_romatch.library.define(schema)  # type: ignore[attr-defined]
    import romatch

    return romatch


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _states(fill: ModuleType) -> dict[str, dict[str, torch.Tensor]]:
    case, _ = fill.load_case(PARITY / "roma" / "coarse.json")
    return {
        part: {
            key: torch.from_numpy(value) for key, value in fill.make_weights(case["weights"][part]).items()
        }
        for part in ("roma", "dinov2")
    }


def _pictures(fill: ModuleType) -> list[np.ndarray]:
    first = fill.photo(480, 640, 3, 7)
    return [first, fill.warp(first, fill.second_view(480, 640, 7), 480, 640)]


if __name__ == "__main__":
    main()
