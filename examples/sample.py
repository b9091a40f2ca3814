"""A printed circuit board, drawn, and a camera, simulated: pictures whose alignment is known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]  # (H, W, 3) RGB

TEMPLATE_SIZE = (1200, 900)
OVERSAMPLING = 2  # the board is drawn at twice the template's resolution, photographs are sampled from that

MASK, TRACE, GOLD, TIN = (20, 88, 52), (38, 116, 72), (206, 178, 104), (196, 198, 200)
SILK, PLASTIC, CERAMIC, GROUND = (232, 234, 224), (40, 40, 44), (188, 160, 120), (96, 98, 102)


@dataclass(frozen=True)
class Part:
    """A component with its upper left corner and size in template pixels."""

    name: str
    kind: str
    x: int
    y: int
    width: int
    height: int


BIG_PARTS = (
    Part("U1", "chip", 430, 300, 190, 190),
    Part("U2", "chip", 800, 180, 110, 150),
    Part("U3", "chip", 210, 560, 150, 90),
    Part("U4", "chip", 860, 560, 90, 70),
    Part("J1", "connector", 60, 240, 70, 260),
    Part("J2", "connector", 460, 790, 330, 60),
    Part("J3", "connector", 1060, 470, 80, 170),
    Part("C1", "can", 190, 160, 100, 100),
    Part("C2", "can", 330, 120, 80, 80),
    Part("C3", "can", 1010, 290, 90, 90),
    Part("Y1", "crystal", 680, 420, 90, 40),
    Part("Y2", "crystal", 640, 640, 50, 100),
)
PRINTED = (
    Part("TIEPOINT  INSPECTION SAMPLE", "text", 480, 62, 520, 26),
    Part("REV C 2026", "text", 820, 740, 150, 20),
)


def draw_board(missing: frozenset[str] = frozenset()) -> Picture:
    """The board at OVERSAMPLING times the template's size, without the parts named in `missing`."""
    rng = np.random.default_rng(7)
    parts = BIG_PARTS + _small_parts(rng, 90)
    board = _Board()
    board.traces(rng, parts)
    for part in parts:
        board.pads(part)
        if part.name not in missing:
            board.body(part)
    board.print_labels(parts)
    return board.pixels


def draw_shipping_label() -> Picture:
    """Something else altogether, of the same size: a label with a bar code and lines of text."""
    rng = np.random.default_rng(11)
    width, height = (side * OVERSAMPLING for side in TEMPLATE_SIZE)
    label = np.full((height, width, 3), GROUND, np.uint8)
    cv2.rectangle(label, (160, 120), (width - 160, height - 120), (238, 236, 226), -1)
    x = 280
    while x < width - 280:
        bar, gap = (int(v) for v in rng.integers(4, 22, 2))
        cv2.rectangle(label, (x, 240), (x + bar, 620), (24, 24, 24), -1)
        x += bar + gap
    for row in range(9):
        text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVWXYZ 0123456789"), 26))
        cv2.putText(
            label, text, (280, 760 + 100 * row), cv2.FONT_HERSHEY_COMPLEX, 2.2, (40, 40, 40), 5, cv2.LINE_AA
        )
    return label


def _small_parts(rng: np.random.Generator, count: int) -> tuple[Part, ...]:
    """Resistors, ceramic capacitors and diodes in the free places between the big parts."""
    placed = [*BIG_PARTS, *PRINTED]
    taken = len(placed)
    while len(placed) < taken + count:
        long, wide = [(26, 14), (34, 18), (44, 24)][rng.integers(3)]
        width, height = (long, wide) if rng.random() < 0.5 else (wide, long)
        x, y = int(rng.integers(75, 1125 - width)), int(rng.integers(75, 825 - height))
        part = Part(
            f"P{len(placed) - taken + 10}",
            ["resistor", "ceramic", "led"][rng.integers(3)],
            x,
            y,
            width,
            height,
        )
        if not any(_touch(part, other, 22) for other in placed):
            placed.append(part)
    return tuple(placed[taken:])


def _touch(a: Part, b: Part, margin: int) -> bool:
    apart_x = a.x + a.width + margin < b.x or b.x + b.width + margin < a.x
    apart_y = a.y + a.height + margin < b.y or b.y + b.height + margin < a.y
    return not (apart_x or apart_y)


