"""COLMAP's database and hloc's files hold what was matched, where COLMAP has it."""

import numpy as np
import PIL.Image
import pytest

from tiepoint.geometry import Matches, rotation_error_deg
from tiepoint.images import read_image
from tiepoint.sets.colmap import write_database
from tiepoint.sets.hloc import write_hloc
from tiepoint.sets.tie_points import TiePoints, tie_points

pycolmap = pytest.importorskip("pycolmap")

SIZE = (640, 480)
FOCAL = 700.0


def picture(path, size=SIZE, orientation=1):
    path.parent.mkdir(exist_ok=True, parents=True)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.new("L", size).save(path, exif=exif)


def points_of(keypoints, rows):
    rows = {pair: np.array(of_pair, np.uint32).reshape(-1, 2) for pair, of_pair in rows.items()}
    return TiePoints(
        keypoints={name: np.array(of_image, np.float32).reshape(-1, 2) for name, of_image in keypoints.items()},
        rows=rows,
        scores={pair: np.ones(len(of_pair), np.float32) for pair, of_pair in rows.items()},
    )


def opened(path):
    database = pycolmap.Database.open(path)
    return database, {image.name: image.image_id for image in database.read_all_images()}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_keypoints_lie_in_the_file_from_its_corner(tmp_path, orientation):
    picture(tmp_path / "a b.jpg", orientation=orientation)
    picture(tmp_path / "sub" / "c.jpg")
    stored = np.zeros((480, 640), np.uint8)
    stored[40, 100] = 255
    PIL.Image.fromarray(stored).save(tmp_path / "mark.png", exif=_exif(orientation))
    (y,), (x,) = np.nonzero(read_image(tmp_path / "mark.png").pixels)
    points = points_of({"a b.jpg": [(x, y)], "sub/c.jpg": [(7, 8)]}, {("a b.jpg", "sub/c.jpg"): [(0, 0)]})
    write_database(tmp_path / "database.db", tmp_path, points)
    database, ids = opened(tmp_path / "database.db")
    assert database.read_keypoints(ids["a b.jpg"])[:, :2].tolist() == [[100.5, 40.5]]
    assert database.read_keypoints(ids["sub/c.jpg"])[:, :2].tolist() == [[7.5, 8.5]]
    assert database.read_matches(ids["a b.jpg"], ids["sub/c.jpg"]).tolist() == [[0, 0]]


