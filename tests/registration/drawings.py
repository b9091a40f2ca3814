"""A drawn template and views of it with known transforms."""

import cv2
import numpy as np

from tiepoint.geometry import Transform

SIZE = (640, 480)


def drawn(seed=0, size=SIZE):
    """A label: smooth ground, boxes, discs and text, so that there are corners, edges and plain areas."""
    rng = np.random.default_rng(seed)
    width, height = size
    ground = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 20)
    pixels = np.clip(150 + 400 * ground[..., None] + rng.uniform(-20, 20, 3), 0, 255).astype(np.uint8)
    for _ in range(60):
        colour = rng.integers(0, 256, 3).tolist()
        x, y = (int(v) for v in rng.uniform((0, 0), size))
        w, h = (int(v) for v in rng.uniform(6, 60, 2))
        if rng.random() < 0.6:
            cv2.rectangle(pixels, (x, y), (x + w, y + h), colour, -1, cv2.LINE_AA)
        else:
            cv2.circle(pixels, (x, y), w // 2, colour, -1, cv2.LINE_AA)
    for row in range(6):
        text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVWXYZ0123456789"), 14))
        cv2.putText(pixels, text, (20, 60 + 75 * row), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (20, 20, 20), 2, cv2.LINE_AA)
    return pixels


def seen(pixels, template_from_source, *, size=SIZE, seed=0, noise=3.0, gain=0.9, blur=0.6):
    """`pixels` photographed: warped into a source, blurred, dimmed unevenly, with noise."""
    rng = np.random.default_rng(seed)
    matrix = template_from_source.inverse().matrix
    view = cv2.warpPerspective(pixels, matrix, size, flags=cv2.INTER_CUBIC, borderValue=(90, 90, 90))
    light = gain * np.linspace(0.8, 1.1, size[0])[None, :, None]
    view = cv2.GaussianBlur(view, (0, 0), blur) * light + rng.normal(0, noise, view.shape)
    return np.clip(view, 0, 255).astype(np.uint8)


TRUTHS = [
    Transform.from_parameters(rotation_deg=8, scale=1.05, shift_px=(12, -7), centre=(320, 240)),
    Transform.from_parameters(rotation_deg=-171, scale=0.95, shift_px=(-15, 9), centre=(320, 240)),
    Transform(np.array([[1.02, 0.05, -14], [-0.03, 0.98, 11], [6e-5, -4e-5, 1]])),
    Transform.from_parameters(rotation_deg=90, scale=1.2, centre=(320, 240)),
]
