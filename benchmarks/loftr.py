"""LoFTR beside kornia's, on the same random weights and pictures in one run: time, memory, agreement.

    python benchmarks/loftr.py speed                    # 640 x 480: whole, stages, time over floor, fp32 and bf16
    python benchmarks/loftr.py memory --size 1600x1200  # peak memory of a pair, each way in a process of its own

kornia must be importable. The weights are those of tests/parity/loftr, made so that there are matches; the runs
are interleaved, and medians over --repeats are given.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from tiepoint.networks.loftr import LoftrConfig, LoftrNetwork, score_scale
from tiepoint.networks.loftr_inference import LoftrInference, fine_windows

PARITY = Path(__file__).parents[1] / "tests" / "parity"
MEMORY_CASES = ("start", "streamed", "one-matrix", "kornia")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "memory", *(f"memory-{case}" for case in MEMORY_CASES)])
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threshold", type=float, default=0.02)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    if options.what == "speed":
        speed(options)
    elif options.what == "memory":
        memory(options)
    else:
        run_once(options, options.what.removeprefix("memory-"))


# ------------------------------------------------------------------------------------------------- speed


def speed(options: argparse.Namespace) -> None:
    network, pictures = network_and_pictures(options)
    ways: dict[str, Callable[[], Any]] = {"kornia fp32": kornia_way(network, pictures)}
    fast = {name: LoftrInference(network, dtype) for name, dtype in PRECISIONS.items()}
    for name, inference in fast.items():
        ways[f"tiepoint {name}"] = lambda inference=inference: matched(inference, pictures)
    found = {name: way() for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    peak = ceiling(torch.float32), ceiling(torch.bfloat16)
    print(
        f"{options.size}, {options.threads} threads, torch {torch.__version__}, threshold {options.threshold}"
    )
    print(f"ceiling: {peak[0] / 1e9:.0f} GFLOP/s in fp32, {peak[1] / 1e9:.0f} in bf16 (3 x 3 convolution)")
    reference = statistics.median(times["kornia fp32"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(
            f"{name:14s} {median:6.3f} s (least {min(taken):.3f}, most {max(taken):.3f})  "
            f"{reference / median:4.2f} x  {agreement(found['kornia fp32'], found[name])}"
        )
    for (name, inference), limit in zip(fast.items(), peak, strict=True):
        print(f"stages, {name}:")
        for stage, seconds, flops in stages(inference, pictures, options.repeats):
            floor = flops / limit
            print(
                f"  {stage:28s} {1e3 * seconds:7.0f} ms  {flops / 1e9:6.1f} GFLOP  {seconds / floor:5.2f} x floor"
            )


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def matched(inference: LoftrInference, pictures: list[torch.Tensor]) -> tuple[Any, ...]:
    found = inference.match(*(inference.encode(picture)[0] for picture in pictures))
    return found.points0, found.points1, found.confidence


def agreement(wanted: tuple[Any, ...], found: tuple[Any, ...]) -> str:
    """How many matches join the same two cells, and how far apart those put the point."""
    cells = [
        {(*p0.tolist(), *((p1 + 4) // 8).tolist()): p1 for p0, p1 in zip(points0, points1, strict=True)}
        for points0, points1, _ in (wanted, found)
    ]
    nearest = {p[:2]: (p, point) for p, point in cells[0].items()}
    same = [
        float((point - nearest[p[:2]][1]).abs().max())
        for p, point in cells[1].items()
        if p[:2] in nearest and float((point - nearest[p[:2]][1]).abs().max()) < 4
    ]
    gaps = np.array(same or [np.inf])
    return (
        f"{len(found[0])} matches, {len(same)} of {len(wanted[0])} shared, of which "
        f"{100 * (gaps < 0.1).mean():.1f} % within 0.1 px, largest gap {gaps.max():.2g} px"
    )


def stages(
    inference: LoftrInference, pictures: list[torch.Tensor], repeats: int
) -> list[tuple[str, float, float]]:
    """(name, median seconds, operations) of each stage for a pair."""
    encoded = [inference.encode(picture)[0] for picture in pictures]
    tokens = [t[0] for t in inference.coarse.after_first(*(image.tokens[None] for image in encoded))]
    found = inference._coarse_matches(*tokens)
    kept = inference._off_border(found.rows, encoded[0].grid) & inference._off_border(
        found.columns, encoded[1].grid
    )
    cells = [found.rows[kept], found.columns[kept]]
    windows = [inference._windows(*parts) for parts in zip(encoded, tokens, cells, strict=True)]
    counted = FlopCounter()
    works: dict[str, Callable[[], Any]] = {
        "backbone, both images": lambda: [inference.backbone.pyramid(picture) for picture in pictures],
        "first self-attention": lambda: [inference.coarse.layers[0](t[None], t[None]) for t in tokens],
        "coarse transformer": lambda: inference.coarse.after_first(
            *(image.tokens[None] for image in encoded)
        ),
        "coarse matching": lambda: inference._coarse_matches(*tokens),
        "fine windows": lambda: [
            fine_windows(inference.backbone, *parts) for parts in zip(encoded, cells, strict=True)
        ],
        "fine transformer": lambda: inference._refined(*windows),
    }
    return [(name, median_time(work, repeats), counted(work)) for name, work in works.items()]


class FlopCounter:
    """Multiplications and additions of convolutions and matrix products."""

    def __call__(self, work: Callable[[], Any]) -> float:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            work()
        return float(counter.get_total_flops())


def median_time(work: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def ceiling(dtype: torch.dtype) -> float:
    """Operations a second of the backbone's kind of convolution where it is fastest."""
    channels_last = torch.channels_last
    x = torch.randn(1, 256, 60, 80, dtype=dtype).contiguous(memory_format=channels_last)
    weight = torch.randn(256, 256, 3, 3, dtype=dtype).contiguous(memory_format=channels_last)
    seconds = median_time(lambda: torch.conv2d(x, weight, padding=1), 15)
    return 2 * 9 * 256 * 256 * 60 * 80 / seconds


