"""Times of SuperPoint and SuperGlue beside plain transcriptions of the papers, and over what the machine could do.

    python benchmarks/matchers.py [--rounds 7] [CASE ...]

Each side runs in a process of its own, the transcription with PyTorch's default settings, and they take turns
round by round, so that both see the same machine. Weights and inputs are the made ones of `tests/parity`.
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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
PARITY = ROOT / "tests" / "parity"
CASES = ["superpoint", "superglue-512", "superglue-1024", "superglue-2048"]
SINKHORN_ITERATIONS = 100
OUTPUT = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", choices=["plain", "tiepoint"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        serve(arguments.cases[0], arguments.side, arguments.out)
        return
    machine = platform.processor() or platform.machine()
    print(f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'case':16}{'plain ms':>10}{'ours ms':>10}{'plain/ours':>12}{'plain MB':>10}{'ours MB':>9}  agreement")
    for case in arguments.cases or CASES:
        compare(case, arguments.rounds)
    print()
    for case in arguments.cases or CASES:
        print_stages(case, arguments.rounds)


# ---------------------------------------------------------------- two processes taking turns


def compare(case: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sides = {side: Side(case, side, Path(folder) / f"{side}.npz") for side in ("plain", "tiepoint")}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for process in sides.values():
            process.run()  # warms up
        for _ in range(rounds):
            for side, process in sides.items():
                times[side].append(process.run())
        peak_mb = {side: process.finish() for side, process in sides.items()}
        plain, ours = (np.load(process.out) for process in sides.values())
        told = agreement(case, plain, ours)
    medians = {side: 1e3 * statistics.median(values) for side, values in times.items()}
    print(
        f"{case:16}{medians['plain']:10.0f}{medians['tiepoint']:10.0f}"
        f"{medians['plain'] / medians['tiepoint']:12.2f}{peak_mb['plain']:10.0f}{peak_mb['tiepoint']:9.0f}  {told}"
    )


class Side:
    """A process that runs one side of a case each time it is asked, and tells the seconds it took."""

    def __init__(self, case: str, side: str, out: Path) -> None:
        command = [sys.executable, __file__, case, "--side", side, "--out", str(out)]
        self.out = out
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self) -> float:
        return float(self._ask("run")["seconds"])

    def finish(self) -> float:
        """Writes the output to `out` and ends; the peak memory in MB."""
        peak = float(self._ask("finish")["peak_mb"])
        self.process.wait()
        return peak

    def _ask(self, text: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(text, file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def serve(case: str, side: str, out: Path) -> None:
    work = (plain_work if side == "plain" else our_work)(case)
    output: OUTPUT = {}
    for line in sys.stdin:
        if line.strip() == "finish":
            np.savez(out, **output)
            print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)
            return
        start = time.perf_counter()
        output = work()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def agreement(case: str, plain: Any, ours: Any) -> str:
    if case == "superpoint":  # as sets: scores equal but for rounding may change places
        order_plain, order_ours = (np.lexsort(side["keypoints"].T) for side in (plain, ours))
        same = np.array_equal(plain["keypoints"][order_plain], ours["keypoints"][order_ours])
        gap = np.abs(plain["descriptors"][order_plain] - ours["descriptors"][order_ours]).max() if same else np.inf
        told = "identical" if same else "DIFFER"
        return f"{len(order_ours)} keypoints {told}, descriptors within {gap:.1e}"
    same = np.array_equal(plain["indices"], ours["indices"])
    gap = np.abs(np.exp(plain["log"][:-1, :-1]) - np.exp(ours["log"][:-1, :-1])).max()
    log_gap = np.abs(plain["log"] - ours["log"]).max()
    return (
        f"{len(ours['indices'])} matches {'identical' if same else 'DIFFER'}, "
        f"assignment within {gap:.1e}, its log within {log_gap:.1e}"
    )


# ---------------------------------------------------------------- the work of each side


def load_fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_case(case: str) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Weights in the published naming, and the inputs."""
    fill = load_fill()
    name = "superpoint/magicleap" if case == "superpoint" else "superglue/d256"
    spec = json.loads((PARITY / f"{name}.json").read_text())
    weights = {key: torch.from_numpy(value) for key, value in fill.make_weights(spec["weights"]).items()}
    if case == "superpoint":
        return weights, {"image": fill.photo(480, 640, 1, 1)}
    count = int(case.split("-")[1])
    return weights, fill.feature_pair(count, count, count * 2 // 3, 256, (480, 640), (480, 640), 1)


def plain_work(case: str) -> Callable[[], OUTPUT]:
    from transcriptions import superglue, superpoint

    weights, inputs = made_case(case)

    @torch.no_grad()
    def run_superpoint() -> OUTPUT:
        image = torch.from_numpy(inputs["image"]).float()[None, None] / 255
        keypoints, _, descriptors = superpoint(weights, image, 4, 0.005, 4, 1024)
        return {"keypoints": keypoints.numpy(), "descriptors": descriptors.numpy()}

    @torch.no_grad()
    def run_superglue() -> OUTPUT:
        parts = [[torch.from_numpy(inputs[f"{n}{i}"]) for i in (0, 1)] for n in ("keypoints", "scores", "descriptors")]
        log = superglue(weights, *parts, [(640, 480)] * 2, SINKHORN_ITERATIONS)
        inside = log[:-1, :-1]
        best, columns = inside.max(1)
        rows = torch.arange(len(columns))
        kept = (inside.max(0).indices[columns] == rows) & (best.exp() > 0.2)
        return {"indices": torch.stack([rows[kept], columns[kept]], 1).numpy(), "log": log.numpy()}

    return run_superpoint if case == "superpoint" else run_superglue


def our_work(case: str) -> Callable[[], OUTPUT]:
    from tiepoint.geometry import Features
    from tiepoint.images import Image
    from tiepoint.matchers.superglue import load_superglue, mutual_matches
    from tiepoint.matchers.superglue_matcher import SuperGlueMatcher, SuperGlueOptions
    from tiepoint.matchers.superpoint import load_superpoint
    from tiepoint.matchers.superpoint_extractor import SuperPointExtractor, SuperPointOptions

    weights, inputs = made_case(case)
    if case == "superpoint":
        extractor = SuperPointExtractor(load_superpoint(weights, "made"), SuperPointOptions(sampler="legacy"))

        def run_superpoint() -> OUTPUT:
            features = extractor.extract(Image(inputs["image"]))
            return {"keypoints": features.keypoints, "descriptors": features.descriptors}

        return run_superpoint
    matcher = SuperGlueMatcher(load_superglue(weights, "made"), SuperGlueOptions(num_iterations=SINKHORN_ITERATIONS))
    features = [
        Features(
            keypoints=inputs[f"keypoints{i}"],
            scores=inputs[f"scores{i}"],
            descriptors=inputs[f"descriptors{i}"],
            image_size=(640, 480),
        )
        for i in (0, 1)
    ]

    def run_superglue() -> OUTPUT:
        log = matcher.log_assignment(*features)
        return {"indices": mutual_matches(torch.from_numpy(log), 0.2)[0].numpy(), "log": log}

    return run_superglue


# ---------------------------------------------------------------- stages over the floor


def print_stages(case: str, rounds: int) -> None:
    """Each stage's time and its FLOPs over the peak this machine reaches on a product or a convolution."""
    peak = measured_peak()
    print(f"{case}, stages (peak measured: {peak / 1e9:.0f} GFLOP/s)")
    stages = superpoint_stages() if case == "superpoint" else superglue_stages(int(case.split("-")[1]))
    for name, work, flops in stages:
        seconds = median_time(work, rounds)
        floor = f"{1e3 * flops / peak:8.1f} ms floor, {seconds * peak / flops:5.1f} times it" if flops else ""
        print(f"  {name:24}{1e3 * seconds:8.1f} ms{floor}")


def median_time(work: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@torch.inference_mode()
def measured_peak() -> float:
    x = torch.rand(1, 128, 60, 80).to(memory_format=torch.channels_last)
    weight = torch.rand(128, 128, 3, 3).to(memory_format=torch.channels_last)
    times = []
    for _ in range(60):
        start = time.perf_counter()
        F.conv2d(x, weight, padding=1)
        times.append(time.perf_counter() - start)
    return 2 * x.numel() * weight[0].numel() / min(times)


Stage = tuple[str, Callable[[], Any], float]


@torch.inference_mode()
def superpoint_stages() -> list[Stage]:
    from tiepoint.matchers.superpoint import (
        keypoint_probability,
        load_superpoint,
        sample_descriptors,
        suppress,
    )
    from tiepoint.matchers.superpoint_extractor import padded_input, strongest
    from tiepoint.matchers.superpoint_inference import PreparedSuperPoint

    weights, inputs = made_case("superpoint")
    network = PreparedSuperPoint(load_superpoint(weights, "made"), torch.device("cpu"), torch.float32)
    image = padded_input(inputs["image"])[None]
    maps = network(image)
    probability = keypoint_probability(maps.logits)
    keypoints, _ = strongest(suppress(probability, 4)[0], 0.005, 4, 1024)
    pixels = {"1": 1, "2": 4, "3": 16}
    flops = sum(
        2 * tensor.numel() * 640 * 480 / pixels.get(key[4], 64) for key, tensor in weights.items() if tensor.ndim == 4
    )
    return [
        ("network", lambda: network(image), flops),
        ("softmax and shuffle", lambda: keypoint_probability(maps.logits), 0),
        ("suppression, selection", lambda: strongest(suppress(probability, 4)[0], 0.005, 4, 1024), 0),
        ("descriptors", lambda: sample_descriptors(maps.descriptors[0], keypoints, "legacy"), 0),
    ]


@torch.inference_mode()
def superglue_stages(count: int) -> list[Stage]:
    from tiepoint.matchers.superglue import FeatureBatch, load_superglue
    from tiepoint.matchers.superglue_inference import PreparedSuperGlue, fast_log_assignment

    weights, inputs = made_case(f"superglue-{count}")
    network = PreparedSuperGlue(load_superglue(weights, "made"), torch.device("cpu"), torch.float32)
    parts = [
        [torch.from_numpy(inputs[f"{n}{i}"])[None] for n in ("keypoints", "scores", "descriptors")] for i in (0, 1)
    ]
    batch0, batch1 = (FeatureBatch(*part, torch.tensor([[640, 480]])) for part in parts)
    x = network.attended(batch0, batch1)
    similarity = network.similarity(x, count)
    dim = x.shape[1]
    products = 2 * count * 18 * 2 * 9 * dim**2  # of a layer: 3 projections, 4 hidden, 2 out, in units of D^2
    attention = 2 * 18 * 2 * 2 * count**2 * dim
    return [
        ("encoder and layers", lambda: network.attended(batch0, batch1), products + attention),
        ("similarity", lambda: network.similarity(x, count), 2 * count**2 * dim + 4 * count * dim**2),
        (
            "assignment",
            lambda: fast_log_assignment(similarity, network.bin_score, SINKHORN_ITERATIONS),
            SINKHORN_ITERATIONS * 4 * count**2,
        ),
    ]


if __name__ == "__main__":
    main()
