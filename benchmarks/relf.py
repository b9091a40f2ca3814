"""RELF's descriptors beside e2cnn's own forward pass of the same network: time, memory, agreement.

    python benchmarks/relf.py            # one level and pyramid at 640 x 480, then memory in subprocesses

Both sides describe the same 1,024 keypoints of a made picture with the same random weights: e2cnn builds the map
of all stages and reads it at the keypoints, as published; tiepoint reads stage by stage. Needs e2cnn 0.2.3
(tests and benchmarks only). Times are medians of alternating runs. The floor is the network's arithmetic at the rate
that this machine's best plain convolution reaches in the same run: no direct convolution can be faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tiepoint.images import Image
from tiepoint.matchers.relf import PUBLISHED_CONFIG, Pyramid, RelfConfig, RelfExtractor
from tiepoint.matchers.relf_sampling import (
    align,
    orientation_candidates,
    orientation_histogram,
    published_levels,
)
from tiepoint.networks.equivariant_resnet import ReResNet

WIDTH, HEIGHT, NUM_KEYPOINTS, ORDER = 640, 480, 1024, 16
GFLOP = {"one level": 2 * 42.2, "pyramid": 2 * 355.0}
CONFIGS = {
    "one level": RelfConfig(published=True, pyramid=None, max_size_px=None),
    "pyramid": PUBLISHED_CONFIG,
}


class E2cnnReResNet(nn.Module):
    """ReResNet-18 in e2cnn's modules, filled from this project's own network."""

    def __init__(self, ours: ReResNet) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import e2cnn.gspaces
            import e2cnn.nn as enn
        self.enn = enn
        self.space = e2cnn.gspaces.Rot2dOnR2(ORDER)
        self.source = enn.FieldType(self.space, [self.space.trivial_repr] * 3)
        self.conv1, self.bn1 = self._pair(ours.conv1, ours.bn1, self.source)
        self.relu = enn.ReLU(self.conv1.out_type, inplace=True)
        self.layers = nn.ModuleList(
            nn.ModuleList(self._block(block) for block in layer)
            for layer in (ours.layer1, ours.layer2, ours.layer3, ours.layer4)
        )

    def _pair(self, conv, norm, source):
        target = self.enn.FieldType(self.space, [self.space.regular_repr] * conv.fields[0])
        size = conv.kernel_size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = self.enn.R2Conv(
                source,
                target,
                size,
                padding=size // 2,
                stride=conv.stride,
                bias=False,
                frequencies_cutoff=lambda r: 3 * r,
                initialize=False,
            )
        theirs.weights.data.copy_(conv.weights.data)
        their_norm = self.enn.InnerBatchNorm(target)
        inner = next(m for m in their_norm.modules() if isinstance(m, nn.BatchNorm3d))
        inner.load_state_dict(norm.state_dict())
        return theirs, their_norm

    def _block(self, block):
        source = self.enn.FieldType(self.space, [self.space.regular_repr] * block.conv1.fields[1])
        made = nn.ModuleDict()
        made["conv1"], made["bn1"] = self._pair(block.conv1, block.bn1, source)
        made["conv2"], made["bn2"] = self._pair(block.conv2, block.bn2, made["conv1"].out_type)
        made["relu"] = self.enn.ReLU(made["conv1"].out_type, inplace=True)
        if block.downsample is not None:
            made["conv0"], made["bn0"] = self._pair(*block.downsample, source)
        return made

    def forward(self, image: Tensor) -> Tensor:
        """The map of all stages, coarsest first, at the size of the finest."""
        x = self.relu(self.bn1(self.conv1(self.enn.GeometricTensor(image, self.source))))
        maps = [x.tensor]
        for layer in self.layers:
            for block in layer:
                y = block["bn2"](block["conv2"](block["relu"](block["bn1"](block["conv1"](x)))))
                y += block["bn0"](block["conv0"](x)) if "conv0" in block else x
                x = block["relu"](y)
            maps.append(x.tensor)
        size = maps[0].shape[2:]
        resized = [functional.interpolate(m, size, mode="bilinear", align_corners=True) for m in maps[::-1]]
        return torch.cat(resized, dim=1)

    def features(self, image: Tensor, points: Tensor, pyramid: Pyramid | None) -> Tensor:
        """(K, F, N) at points (K, 2), the published way: read from the whole map, the largest of all levels."""
        levels = [(image, 1.0)]
        if pyramid is not None:
            levels = published_levels(
                image, pyramid.max_size_px, pyramid.min_size_px, pyramid.levels_per_octave
            )
        best: Tensor | None = None
        for level, scale in levels:
            whole = self(level)
            size = torch.tensor([whole.shape[3], whole.shape[2]])
            grid = 2 * (points * scale / (level.shape[3] / whole.shape[3])) / (size - 1) - 1
            read = functional.grid_sample(whole, grid[None, None], align_corners=True)[0, :, 0].T
            best = read if best is None else torch.maximum(best, read)
        return best.unflatten(1, (-1, ORDER))


def made_scene() -> tuple[Image, np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, HEIGHT // 8, WIDTH // 8)).astype(np.float32))
    smooth = functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic", align_corners=False)
    picture = smooth[0].permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()
    keypoints = rng.uniform(8, [WIDTH - 9, HEIGHT - 9], (NUM_KEYPOINTS, 2)).astype(np.float32)
    return Image(picture), keypoints


def made_network(image: Image) -> ReResNet:
    """Random weights; the normalisations' statistics are those of the picture, so that values stay in range."""
    torch.manual_seed(0)
    network = ReResNet(ORDER, "e2cnn").train()
    with torch.no_grad():
        for _ in range(30):
            network(normalised(image)[:, :, ::4, ::4])
    return network.eval()


