"""LoFTR's network against the published implementation's output on random weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiepoint.networks import loftr  # noqa: E402
from tiepoint.networks.loftr_inference import LoftrInference  # noqa: E402
from tiepoint.networks.mutual_matching import match_by_dual_softmax, match_by_optimal_transport  # noqa: E402

PARITY = Path(__file__).parents[1] / "parity"


def load_fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill = load_fill()


def built(case, **changes):
    config = case["config"]
    network = loftr.LoftrNetwork(
        loftr.LoftrConfig(
            position_code="fixed" if config["temp_bug_fix"] else "old",
            matching="dual_softmax" if config["match_type"] == "dual_softmax" else "optimal_transport",
            threshold=config["thr"],
            **changes,
        )
    )
    weights = fill.make_weights(case["weights"])
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=True)
    return network.eval()


def as_gray(picture):
    return torch.from_numpy(picture.astype(np.float32) / 255)[None, None]


def valid_cells(size, padded):
    mask = torch.zeros(1, padded[0] // 8, padded[1] // 8, dtype=torch.bool)
    mask[:, : size[0] // 8, : size[1] // 8] = True
    return mask


def inside(cells, columns, size, border=2):
    y, x = cells // columns, cells % columns
    return (y >= border) & (x >= border) & (y < size[0] // 8 - border) & (x < size[1] // 8 - border)


@pytest.mark.parametrize("name", ["dual_softmax_fixed", "dual_softmax_old", "optimal_transport", "padded"])
@torch.no_grad()
def test_every_stage_equals_the_reference(name):
    case, expected = fill.load_case(PARITY / "loftr" / f"{name}.json")
    inputs = fill.make_inputs(case["inputs"])
    network = built(case)
    gray0, gray1 = as_gray(inputs["image0"]), as_gray(inputs["image1"])
    size0, size1 = (
        case["config"].get("valid0", gray0.shape[2:]),
        case["config"].get("valid1", gray1.shape[2:]),
    )
    valid0 = valid1 = None
    if "valid0" in case["config"]:
        valid0, valid1 = valid_cells(size0, gray0.shape[2:]), valid_cells(size1, gray1.shape[2:])

    def check(output, value):
        fill.compare(case, expected, output, value.numpy())

    maps0, maps1 = network.maps(gray0, gray1)
    check("fine_map0", maps0.fine[0])
    before0, before1 = network.position_coded(maps0.coarse), network.position_coded(maps1.coarse)
    check("coarse_before0", before0[0])
    check("coarse_before1", before1[0])
    flat0 = None if valid0 is None else valid0.flatten(1)
    check("coarse_layer0", network.loftr_coarse.layers[0](before0, before0, flat0, flat0)[0])
    tokens0, tokens1 = network.coarse_tokens(maps0.coarse, maps1.coarse, valid0, valid1)
    check("coarse_after0", tokens0[0])
    check("coarse_after1", tokens1[0])

    confidence = network.coarse_confidence(tokens0, tokens1, valid0, valid1)[0]
    if name == "optimal_transport":
        check("dustbin_column", confidence[:-1, -1])
        check("dustbin_row", confidence[-1, :-1])
        confidence = confidence[:-1, :-1]
    check("row_maximum", confidence.amax(dim=1))
    check("column_maximum", confidence.amax(dim=0))

    columns0, columns1 = maps0.coarse.shape[3], maps1.coarse.shape[3]
    scale = loftr.score_scale(network.config)
    real0 = slice(None) if valid0 is None else torch.nonzero(valid0.flatten()).squeeze(1)
    real1 = slice(None) if valid1 is None else torch.nonzero(valid1.flatten()).squeeze(1)
    features0, features1 = tokens0[0][real0], tokens1[0][real1]
    for block in (100, 4096):
        if name == "optimal_transport":
            z = network.coarse_matching.bin_score
            arguments = (features0, features1, scale, z, 3, network.config.threshold, block)
            found = match_by_optimal_transport(*arguments)
            left = match_by_optimal_transport(*arguments, prefilter=True)
            kept = inside(left.rows, columns0, size0) & inside(left.columns, columns1, size1)
            check("cell0_prefiltered", left.rows[kept])
            check("cell1_prefiltered", left.columns[kept])
        else:
            found = match_by_dual_softmax(features0, features1, scale, network.config.threshold, block)
        cell0, cell1 = found.rows, found.columns
        if valid0 is not None:
            cell0, cell1 = real0[cell0], real1[cell1]
        kept = inside(cell0, columns0, size0) & inside(cell1, columns1, size1)
        cell0, cell1 = cell0[kept], cell1[kept]
        check("cell0", cell0)
        check("cell1", cell1)
        check("confidence", found.confidence[kept])

    batch = torch.zeros_like(cell0)
    windows0 = network.fine_windows(maps0, tokens0, batch, cell0)
    windows1 = network.fine_windows(maps1, tokens1, batch, cell1)
    windows0, windows1, fine = network.fine_matches(windows0, windows1)
    check("windows0", windows0)
    check("windows1", windows1)
    check("expectation", torch.cat([fine.offset, fine.sigma[:, None]], dim=1))
    scale0 = torch.tensor(case["config"].get("scale0", (1, 1)))
    scale1 = torch.tensor(case["config"].get("scale1", (1, 1)))
    check("points0", 8 * torch.stack([cell0 % columns0, cell0 // columns0], 1) * scale0)
    check("points1", (8 * torch.stack([cell1 % columns1, cell1 // columns1], 1) + 4 * fine.offset) * scale1)


@pytest.mark.parametrize("name", ["dual_softmax_fixed", "dual_softmax_old", "optimal_transport", "padded"])
@pytest.mark.parametrize("block", [100, 4096])
def test_the_fast_form_finds_the_reference_matches(name, block):
    case, expected = fill.load_case(PARITY / "loftr" / f"{name}.json")
    inputs = fill.make_inputs(case["inputs"])
    fast = LoftrInference(built(case), block=block)
    encoded = []
    for i in (0, 1):
        gray = as_gray(inputs[f"image{i}"])
        height, width = case["config"].get(f"valid{i}", gray.shape[2:])
        encoded += fast.encode(gray, [(height // 8, width // 8)])
    found = fast.match(*encoded)
    full = [inputs[f"image{i}"].shape[1] // 8 for i in (0, 1)]
    cells = [found.cells0, found.cells1]
    columns = [image.grid[1] for image in encoded]
    for i in (0, 1):
        in_padded = torch.div(cells[i], columns[i], rounding_mode="floor") * full[i] + cells[i] % columns[i]
        fill.compare(case, expected, f"cell{i}", in_padded.numpy())
        scale = torch.tensor(case["config"].get(f"scale{i}", (1, 1)))
        fill.compare(case, expected, f"points{i}", (scale * (found.points0, found.points1)[i]).numpy())
    fill.compare(case, expected, "confidence", found.confidence.numpy())
    np.testing.assert_allclose(found.sigma.numpy(), expected["expectation"][:, 2], atol=2e-4)
