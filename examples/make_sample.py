"""Write the sample photographs and their exact alignments: python examples/make_sample.py OUT_DIR

OUT_DIR gets template.png, photographs/ with ten shots of the same board and one of something else, and truth.json
with H_template_from_source of each (pixel centres at integers, upright coordinates; null for what is no board).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray
from sample import Shot, draw_board, draw_shipping_label, take, take_template

SHOTS = (
    Shot(name="01_straight.jpg", shift_px=(12.4, -7.3), zoom=1.1),
    Shot(name="02_turned.jpg", turn_deg=17.0, shift_px=(-20, 10), zoom=0.9, light=(0.7, 1.0, 0.9, 1.15)),
    Shot(name="03_upside_down.jpg", turn_deg=181.5, shift_px=(9, 31), zoom=1.05, tilt_deg=(4, -3)),
    Shot(name="04_far_away.jpg", turn_deg=-31.0, zoom=0.5, shift_px=(150, -90), light=(1.1, 0.8, 1, 0.7)),
    Shot(name="05_tilted.jpg", turn_deg=8.0, zoom=0.95, tilt_deg=(24, -18)),
    Shot(name="06_camera_on_its_side.jpg", turn_deg=-4.0, zoom=0.8, size=(1080, 1440)),
    Shot(name="07_16_bit.tif", turn_deg=93.0, zoom=0.85, light=(0.5, 0.9, 0.6, 1.0)),
    Shot(
        name="08_parts_missing.png",
        turn_deg=-2.5,
        missing=frozenset({"U2", "C3", "Y2", "P20", "P31", "P47", "P58", "P66", "P80"}),
    ),
    Shot(name="09_blurred_and_dark.jpg", turn_deg=5, blur_px=2.2, noise=6, light=(0.35, 0.5, 0.4, 0.6)),
    Shot(name="10_close_up.jpg", turn_deg=-7, zoom=1.6, shift_px=(260, 190), light=(1.3, 0.7, 1.1, 0.6)),
)
STRANGER = Shot(name="11_something_else.jpg", turn_deg=6, zoom=1.0, tilt_deg=(5, 3))


def main(folder: Path) -> None:
    photographs = folder / "photographs"
    photographs.mkdir(parents=True, exist_ok=True)
    board = draw_board()
    PIL.Image.fromarray(take_template(board)).save(folder / "template.png")
    truth: dict[str, list[list[float]] | None] = {}
    for seed, shot in enumerate(SHOTS):
        seen = draw_board(shot.missing) if shot.missing else board
        write(photographs / shot.name, take(shot, seen, np.random.default_rng(seed)))
        truth[shot.name] = np.linalg.inv(shot.photograph_from_template()).tolist()
    write(photographs / STRANGER.name, take(STRANGER, draw_shipping_label(), np.random.default_rng(99)))
    truth[STRANGER.name] = None
    (folder / "truth.json").write_text(json.dumps({"H_template_from_source": truth}, indent=1) + "\n")


def write(path: Path, picture: NDArray[np.float32]) -> None:
    """`picture`, 0 ... 255, as a camera would store it."""
    if path.suffix == ".tif":  # 12 bits of a sensor in a 16-bit file
        tifffile.imwrite(
            path, np.rint(picture * (4095 / 255)).astype(np.uint16), photometric="rgb", metadata=None
        )
        return
    pixels = np.rint(picture).astype(np.uint8)
    if path.suffix == ".png":
        PIL.Image.fromarray(pixels).save(path)
        return
    exif = PIL.Image.Exif()
    if (
        pixels.shape[0] > pixels.shape[1]
    ):  # the sensor lies on its side: orientation 6, "turn right to display"
        pixels = np.ascontiguousarray(np.rot90(pixels))
        exif[0x0112] = 6
    PIL.Image.fromarray(pixels).save(path, quality=88, exif=exif)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