class _Board:
    """The picture being drawn; all coordinates are template pixels."""

    def __init__(self) -> None:
        width, height = (side * OVERSAMPLING for side in TEMPLATE_SIZE)
        self.pixels = np.full((height, width, 3), GROUND, np.uint8)
        self.box(30, 30, 1140, 840, MASK)
        for x in (58, 1142):
            for y in (58, 842):
                self.disc(x, y, 20, GOLD)
                self.disc(x, y, 12, GROUND)

    def box(
        self, x: float, y: float, width: float, height: float, colour: Colour, thickness: int = -1
    ) -> None:
        ends = [_scaled(x, y), _scaled(x + width, y + height)]
        cv2.rectangle(self.pixels, ends[0], ends[1], colour, thickness, cv2.LINE_AA)

    def disc(self, x: float, y: float, radius: float, colour: Colour, thickness: int = -1) -> None:
        cv2.circle(self.pixels, _scaled(x, y), round(radius * OVERSAMPLING), colour, thickness, cv2.LINE_AA)

    def text(self, text: str, x: float, y: float, size: float, colour: Colour = SILK) -> None:
        scale, thickness = size * OVERSAMPLING / 22, max(2, round(size / 6))
        cv2.putText(
            self.pixels, text, _scaled(x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA
        )

    def traces(self, rng: np.random.Generator, parts: tuple[Part, ...]) -> None:
        """Tracks from part to part, bent by 45 degrees as on real boards, and vias between them."""
        for _ in range(170):
            a, b = (parts[i] for i in rng.choice(len(parts), 2, replace=False))
            x0, y0 = a.x + rng.integers(a.width), a.y + rng.integers(a.height)
            x1, y1 = b.x + rng.integers(b.width), b.y + rng.integers(b.height)
            if abs(x1 - x0) + abs(y1 - y0) > 420:
                continue
            step = min(abs(x1 - x0), abs(y1 - y0))
            corner = (x0 + np.sign(x1 - x0) * step, y0 + np.sign(y1 - y0) * step)
            points = np.array([_scaled(*p) for p in ((x0, y0), corner, (x1, y1))], np.int32)
            cv2.polylines(self.pixels, [points], False, TRACE, int(rng.integers(4, 9)), cv2.LINE_AA)
            if rng.random() < 0.7:
                self.disc(*corner, 6, GOLD)
                self.disc(*corner, 2.5, MASK)

    def pads(self, part: Part) -> None:
        x, y, width, height = part.x, part.y, part.width, part.height
        if part.kind == "chip":
            for offset in range(12, width - 12, 14):
                self.box(x + offset, y - 14, 7, 22, TIN)
                self.box(x + offset, y + height - 8, 7, 22, TIN)
            for offset in range(12, height - 12, 14):
                self.box(x - 14, y + offset, 22, 7, TIN)
                self.box(x + width - 8, y + offset, 22, 7, TIN)
        elif part.kind == "connector":
            long = max(width, height)
            for offset in range(14, long - 10, 26):
                dx, dy = (offset, height / 2) if width > height else (width / 2, offset)
                self.disc(x + dx, y + dy, 8, GOLD)
        elif width > height:
            self.box(x - 6, y, 14, height, TIN)
            self.box(x + width - 8, y, 14, height, TIN)
        else:
            inset = width * 3 // 8 if part.kind == "can" else 0
            self.box(x + inset, y - 6, width - 2 * inset, 14, TIN)
            self.box(x + inset, y + height - 8, width - 2 * inset, 14, TIN)

    def body(self, part: Part) -> None:
        x, y, width, height = part.x, part.y, part.width, part.height
        if part.kind == "can":
            radius = width / 2
            self.disc(x + radius, y + radius, radius, (150, 152, 158))
            self.disc(x + radius, y + radius, radius * 0.86, (190, 192, 198))
            centre, axes = _scaled(x + radius, y + radius), (round(radius * 1.7),) * 2
            cv2.ellipse(self.pixels, centre, axes, 90, -50, 50, (40, 44, 70), -1, cv2.LINE_AA)
            self.text(f"{part.name[-1]}70", x + radius * 0.45, y + radius * 0.85, 15, (40, 44, 60))
        elif part.kind == "connector":
            self.box(x, y, width, height, SILK, 4)
            for offset in range(14, max(width, height) - 10, 26):
                dx, dy = (offset, height / 2) if width > height else (width / 2, offset)
                self.box(x + dx - 9, y + dy - 9, 18, 18, (28, 28, 30))
                self.disc(x + dx, y + dy, 5, GOLD)
        elif part.kind == "crystal":
            self.box(x, y, width, height, (206, 204, 198))
            self.box(x + 5, y + 5, width - 10, height - 10, (222, 222, 216), 3)
        elif part.kind == "chip":
            self.box(x, y, width, height, PLASTIC)
            self.disc(x + 14, y + 14, 6, (78, 78, 82))
            for row, text in enumerate((f"TP{part.width}{part.name}", f"{part.x}-{part.y}", "2641 KOR")):
                if 34 + 24 * row < height:
                    self.text(text, x + 12, y + height * 0.35 + 24 * row, 14, (170, 170, 172))
        else:
            body = {"resistor": (30, 30, 32), "ceramic": CERAMIC, "led": (226, 214, 170)}[part.kind]
            inset = 6
            if width > height:
                self.box(x + inset, y, width - 2 * inset, height, body)
            else:
                self.box(x, y + inset, width, height - 2 * inset, body)

    def print_labels(self, parts: tuple[Part, ...]) -> None:
        for part in parts:
            beside = (
                (part.x + part.width + 9, part.y + 10) if part.height > part.width else (part.x, part.y - 8)
            )
            if part.kind in ("resistor", "ceramic", "led") or part.width < 130:
                self.text(part.name, *beside, 11)
        for line in PRINTED:
            self.text(line.name, line.x, line.y + line.height, line.height)


def _scaled(x: float, y: float) -> tuple[int, int]:
    return round(float(x) * OVERSAMPLING), round(float(y) * OVERSAMPLING)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One photograph: where the camera stood and what went wrong.

    turn_deg: clockwise as displayed. zoom: photograph pixels per template pixel. shift_px: of the board's middle
    from the photograph's. tilt_deg: of the board about the photograph's x and y axes. light: brightness at the
    four corners (top left, top right, bottom left, bottom right). blur_px: sigma. noise: grey levels.
    """

    name: str
    turn_deg: float = 0.0
    zoom: float = 1.0
    shift_px: tuple[float, float] = (0.0, 0.0)
    tilt_deg: tuple[float, float] = (0.0, 0.0)
    light: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    blur_px: float = 0.6
    noise: float = 2.0
    missing: frozenset[str] = frozenset()
    size: tuple[int, int] = (1440, 1080)

    def photograph_from_template(self) -> NDArray[np.float64]:
        """(3, 3) homography of pixel centres: turn and zoom about the middle, tilt before a pinhole, shift."""
        distance = 2400.0  # from the pinhole to the board, in photograph pixels: a usual lens
        turn, tilt_x, tilt_y = np.deg2rad([self.turn_deg, *self.tilt_deg])
        plane = self.zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)], [0, 0]])
        about_x = np.array(
            [[1, 0, 0], [0, np.cos(tilt_x), -np.sin(tilt_x)], [0, np.sin(tilt_x), np.cos(tilt_x)]]
        )
        about_y = np.array(
            [[np.cos(tilt_y), 0, np.sin(tilt_y)], [0, 1, 0], [-np.sin(tilt_y), 0, np.cos(tilt_y)]]
        )
        pose = np.column_stack([about_y @ about_x @ plane, (0, 0, distance)])
        camera = np.diag([distance, distance, 1.0])
        middle = (np.array(self.size) - 1) / 2 + self.shift_px
        matrix = _shift(middle) @ camera @ pose @ _shift(-(np.array(TEMPLATE_SIZE) - 1) / 2)
        return np.asarray(matrix / matrix[2, 2])


def take_template(board: Picture) -> Picture:
    """The board at the template's size."""
    return np.asarray(cv2.resize(board, TEMPLATE_SIZE, interpolation=cv2.INTER_AREA))


def take(shot: Shot, board: Picture, rng: np.random.Generator) -> NDArray[np.float32]:
    """The board as `shot` sees it: (H, W, 3) float32 RGB, 0 ... 255, before any file format rounds it."""
    finer = _half_pixel_scale(OVERSAMPLING)
    matrix = finer @ shot.photograph_from_template() @ np.linalg.inv(finer)
    size = (shot.size[0] * OVERSAMPLING, shot.size[1] * OVERSAMPLING)
    seen: NDArray[Any] = cv2.warpPerspective(board, matrix, size, flags=cv2.INTER_CUBIC, borderValue=GROUND)
    reduced: NDArray[Any] = cv2.resize(seen, shot.size, interpolation=cv2.INTER_AREA)
    picture: NDArray[Any] = cv2.GaussianBlur(reduced.astype(np.float32), (0, 0), shot.blur_px)
    corners = np.array(shot.light, np.float32).reshape(2, 2)
    light: NDArray[Any] = cv2.resize(corners, shot.size, interpolation=cv2.INTER_LINEAR)
    picture = picture * light[..., None]
    picture += rng.normal(0, shot.noise, picture.shape).astype(np.float32)
    return np.asarray(picture.clip(0, 255))


def _shift(by: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([[1, 0, by[0]], [0, 1, by[1]], [0, 0, 1.0]])


def _half_pixel_scale(factor: float) -> NDArray[np.float64]:
    """x' + 1/2 = factor (x + 1/2): what an area-averaging reduction by `factor` undoes."""
    offset = (factor - 1) / 2
    return np.array([[factor, 0, offset], [0, factor, offset], [0, 0, 1.0]])
