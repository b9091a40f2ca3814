"""Registering 12-megapixel photographs: tiepoint beside the plain script a user would write, on the same files.

    python benchmarks/register.py --photographs DIR [--count 40] [--rounds 2] [--workers 2]

In each round another photograph, enlarged, is the template; it is seen again by known homographies in other light
with noise, as JPEG files, --count of them in all rounds together. The plain script runs SIFT at full size on
template and source each time, a ratio test, RANSAC, a full-size warp and imwrite. The floor is decoding, warping
and encoding alone, with the true transform, by as many processes as tiepoint has. Each side runs in processes of
its own, the sides taking turns round by round; starting up counts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

SIZE = (4000, 3000)
SIDES = ("plain", "refined", "unrefined", "floor")
NAMES = {
    "plain": "plain script",
    "refined": "tiepoint",
    "unrefined": "tiepoint, no refinement",
    "floor": "decode + warp + encode",
}
CORNERS = np.array([[0.0, 0], [SIZE[0] - 1, 0], [SIZE[0] - 1, SIZE[1] - 1], [0, SIZE[1] - 1]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder of photographs to enlarge")
    parser.add_argument("--count", type=int, default=40, help="sources in all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        work(arguments.side, arguments.folder, arguments.workers)
        return
    if arguments.photographs is None:
        parser.error("--photographs is needed")
    with tempfile.TemporaryDirectory() as name:
        rng = np.random.default_rng(arguments.seed)
        chosen = detailed(arguments.photographs, arguments.rounds, rng)
        folders = [Path(name) / str(number) for number in range(arguments.rounds)]
        for folder, photograph in zip(folders, chosen, strict=True):
            make(folder, photograph, arguments.count // arguments.rounds, rng)
        compare(folders, arguments.workers)


# ---------------------------------------------------------------- the photographs


def make(folder: Path, photograph: Path, count: int, rng: np.random.Generator) -> None:
    """template.jpg, sources/*.jpg and truth.json (template from source) in `folder`."""
    (folder / "sources").mkdir(parents=True)
    template = cv2.resize(cv2.imread(str(photograph)), SIZE, interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / "template.jpg"), template, [cv2.IMWRITE_JPEG_QUALITY, 95])
    truth = {}
    for number in range(count):
        source_from_template = random_homography(rng)
        pixels = cv2.warpPerspective(
            template, source_from_template, SIZE, flags=cv2.INTER_CUBIC, borderValue=(90, 90, 90)
        )
        light = (rng.uniform(0.8, 1.1) * np.linspace(0.9, 1.1, SIZE[0])).astype(np.float32)[None, :, None]
        lit = pixels * light + rng.normal(0, 3, pixels.shape).astype(np.float32)
        name = f"{number:03}.jpg"
        jpeg = [cv2.IMWRITE_JPEG_QUALITY, 92]
        cv2.imwrite(str(folder / "sources" / name), np.clip(lit, 0, 255).astype(np.uint8), jpeg)
        truth[name] = np.linalg.inv(source_from_template).tolist()
    (folder / "truth.json").write_text(json.dumps(truth))


def detailed(photographs: Path, count: int, rng: np.random.Generator) -> list[Path]:
    """`count` photographs with at least a thousand SIFT keypoints: both sides need something to hold on to."""
    paths = sorted(photographs.glob("*.jpg"))
    found: list[Path] = []
    for row in rng.permutation(len(paths)):
        gray = cv2.imread(str(paths[row]), cv2.IMREAD_GRAYSCALE)
        if len(cv2.SIFT_create().detect(gray, None)) >= 1000:
            found.append(paths[row])
        if len(found) == count:
            return found
    raise SystemExit(f"{photographs}: fewer than {count} photographs with detail")


def random_homography(rng: np.random.Generator) -> np.ndarray:
    turn = cv2.getRotationMatrix2D((SIZE[0] / 2, SIZE[1] / 2), rng.uniform(-15, 15), rng.uniform(0.92, 1.05))
    moved = CORNERS @ turn[:, :2].T + turn[:, 2] + rng.uniform(-60, 60, (4, 2))
    return cv2.getPerspectiveTransform(CORNERS.astype(np.float32), moved.astype(np.float32))


# ---------------------------------------------------------------- the sides, each in a process of its own


def work(side: str, folder: Path, workers: int) -> None:
    """Register what `make` left in `folder`; the matrices found go to standard output as JSON."""
    sources = sorted((folder / "sources").glob("*.jpg"))
    out = folder / side
    out.mkdir()
    if side == "plain":
        found = plain_script(folder / "template.jpg", sources, out)
    elif side == "floor":
        truth = json.loads((folder / "truth.json").read_text())
        jobs = [(path, truth[path.name], out) for path in sources]
        with multiprocessing.get_context("spawn").Pool(workers, start_floor) as pool:
            pool.map(decode_warp_encode, jobs, chunksize=1)
        found = {path.name: truth[path.name] for path in sources}
    else:
        found = tiepoint_run(folder / "template.jpg", sources, out, workers, refine=side == "refined")
    print(json.dumps(found))


def plain_script(template_path: Path, sources: Sequence[Path], out: Path) -> dict[str, list[list[float]] | None]:
    found = {}
    for path in sources:
        template = cv2.imread(str(template_path))
        source = cv2.imread(str(path))
        sift = cv2.SIFT_create()
        keypoints0, descriptors0 = sift.detectAndCompute(cv2.cvtColor(source, cv2.COLOR_BGR2GRAY), None)
        keypoints1, descriptors1 = sift.detectAndCompute(cv2.cvtColor(template, cv2.COLOR_BGR2GRAY), None)
        pairs = cv2.BFMatcher().knnMatch(descriptors0, descriptors1, k=2)
        good = [first for first, second in pairs if first.distance < 0.75 * second.distance]
        points0 = np.float32([keypoints0[match.queryIdx].pt for match in good])
        points1 = np.float32([keypoints1[match.trainIdx].pt for match in good])
        matrix, _ = cv2.findHomography(points0, points1, cv2.RANSAC, 5.0)
        if matrix is not None:
            cv2.imwrite(str(out / path.name), cv2.warpPerspective(source, matrix, SIZE))
        found[path.name] = None if matrix is None else matrix.tolist()
    return found


def tiepoint_run(
    template: Path, sources: Sequence[Path], out: Path, workers: int, *, refine: bool
) -> dict[str, list[list[float]] | None]:
    from tiepoint.registration.batch import BatchConfig, run_batch
    from tiepoint.registration.records import read_jsonl
    from tiepoint.registration.register import RegistrationConfig
    from tiepoint.registration.sources import Source

    config = BatchConfig(template=template, registration=RegistrationConfig(refine=refine))
    run_batch(config, [Source(path, path.stem) for path in sources], out, workers=workers)
    return {
        Path(record["source"]).name: record["matrix_template_from_source"] if record["aligned"] else None
        for record in read_jsonl(out / "registrations.jsonl")
    }


def start_floor() -> None:
    """The settings of a worker of tiepoint."""
    from tiepoint.registration.memory import keep_freed_memory

    keep_freed_memory()
    cv2.setNumThreads(1)


def decode_warp_encode(job: tuple[Path, list[list[float]], Path]) -> None:
    from tiepoint.geometry import Transform
    from tiepoint.images import read_image, write_image
    from tiepoint.registration import warp_image

    path, matrix, out = job
    write_image(out / path.name, warp_image(read_image(path), Transform(np.array(matrix)), SIZE))


# ---------------------------------------------------------------- side by side


def compare(folders: Sequence[Path], workers: int) -> None:
    seconds, peaks_mb = dict.fromkeys(SIDES, 0.0), dict.fromkeys(SIDES, 0.0)
    errors: dict[str, list[float]] = {side: [] for side in SIDES}
    count = 0
    for folder in folders:
        truth = json.loads((folder / "truth.json").read_text())
        count += len(truth)
        for side in SIDES:
            elapsed, peak_mb, found = run_side(side, folder, workers)
            seconds[side] += elapsed
            peaks_mb[side] = max(peaks_mb[side], peak_mb)
            errors[side] += [
                corner_error(np.array(matrix), np.array(truth[name]))
                for name, matrix in found.items()
                if matrix is not None
            ]
    machine = platform.processor() or platform.machine()
    print(f"{machine}, OpenCV {cv2.__version__}, {workers} workers, {count} sources of 12 megapixels\n")
    print(f"{'':24}{'s a picture':>12}{'times plain':>12}{'peak MB':>9}{'aligned':>9}{'median px':>11}{'worst px':>10}")
    for side in SIDES:
        told = (np.median(errors[side]), max(errors[side])) if errors[side] else (np.nan, np.nan)
        print(
            f"{NAMES[side]:24}{seconds[side] / count:12.2f}{seconds['plain'] / seconds[side]:12.1f}"
            f"{peaks_mb[side]:9.0f}{len(errors[side]):9}{told[0]:11.3f}{told[1]:10.3f}"
        )
    print()
    for side in ("refined", "unrefined"):
        print_stages(side, [folder / side for folder in folders])


def run_side(side: str, folder: Path, workers: int) -> tuple[float, float, dict[str, list[list[float]] | None]]:
    """Seconds, peak resident megabytes of the side's processes together, and the matrices."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--workers", str(workers)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = PeakMemory(process.pid)
    output, _ = process.communicate()
    elapsed = time.perf_counter() - started
    if process.returncode != 0:
        raise SystemExit(f"{side}: ended with {process.returncode}")
    return elapsed, peak.stop(), json.loads(output.splitlines()[-1])


class PeakMemory:
    """Watches the resident memory of a process and all below it, added up (shared pages count for each)."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak_kb, self._stopped = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._stopped.set()
        self._thread.join()
        return self._peak_kb / 1024

    def _watch(self) -> None:
        while not self._stopped.wait(0.05):
            self._peak_kb = max(self._peak_kb, sum(resident_kb(pid) for pid in family(self._pid)))


def family(pid: int) -> list[int]:
    members = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # ended meanwhile
            continue
        members += [member for child in children for member in family(int(child))]
    return members


def resident_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def corner_error(matrix: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance at the template's corners between them and where `matrix` takes their places in the source."""
    in_source = cv2.perspectiveTransform(CORNERS[None], np.linalg.inv(truth))
    return float(np.linalg.norm(cv2.perspectiveTransform(in_source, matrix)[0] - CORNERS, axis=1).mean())


def print_stages(side: str, folders: Sequence[Path]) -> None:
    """Milliseconds of one worker for one picture, by stage."""
    paths = [path for folder in folders for path in (folder / ".tiepoint/records").glob("*.json")]
    stages = [json.loads(path.read_text())["seconds"] for path in paths]
    means = {name: 1e3 * float(np.mean([one.get(name, 0.0) for one in stages])) for name in stages[0]}
    told = ", ".join(f"{name} {mean:.0f}" for name, mean in means.items())
    print(f"{NAMES[side]}, ms a picture in a worker: {told}; together {sum(means.values()):.0f}")


if __name__ == "__main__":
    main()