# ------------------------------------------------------------------------------------------------- memory


def memory(options: argparse.Namespace) -> None:
    """Peak resident memory, each way in a process of its own; the start is one with weights and pictures alone."""
    peaks = {}
    for case in MEMORY_CASES:
        command = [sys.executable, __file__, f"memory-{case}", "--size", options.size]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        peaks[case] = float(done.stdout.split()[-1]) if done.returncode == 0 else None
        told = "failed (out of memory?)" if peaks[case] is None else f"{peaks[case]:.2f} GB peak"
        if case != "start" and peaks[case] is not None:
            told += f", {peaks[case] - peaks['start']:.2f} GB above the start"
        print(f"{options.size} {case:12s} {told}", flush=True)


def run_once(options: argparse.Namespace, case: str) -> None:
    network, pictures = network_and_pictures(options)
    if case == "streamed":
        matched(LoftrInference(network), pictures)
    elif case == "kornia":
        kornia_way(network, pictures)()
    elif case == "one-matrix":
        inference = LoftrInference(network)
        encoded = [inference.encode(picture)[0] for picture in pictures]
        tokens = inference.coarse.after_first(*(image.tokens[None] for image in encoded))
        scores = score_scale(network.config) * tokens[0] @ tokens[1].transpose(1, 2)
        confidence = scores.softmax(dim=2).mul_(scores.softmax(dim=1))
        (confidence == confidence.amax(dim=2, keepdim=True)).nonzero()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


# ------------------------------------------------------------------------------------------------- what both need


def network_and_pictures(options: argparse.Namespace) -> tuple[LoftrNetwork, list[torch.Tensor]]:
    """Random weights under which matches are found, a made photograph and a view of it."""
    width, height = (int(side) for side in options.size.split("x"))
    fill = load_fill()
    case, _ = fill.load_case(PARITY / "loftr" / "dual_softmax_fixed.json")
    network = LoftrNetwork(LoftrConfig(threshold=options.threshold))
    network.load_state_dict({k: torch.from_numpy(v) for k, v in fill.make_weights(case["weights"]).items()})
    picture0 = fill.photo(height, width, 1, 201)
    picture1 = fill.warp(picture0, fill.second_view(height, width, 7), height, width)
    pictures = [torch.from_numpy(p.astype(np.float32) / 255)[None, None] for p in (picture0, picture1)]
    return network.eval(), pictures


def kornia_way(network: LoftrNetwork, pictures: list[torch.Tensor]) -> Callable[[], tuple[Any, ...]]:
    import copy

    from kornia.feature import LoFTR
    from kornia.feature.loftr.loftr import default_cfg

    settings = copy.deepcopy(default_cfg)
    settings["coarse"]["temp_bug_fix"] = True
    settings["match_coarse"]["thr"] = network.config.threshold
    theirs = LoFTR(pretrained=None, config=settings)
    theirs.load_state_dict(network.state_dict(), strict=True)
    theirs.eval()

    def run() -> tuple[Any, ...]:
        found = theirs({"image0": pictures[0], "image1": pictures[1]})
        return found["keypoints0"], found["keypoints1"], found["confidence"]

    return run


def load_fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