def normalised(image: Image) -> Tensor:
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    pixels = torch.from_numpy(image.pixels.astype(np.float32)) / 255
    return ((pixels - mean) / std).permute(2, 0, 1)[None].contiguous()


def convolution_gflops(dtype: torch.dtype = torch.float32) -> float:
    """The rate of a 3 x 3 convolution as layer 3 has it, at its best of many runs."""
    conv = nn.Conv2d(256, 256, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(1, 256, 60, 80, dtype=dtype).contiguous(memory_format=torch.channels_last)
    best = np.inf
    with torch.inference_mode():
        for _ in range(20):
            start = time.perf_counter()
            conv(x)
            best = min(best, time.perf_counter() - start)
    return 2e-9 * 256 * 256 * 9 * 60 * 80 / best


def describers(which: str) -> dict[str, Callable[[RelfConfig], Tensor]]:
    """Aligned descriptors of the scene by tiepoint, by e2cnn, or by both."""
    image, keypoints = made_scene()
    network = made_network(image)
    found: dict[str, Callable[[RelfConfig], Tensor]] = {}

    def aligned(features: Tensor) -> Tensor:
        return align(features, *orientation_candidates(orientation_histogram(features), None))

    if which != "e2cnn":

        def ours(config: RelfConfig) -> Tensor:
            extractor.config = config
            return aligned(extractor.features_at(image, keypoints))

        extractor = RelfExtractor(network, None, PUBLISHED_CONFIG)
        found["tiepoint"] = ours
    if which == "both":
        rough = RelfExtractor(network, None, PUBLISHED_CONFIG, dtype=torch.bfloat16)

        def in_bf16(config: RelfConfig) -> Tensor:
            rough.config = config
            return aligned(rough.features_at(image, keypoints))

        found["tiepoint bf16"] = in_bf16
    if which != "tiepoint":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = E2cnnReResNet(network).eval()

        @torch.inference_mode()
        def reference(config: RelfConfig) -> Tensor:
            points = torch.from_numpy(keypoints)
            return aligned(theirs.features(normalised(image), points, config.pyramid))

        found["e2cnn"] = reference
    return found


def compare_times(repeats: dict[str, int]) -> None:
    describe = describers("both")
    rate = convolution_gflops()
    print(f"best convolution here: {rate:.0f} GFLOP/s fp32, {convolution_gflops(torch.bfloat16):.0f} bf16")
    for name, config in CONFIGS.items():
        results = {side: run(config) for side, run in describe.items()}
        seconds: dict[str, list[float]] = {side: [] for side in describe}
        for _ in range(repeats[name]):
            for side, run in describe.items():
                start = time.perf_counter()
                run(config)
                seconds[side].append(time.perf_counter() - start)
        reference = float(np.median(seconds["e2cnn"]))
        floor = GFLOP[name] / rate
        print(f"{name}: floor {floor * 1e3:.0f} ms")
        for side, times in seconds.items():
            median = float(np.median(times))
            cosine = (results[side] * results["e2cnn"]).sum(1)
            print(
                f"  {side}: {median * 1e3:.0f} ms ({min(times) * 1e3:.0f} to {max(times) * 1e3:.0f}), "
                f"{reference / median:.2f} times e2cnn's speed, time over floor {median / floor:.2f}; cosine to "
                f"e2cnn's descriptors {float(cosine.median()):.6f}, least {float(cosine.min()):.6f}"
            )


def measure_peak(side: str) -> None:
    """Print what describing the scene with the pyramid adds to this process's resident memory, at its peak."""
    run = describers(side)[side]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = resident("VmRSS")
    run(PUBLISHED_CONFIG)
    peak = resident("VmHWM")
    print(json.dumps({"before_mb": before, "peak_mb": peak}))


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def compare_memory() -> None:
    added = {}
    for side in ("tiepoint", "e2cnn"):
        command = [sys.executable, __file__, "--peak-of", side]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        memory = json.loads(told.splitlines()[-1])
        added[side] = memory["peak_mb"] - memory["before_mb"]
        print(
            f"memory, pyramid: {side} adds {added[side]:.0f} MB at its peak "
            f"(process {memory['before_mb']:.0f} -> {memory['peak_mb']:.0f} MB)"
        )
    print(f"memory, pyramid: {added['e2cnn'] / added['tiepoint']:.1f} times lower")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peak-of", choices=("tiepoint", "e2cnn"), help="what the subprocesses run")
    parser.add_argument("--repeats", type=int, default=9, help="of one level; a third of it for the pyramid")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of is not None:
        measure_peak(options.peak_of)
        return
    compare_times({"one level": options.repeats, "pyramid": max(1, options.repeats // 3)})
    compare_memory()


if __name__ == "__main__":
    main()
