"""Photographs with known cameras: true cells against a plane's homography, broken files, labels, training."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tiepoint.cli.train import train as train_commands
from tiepoint.cli.weights import weights
from tiepoint.geometry import Camera, Matches, relative_pose
from tiepoint.images import Image, resize, write_image
from tiepoint.matchers.loftr import load_loftr
from tiepoint.networks.loftr import LoftrConfig, LoftrNetwork
from tiepoint.networks.loftr_inference import CellMatches
from tiepoint.training.engine import Compute, Interrupted, LoopConfig, generator_of, train
from tiepoint.training.loftr import LoftrTraining, LoftrTrainingConfig
from tiepoint.training.posed import (
    DepthTruth,
    PosedConfig,
    PosedPairs,
    PosedView,
    PseudoLabels,
    load_view,
    read_depth,
    stacked,
)
from tiepoint.training.posed_validation import HeldOutPosed, match_errors_px, pose_error_deg
from tiepoint.training.record import Run
from tiepoint.training.scenes import Scene, kept_back, num_pairs, read_scenes

from posed_scene import objects, plane_scene, write_imc2022, write_index, write_megadepth

CPU = torch.device("cpu")
BAND = (0.1, 0.7)
SIDE = 160
TINY = LoftrConfig(widths=(16, 16, 16), num_heads=2, num_coarse_pairs=1)
CONFIG = LoftrTrainingConfig(
    network=TINY,
    posed=PosedConfig(side_px=64),
    num_validation=2,
    loop=LoopConfig(steps=4, batch_size=2, precision="fp32", warm_up_steps=1, validate_every=10, average_decay=0.5),
)


def views_of(scene, **changes):
    given = {name: getattr(scene, name) for name in ("depth0", "depth1")} | changes
    views = [
        PosedView(scene.pixels0, scene.camera0, given["depth0"]),
        PosedView(scene.pixels1, scene.camera1, given["depth1"]),
    ]
    return tuple(stacked([view], SIDE, CPU) for view in views)


def cells_of_homography(H, size, origin=0.0, side=SIDE):
    """(rows, columns) the mutual cells of two pictures of `size` (width, height) in squares, one cell at a time."""
    columns = side // 8

    def nearest(matrix, cell):
        x, y = 8 * (cell % columns) - origin, 8 * (cell // columns) - origin
        u, v, w = matrix @ (x, y, 1)
        there = np.array([u, v]) / w
        inside = all((np.round(p) >= 0).all() and (np.round(p) < size).all() for p in (np.array([x, y]), there))
        column, row = np.round((there + origin) / 8).astype(int)
        return row * columns + column if inside and row < columns and column < columns else -1

    partner = []
    for cell in range(columns**2):
        other = nearest(H, cell)
        partner.append(other if other >= 0 and nearest(np.linalg.inv(H), other) == cell else -1)
    return np.array(partner).reshape(columns, columns)


@pytest.mark.parametrize("origin", [0.0, 0.5])
@pytest.mark.parametrize("size", [(160, 120), (120, 160)])
def test_true_cells_are_those_of_the_homography(size, origin):
    scene = plane_scene(size)
    truth = DepthTruth(origin=origin, depth_error=0.2)(*views_of(scene))
    expected = cells_of_homography(scene.H_1_from_0, size, origin)
    assert (expected >= 0).sum() > 80
    found = truth.partner[0].reshape(20, 20).numpy()
    # The corner frame's cells lie between pixels, whose depth is read half a pixel off: some go to the next cell.
    assert (found != expected).mean() <= (0.02 if origin else 0)
    points0 = 8.0 * np.stack([np.arange(400) % 20, np.arange(400) // 20, np.ones(400) / 8], 1) - [origin, origin, 0]
    points1 = points0 @ scene.H_1_from_0.T
    there = torch.from_numpy(points1[:, :2] / points1[:, 2:]) + origin
    matched = truth.partner[0] >= 0
    torch.testing.assert_close(truth.points1[0][matched].double(), there[matched], atol=0.01 + origin / 5, rtol=0)


def test_unknown_hidden_and_wrong_depth_is_left_out():
    scene = plane_scene()
    truth = DepthTruth(origin=0.0, depth_error=0.2)
    whole = truth(*views_of(scene)).partner.reshape(20, 20)
    unknown = scene.depth0.copy()
    unknown[:, :64] = 0
    partner = truth(*views_of(scene, depth0=unknown)).partner.reshape(20, 20)
    assert (partner[:, :8] == -1).all()
    assert torch.equal(partner[:, 9:], whole[:, 9:])  # what comes back to column 8 may lie just left of it

    hidden = scene.depth1.copy()  # something stands in front of the right half of view 1
    hidden[:, 80:] *= 0.5
    partner = truth(*views_of(scene, depth1=hidden)).partner.reshape(20, 20)
    left, right = ((whole >= 0) & (whole % 20 < 10), (whole >= 0) & (whole % 20 > 10))
    assert right.any()
    assert (partner[right] == -1).all()
    assert torch.equal(partner[left], whole[left])

    for factor in (1.5, 0.7):
        assert (truth(*views_of(scene, depth1=factor * scene.depth1)).partner == -1).all()


def test_what_lies_behind_the_other_camera_is_not_seen():
    scene = plane_scene()
    beyond = dataclasses.replace(scene, camera1=dataclasses.replace(scene.camera1, translation=np.array([0, 0, -50.0])))
    truth = DepthTruth(origin=0.0, depth_error=1e9)(*views_of(beyond))
    assert (truth.partner == -1).all()
    assert truth.points1.isnan().all()


def test_megadepth_is_read_in_the_index_frame(tmp_path):
    scene = plane_scene()
    write_megadepth(scene, tmp_path, ("0001_0.1_0.3", "0001_0.3_0.5", "0002_0.1_0.3"))
    scenes = read_scenes("megadepth", tmp_path, BAND)
    assert num_pairs(scenes) == {"0001": 4, "0002": 2}  # the pair with an overlap of 0.9 is not among them
    first, second = scenes[0].pairs[0]
    assert scenes[0].pairs[1] == (second, first)
    view = load_view(first, SIDE)
    np.testing.assert_allclose(view.camera.intrinsics, scene.camera0.intrinsics, atol=1e-12)
    np.testing.assert_allclose(view.camera.rotation, scene.camera0.rotation)
    assert np.array_equal(view.pixels, scene.pixels0)
    assert np.array_equal(view.depth, scene.depth0)
    training, held_out = kept_back(scenes)
    assert (num_pairs(training), num_pairs(held_out)) == ({"0001": 4}, {"0002": 2})


def test_smaller_pictures_are_of_the_same_scene(tmp_path):
    scene = plane_scene((320, 240))
    write_megadepth(scene, tmp_path)
    first, second = read_scenes("megadepth", tmp_path, BAND)[0].pairs[0]
    views0, views1 = (stacked([load_view(photograph, SIDE)], SIDE, CPU) for photograph in (first, second))
    truth = DepthTruth(origin=0.0, depth_error=0.2)(views0, views1)
    half = resize(scene.pixels0, (160, 120))[1].matrix
    H = half @ scene.H_1_from_0 @ np.linalg.inv(half)
    assert np.array_equal(truth.partner[0].reshape(20, 20).numpy(), cells_of_homography(H, (160, 120)))
    assert views0.grids == [(15, 20)]
    assert views0.valid[0].sum() == 300
    assert (views0.images[0, 0, 120:] == 0).all()


def test_imc2022_is_read_in_the_index_frame(tmp_path):
    scene = plane_scene()
    write_imc2022(scene, tmp_path)
    scenes = read_scenes("imc2022", tmp_path, BAND)
    assert num_pairs(scenes) == {"arch": 1, "bridge": 1}
    first, second = scenes[0].pairs[0]
    np.testing.assert_allclose(first.camera.intrinsics, scene.camera0.intrinsics, atol=1e-12)
    np.testing.assert_allclose(second.camera.translation, scene.camera1.translation)
    assert load_view(first, SIDE).depth is None
    (tmp_path / "train" / "arch" / "calibration.csv").write_text("image_id\nb,1 2,3,4\n")
    with pytest.raises(ValueError, match=r"calibration\.csv: expected lines of an id and 9, 9 and 3"):
        read_scenes("imc2022", tmp_path, BAND)


def test_one_scene_keeps_its_last_pairs_back():
    pairs = list(range(60))
    training, held_out = kept_back([Scene("a", pairs[:20]), Scene("a", pairs[20:])])
    assert training[0].pairs == pairs[:57]
    assert held_out[0].pairs == pairs[57:]
    with pytest.raises(ValueError, match="a: expected 2 pairs at least"):
        kept_back([Scene("a", pairs[:1])])


def test_folders_and_files_that_are_not_so_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected scene_info/\*\.npz"):
        read_scenes("megadepth", tmp_path, BAND)
    with pytest.raises(ValueError, match=r"no scene with a pair_covisibility\.csv"):
        read_scenes("imc2022", tmp_path, BAND)
    scene = plane_scene()
    write_megadepth(scene, tmp_path, ("0001",))
    with pytest.raises(ValueError, match=r"no pair has an overlap of 0\.95 to 1"):
        read_scenes("megadepth", tmp_path, (0.95, 1.0))
    for paths, what in (
        (("../secret.png", None, "images/1.png"), r"0001\.npz.*below .*secret"),
        (("/etc/passwd", None, "images/1.png"), r"0001\.npz.*below .*passwd"),
        (("images/9.png", None, "images/1.png"), r"0001\.npz.*9\.png: is not there"),
        ((None, None, "images/1.png"), r"0001\.npz.*got None"),
        (("images/0.png",), r"0001\.npz: is no scene"),
    ):
        write_index(scene, tmp_path, "0001", image_paths=objects(*paths))
        with pytest.raises(ValueError, match=what):
            read_scenes("megadepth", tmp_path, BAND)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("made",)


def test_a_hostile_index_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = plane_scene()
    write_megadepth(scene, tmp_path, ("0001",))
    write_index(scene, tmp_path, "0001", poses=objects(Hostile(), None, None))
    with pytest.raises(ValueError, match=r"0001\.npz: cannot be read.*mkdir; only numbers.*no code"):
        read_scenes("megadepth", tmp_path, BAND)
    assert not (tmp_path / "made").exists()


def test_broken_depth_is_named(tmp_path, monkeypatch):
    scene = plane_scene()
    write_megadepth(scene, tmp_path)
    first, _ = read_scenes("megadepth", tmp_path, BAND)[0].pairs[0]
    write_image(first.image, Image(scene.pixels0[:-8]))
    with pytest.raises(ValueError, match=r"0\.h5: is 160 x 120, its photograph .*0\.png is 160 x 112"):
        load_view(first, SIDE)
    first.depth.write_bytes(first.depth.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"0\.h5: cannot be read as HDF5"):
        read_depth(first.depth)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"0\.h5: is HDF5; to read it: pip install 'tiepoint\[train\]' \(or h5py\)"):
        read_depth(first.depth)


def test_depth_that_is_no_depth(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["depth"] = np.array([[1.0, np.nan, np.inf], [-1.0, 0.0, 2.0]])
        file["deep"] = np.zeros((2, 2, 2))
    assert read_depth(tmp_path / "a.h5").tolist() == [[1, 0, 0], [0, 0, 2]]
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["other"] = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"b\.h5: cannot be read as HDF5 with a data set `depth`"):
        read_depth(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["depth"] = np.zeros((2, 2, 2))
    with pytest.raises(ValueError, match=r"c\.h5: expected depth of shape \(H, W\)"):
        read_depth(tmp_path / "c.h5")


class Stub:
    """An inference that finds given matches in a picture of 15 columns of cells."""

    def __init__(self, found):
        self.found = found

    def encode(self, images, grids):
        assert grids == [(20, 15)]
        return grids

    def match(self, *_):
        return self.found


def test_pseudo_labels_are_matches_near_the_epipolar_lines():
    scene = plane_scene((120, 160))
    cells0 = np.arange(40, 120)  # 20 rows of 15
    points0 = 8.0 * np.stack([cells0 % 15, cells0 // 15], 1)
    there = np.concatenate([points0, np.ones((80, 1))], 1) @ scene.H_1_from_0.T
    points1 = there[:, :2] / there[:, 2:]
    F = relative_pose(scene.camera0, scene.camera1).epipolar.matrix
    line = np.concatenate([points0, np.ones((80, 1))], 1) @ F.T
    across = line[:, :2] / np.linalg.norm(line[:, :2], axis=1, keepdims=True)
    off_px = np.linspace(0, 3, 80)
    moved = points1 + off_px[:, None] * across
    cells1 = (np.round(moved / 8).clip(0, [14, 19]) @ [1, 15]).astype(int)
    found = CellMatches(
        *(torch.from_numpy(points).float() for points in (points0, moved)),
        *(torch.ones(80), torch.ones(80), torch.from_numpy(cells0), torch.from_numpy(cells1)),
    )
    labels = PseudoLabels(LoftrNetwork(TINY), epipolar_px=1.0)
    labels._inference = Stub(found)
    truth = labels(*views_of(scene, depth0=None, depth1=None))
    partner = truth.partner.reshape(20, 20)
    assert (partner[:, 15:] == -1).all()  # the padding
    labelled = partner[:, :15].flatten()[cells0]
    kept = labelled >= 0
    assert kept[off_px < 0.6].all()  # both distances together stay within 1 px
    assert not kept[off_px > 1].any()
    expected = torch.from_numpy(cells1 // 15 * 20 + cells1 % 15)
    assert torch.equal(labelled[kept], expected[kept])
    points = truth.points1.reshape(20, 20, 2)[:, :15].flatten(0, 1)[cells0]
    torch.testing.assert_close(points[kept].double(), torch.from_numpy(moved)[kept], atol=1e-4, rtol=0)
    assert points[~kept].isnan().all()


def test_without_a_baseline_there_are_no_lines_and_no_labels():
    scene = plane_scene()
    same = dataclasses.replace(scene, camera1=scene.camera0)
    labels = PseudoLabels(LoftrNetwork(TINY), epipolar_px=1.0)
    one = torch.tensor([3])
    found = CellMatches(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1), torch.ones(1), one, one)
    labels._inference = Stub(found)
    labels._inference.encode = lambda images, grids: grids
    assert (labels(*views_of(same, depth0=None, depth1=None)).partner == -1).all()


def test_labels_stay_those_of_the_start():
    network = LoftrNetwork(TINY)
    labels = PseudoLabels(network, epipolar_px=1.0)
    before = labels.network.backbone.conv1.weight.clone()
    torch.nn.init.zeros_(network.backbone.conv1.weight)
    assert torch.equal(labels.network.backbone.conv1.weight, before)
    assert not labels.network.training


def test_the_shipped_weights_label_the_plane():
    scene = plane_scene((320, 240))
    views0, views1 = (
        stacked([PosedView(pixels, camera, None)], 320, CPU)
        for pixels, camera in ((scene.pixels0, scene.camera0), (scene.pixels1, scene.camera1))
    )
    truth = PseudoLabels(load_loftr("tiepoint-loftr"), epipolar_px=1.0)(views0, views1)
    cells = (truth.partner[0] >= 0).nonzero()[:, 0]
    points0 = np.stack([8.0 * (cells % 40), 8.0 * torch.div(cells, 40, rounding_mode="floor"), np.ones(len(cells))], 1)
    there = points0 @ scene.H_1_from_0.T
    errors = np.linalg.norm(there[:, :2] / there[:, 2:] - truth.points1[0, cells].numpy(), axis=1)
    assert len(errors) > 50
    assert (errors < 3).mean() > 0.9


def matches_of(points0, points1):
    ones = np.ones(len(points0), np.float32)
    points0, points1 = points0.astype(np.float32), points1.astype(np.float32)
    return Matches(points0=points0, points1=points1, scores=ones, size0=(160, 120), size1=(160, 120), method="o")


def test_matches_are_judged_by_depth_or_by_the_lines(tmp_path):
    scene = plane_scene()
    points0 = np.array([[60.0, 50], [80, 60], [100, 70], [70, 90]])
    there = np.concatenate([points0, np.ones((4, 1))], 1) @ scene.H_1_from_0.T
    points1 = there[:, :2] / there[:, 2:] + [[0, 0], [2, 0], [0, 5], [0, 0]]
    unknown = scene.depth0.copy()
    unknown[90] = 0
    views = [PosedView(scene.pixels0, scene.camera0, unknown), PosedView(scene.pixels1, scene.camera1, scene.depth1)]
    errors = match_errors_px(matches_of(points0, points1), *views, PosedConfig(side_px=SIDE))
    np.testing.assert_allclose(errors, [0, 2, 5, np.nan], atol=1e-3)
    posed = [dataclasses.replace(view, depth=None) for view in views]
    errors = match_errors_px(matches_of(points0, points1), *posed, PosedConfig(side_px=SIDE))
    assert errors[[0, 3]].max() < 1e-3
    assert errors[2] > 3

    write_megadepth(scene, tmp_path, ("0001",))
    held_out = HeldOutPosed(read_scenes("megadepth", tmp_path, BAND), PosedConfig(side_px=SIDE), 1)
    figures = held_out.judge(lambda *_: matches_of(points0, points1), tmp_path / "samples")
    assert figures["MMA_3"] == pytest.approx(0.75)
    assert figures["MMA_1"] == pytest.approx(0.5)
    assert figures["correct"] == 3
    assert figures["AUC_10_deg"] == 0  # four matches give no pose
    assert (tmp_path / "samples.png").exists()


def test_pose_errors():
    rng = np.random.default_rng(0)
    scene = plane_scene()
    camera = Camera(scene.camera0.intrinsics, np.eye(3), np.zeros(3))
    other = Camera(scene.camera0.intrinsics, np.eye(3), np.array([1.0, 0, 0]))
    points = rng.uniform((-2, -2, 4), (2, 2, 9), (60, 3))
    points0, points1 = ((q := (points + c.translation) @ c.intrinsics.T)[:, :2] / q[:, 2:] for c in (camera, other))
    matches = matches_of(points0, points1)
    assert pose_error_deg(matches, relative_pose(camera, other)) < 0.05
    turned = dataclasses.replace(other, translation=np.array([0, 1.0, 0]))
    assert pose_error_deg(matches, relative_pose(camera, turned)) == pytest.approx(90, abs=0.1)
    assert pose_error_deg(matches_of(points0[:3], points1[:3]), relative_pose(camera, other)) == float("inf")


def data_of(layout, folder, network):
    (write_megadepth if layout == "megadepth" else write_imc2022)(plane_scene(), folder)
    training, held_out = kept_back(read_scenes(layout, folder, BAND))
    truth = DepthTruth(origin=0.0, depth_error=0.2) if layout == "megadepth" else PseudoLabels(network, 1e9)
    return PosedPairs(training, CONFIG.posed.side_px, truth), HeldOutPosed(
        held_out, CONFIG.posed, CONFIG.num_validation
    )


@pytest.mark.parametrize("layout", ["megadepth", "imc2022"])
def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path, layout):
    pairs, held_out = data_of(layout, tmp_path / "data", LoftrNetwork(TINY))
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    train(LoftrTraining(CONFIG, pairs, held_out), CONFIG.loop, whole, on_progress=lambda _: None)
    with pytest.raises(Interrupted):
        train(LoftrTraining(CONFIG, pairs, held_out), CONFIG.loop, parts, on_progress=lambda _: None, stop_after=2)
    train(LoftrTraining(CONFIG, pairs, held_out), CONFIG.loop, parts, resume=True, on_progress=lambda _: None)
    states = [torch.load(run.checkpoint, weights_only=True)["network"] for run in (whole, parts)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.parametrize("matching", ["dual_softmax", "optimal_transport"])
def test_padding_takes_no_part(tmp_path, matching):
    """What lies beyond the picture changes no loss."""
    pairs, held_out = data_of("megadepth", tmp_path, None)
    config = dataclasses.replace(CONFIG, network=dataclasses.replace(TINY, matching=matching))
    task = LoftrTraining(config, pairs, held_out)
    loss = task.loss(2, 0.5, generator_of(0, 0), Compute(CPU))
    loss.total.backward()
    assert loss.total.isfinite()
    assert loss.parts["coarse"] > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.network.parameters())
    batch = pairs.draw(2, 0.5, generator_of(0, 0), CPU)
    tokens = torch.rand(2, 2, 64, 16)
    log_p = [
        task.network.log_coarse_confidence(*torch.where(batch.valid0.flatten(1)[..., None], tokens, fill), *valid)
        for fill in (0.0, 5.0)
        for valid in [(batch.valid0, batch.valid1)]
    ]
    inside = batch.valid0.flatten(1)[0].nonzero()[:, 0]
    torch.testing.assert_close(log_p[0][:, inside][:, :, inside], log_p[1][:, inside][:, :, inside])


SMALL = [
    *("network.widths=[16,16,16]", "network.num_heads=2", "network.num_coarse_pairs=1", "posed.side_px=64"),
    *("num_validation=2", "loop.batch_size=2", "loop.precision=fp32", "loop.warm_up_steps=1"),
]


def run(*arguments):
    return CliRunner().invoke(train_commands, ["loftr", *map(str, arguments)])


def test_the_command_trains_and_resumes_in_each_layout(tmp_path):
    megadepth, imc = tmp_path / "megadepth", tmp_path / "imc"
    write_megadepth(plane_scene(), megadepth)
    write_imc2022(plane_scene(), imc)
    settings = [word for setting in SMALL for word in ("--set", setting)]
    first = [megadepth, "--layout", "megadepth", "--out", tmp_path / "deep"]
    done = run(*first, *settings, "--set", "loop.steps=2")
    assert done.exit_code == 0, done.output
    assert "best: " in done.output
    described = json.loads((tmp_path / "deep" / "config.json").read_text())["data"]
    assert described["layout"] == "megadepth"
    assert (described["scenes"], described["held_out"]) == ({"0001": 2}, {"0002": 2})
    resumed = run(*first, "--resume", "--set", "loop.steps=4")
    assert resumed.exit_code == 0, resumed.output
    assert "AUC_10_deg" in resumed.output
    assert "has learned from --layout megadepth" in run(*first[:1], *first[3:], "--resume").output

    exported = tmp_path / "mine.safetensors"
    done = CliRunner().invoke(weights, ["export", str(tmp_path / "deep"), "--to", str(exported)])
    assert done.exit_code == 0, done.output
    second = [imc, "--layout", "imc2022", "--out", tmp_path / "posed"]
    assert "give --fine-tune WEIGHTS" in run(*second).output
    tuned = run(*second, "--fine-tune", exported, *settings, "--set", "loop.steps=2")
    assert tuned.exit_code == 0, tuned.output
    assert "epipolar_3" in tuned.output
    resumed = run(*second, "--fine-tune", exported, "--resume", "--set", "loop.steps=4")
    assert resumed.exit_code == 0, resumed.output
    other = run(*second, "--fine-tune", tmp_path / "deep" / "best.safetensors", "--resume")
    assert "its labels are those of --fine-tune" in other.output
