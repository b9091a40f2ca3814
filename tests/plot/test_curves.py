"""Charts become pictures: readable files, the same bytes for the same charts."""

import cv2
import numpy as np
import pytest

from tiepoint.evaluation.report import Chart, Curve
from tiepoint.plot.curves import save_charts


def chart(scale):
    x = np.linspace(0.1, 10, 30)
    curves = (Curve(label="one", x=x, y=x / 10), Curve(label="reference", x=x, y=x / 20, style="dashed"))
    return Chart(title="title", x_label="x", y_label="y", curves=curves, scale=scale, y_limits=(0.01, 1))


@pytest.mark.parametrize("scale", ["linear", "log-x", "log-log", "polar"])
def test_charts_are_drawn(tmp_path, scale):
    written = save_charts(tmp_path / "folder/name, with comma", [chart(scale), chart("linear")])
    assert [path.name for path in written] == ["name, with comma.png", "name, with comma.svg"]
    pixels = cv2.imread(str(written[0]))
    assert pixels.shape[1] > 1.8 * pixels.shape[0]
    assert pixels.std() > 5
    assert "reference" not in written[0].name
    assert written[1].read_text().lstrip().startswith("<?xml")


def test_the_same_charts_give_the_same_bytes(tmp_path):
    first, second = (save_charts(tmp_path / name, [chart("linear")] * 4) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_no_curves_are_an_empty_chart(tmp_path):
    empty = Chart(title="t", x_label="x", y_label="y", curves=(Curve(label="nothing", x=[], y=[]),))
    assert save_charts(tmp_path / "empty", [empty])[0].exists()