def _exif(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_a_reconstruction_grows_from_it(tmp_path):
    """Eight photographs of 300 points, from cameras on an arc: the mapper finds the poses again."""
    rng = np.random.default_rng(0)
    scene = rng.uniform((-2, -1.5, 4), (2, 1.5, 8), (300, 3))
    cameras = [_camera(angle) for angle in np.linspace(-20, 20, 8)]
    names = [f"{i}.png" for i in range(8)]
    for name in names:
        picture(tmp_path / "set" / name)
    seen = [_project(scene, *camera) for camera in cameras]
    found = {
        (names[i], names[j]): Matches(
            points0=seen[i], points1=seen[j], scores=np.ones(300, np.float32), size0=SIZE, size1=SIZE, method="sift"
        )
        for i in range(8)
        for j in range(i + 1, 8)
    }
    points = tie_points(found.items(), 0)
    done = []
    written = write_database(tmp_path / "database.db", tmp_path / "set", points, cameras="single", progress=done.append)
    assert set(written.held) == set(found)
    assert sum(done) == len(found)
    models = pycolmap.incremental_mapping(tmp_path / "database.db", tmp_path / "set", tmp_path / "models")
    placed = {image.name: image.cam_from_world() for image in models[0].images.values() if image.has_pose}
    assert placed.keys() == set(names)
    for name, (rotation, _) in zip(names, cameras, strict=True):
        relative = (placed[name] * placed[names[0]].inverse()).matrix()[:, :3]
        assert rotation_error_deg(relative, rotation @ cameras[0][0].T) < 0.05


def _camera(angle_deg):
    """(R, t) of a camera on an arc about (0, 0, 6), looking at it."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    return rotation, np.array([0, 0, 6.0]) - rotation @ (0, 0, 6.0)


def _project(scene, rotation, translation):
    x, y, z = (scene @ rotation.T + translation).T
    return np.stack([FOCAL * x / z + 319.5, FOCAL * y / z + 239.5], axis=1).astype(np.float32)


def test_what_colmap_does_not_take_is_left_out(tmp_path):
    for name, size in (("a.jpg", SIZE), ("b.jpg", SIZE), ("tall.jpg", SIZE[::-1])):
        picture(tmp_path / name, size)
    PIL.Image.new("L", SIZE).save(tmp_path / "c.webp")
    names = ["a.jpg", "b.jpg", "c.webp", "tall.jpg"]
    points = points_of({name: [(1, 1)] for name in names}, {("a.jpg", name): [(0, 0)] for name in names[1:]})
    alone = write_database(tmp_path / "database.db", tmp_path, points, cameras="per-image")
    assert alone.left_out == ("c.webp",)
    shared = write_database(tmp_path / "database.db", tmp_path, points, cameras="single")
    assert shared.left_out == ("c.webp", "tall.jpg")
    database, ids = opened(tmp_path / "database.db")
    assert ids.keys() == {"a.jpg", "b.jpg"}
    assert database.num_matched_image_pairs() == 1


def test_nothing_of_an_older_database_is_left(tmp_path, monkeypatch):
    path = tmp_path / "database.db"
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    points = points_of({"a.jpg": [(1, 1)], "b.jpg": [(1, 1)]}, {("a.jpg", "b.jpg"): [(0, 0)]})
    for stale in ("", "-wal", "-shm"):
        path.with_name(f"database.db{stale}").write_bytes(b"old")
    monkeypatch.setattr(pycolmap, "estimate_two_view_geometry", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_database(path, tmp_path, points)
    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    write_database(path, tmp_path, points)
    assert {file.name for file in tmp_path.glob("database*")} == {"database.db"}
    assert opened(path)[0].num_matched_image_pairs() == 1


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_hloc_gets_the_files_pixels_with_centres_at_integers(tmp_path, orientation):
    h5py = pytest.importorskip("h5py")
    picture(tmp_path / "a.jpg", orientation=orientation)
    picture(tmp_path / "sub" / "b.jpg")
    keypoints = {"a.jpg": [(1, 2), (3, 4), (5, 6)], "sub/b.jpg": [(7, 8), (9, 10)]}
    points = points_of(keypoints, {("a.jpg", "sub/b.jpg"): [(0, 1), (2, 0)]})
    write_hloc(tmp_path, tmp_path, points)
    first = {1: [1, 2], 3: [638, 477], 6: [2, 478]}[
        orientation
    ]  # 6: the file's top is the right of the upright picture
    with h5py.File(tmp_path / "features.h5") as features, h5py.File(tmp_path / "matches.h5") as matches:
        assert features["a.jpg"]["keypoints"][0].tolist() == first
        assert features["a.jpg"]["image_size"][()].tolist() == [640, 480]
        assert features["sub/b.jpg"]["keypoints"][()].tolist() == [[7, 8], [9, 10]]
        pair = matches["a.jpg"]["sub-b.jpg"]
        assert pair["matches0"][()].tolist() == [1, -1, 0]
        assert pair["matching_scores0"][()].tolist() == [1, 0, 1]
    assert (tmp_path / "pairs.txt").read_text() == "a.jpg sub/b.jpg\n"


def test_names_that_hloc_confuses_are_told(tmp_path):
    pytest.importorskip("h5py")
    points = points_of({"a/b.jpg": [(1, 1)], "a-b.jpg": [(1, 1)]}, {("a/b.jpg", "a-b.jpg"): [(0, 0)]})
    with pytest.raises(ValueError, match=r"hloc cannot tell a/b\.jpg from a-b\.jpg"):
        write_hloc(tmp_path, tmp_path, points)
    assert list(tmp_path.iterdir()) == []
