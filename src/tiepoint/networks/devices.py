"""Where networks run, and in which number type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_GPU_BATCH_PIXELS = 16 * 640 * 480  # SuperPoint then takes about 5 GB of activations in fp32


def device_and_dtype(device: str, precision: str) -> tuple[torch.device, torch.dtype]:
    """torch's device and number type for their names ("cpu", "cuda:1", "mps"; "fp32", "bf16", "fp16").

    Raises ValueError for other names, devices this machine does not have, and fp16 on a CPU,
    which has no arithmetic for it.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected cpu, cuda, cuda:N or mps, got {device!r}") from error
    if found.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device: expected cpu, cuda, cuda:N or mps, got {device!r}")
    if found.type == "cuda" and not (0 <= (found.index or 0) < torch.cuda.device_count()):
        raise ValueError(f"device: {device} asked for, but this machine has {torch.cuda.device_count()} of its kind")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: mps asked for, but this machine has none")
    if precision not in _DTYPES:
        raise ValueError(f"precision: expected one of {', '.join(_DTYPES)}, got {precision!r}")
    if found.type == "cpu" and precision == "fp16":
        raise ValueError("precision: fp16 needs a GPU; on a CPU use bf16 or fp32")
    return found, _DTYPES[precision]


def batches_of_one_size(sizes: Sequence[tuple[int, int]], device: torch.device) -> Iterator[list[int]]:
    """Positions in `sizes`, (width, height) of images, of those that go through a network together.

    As many of one size as a GPU holds; one by one on a CPU, where two gain nothing and take twice the memory.
    """
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for position, size in enumerate(sizes):
        groups[size].append(position)
    for (width, height), members in groups.items():
        together = 1 if device.type == "cpu" else max(1, _GPU_BATCH_PIXELS // (width * height))
        for start in range(0, len(members), together):
            yield members[start : start + together]


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; a CPU without them takes four times as long as in fp32.

    False where an older torch cannot tell of a CPU.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))
