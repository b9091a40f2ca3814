"""A slanted plane of blobs, seen by two cameras with exact depth, and the same written as files."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tiepoint.geometry import Camera
from tiepoint.images import Image, write_image

OFFSET = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # COLMAP's corner frame from the index frame
SHARE = 0.4


@dataclass(frozen=True, eq=False)
class PlaneScene:
    """pixels0, pixels1: (h, w) uint8; depth0, depth1: (h, w); cameras in the index frame; H_1_from_0: (3, 3)."""

    pixels0: np.ndarray
    pixels1: np.ndarray
    depth0: np.ndarray
    depth1: np.ndarray
    camera0: Camera
    camera1: Camera
    H_1_from_0: np.ndarray


def plane_scene(size: tuple[int, int] = (160, 120)) -> PlaneScene:
    """size: (width, height) of both pictures."""
    K0 = np.array([[150, 0, size[0] / 2 - 0.5], [0, 150, size[1] / 2 - 0.5], [0, 0, 1.0]])
    K1 = np.array([[165, 0, size[0] / 2 - 0.5], [0, 165, size[1] / 2 - 0.5], [0, 0, 1.0]])
    R0, t0 = cv2.Rodrigues(np.array([0.3, -0.2, 0.1]))[0], np.array([0.5, 1.0, -2.0])  # the scene is not camera 0's
    R, t = cv2.Rodrigues(np.array([0.02, -0.06, 0.05]))[0], np.array([0.35, -0.1, 0.1])
    normal, distance = np.array([0.2, -0.1, 1.0]), 4.0  # in camera 0
    H = K1 @ (R + np.outer(t, normal) / distance) @ np.linalg.inv(K0)
    normal1 = R @ normal
    blobs = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8), np.uint8)
    pixels0 = cv2.resize(blobs, size, interpolation=cv2.INTER_CUBIC)
    return PlaneScene(
        pixels0=pixels0,
        pixels1=cv2.warpPerspective(pixels0, H, size),
        depth0=plane_depth(K0, normal, distance, size),
        depth1=plane_depth(K1, normal1, distance + float(normal1 @ t), size),
        camera0=Camera(K0, R0, t0),
        camera1=Camera(K1, R @ R0, R @ t0 + t),
        H_1_from_0=H / H[2, 2],
    )


def plane_depth(K: np.ndarray, normal: np.ndarray, distance: float, size: tuple[int, int]) -> np.ndarray:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K).T
    return (distance / (rays @ normal)).astype(np.float32)


def write_megadepth(scene: PlaneScene, folder: Path, names: tuple[str, ...] = ("0001_0.1_0.3", "0002_0.1_0.3")) -> None:
    """Every name a part of the index, of the same two photographs; a third of all photographs is not used."""
    import h5py

    for index, (pixels, depth) in enumerate([(scene.pixels0, scene.depth0), (scene.pixels1, scene.depth1)]):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        write_image(folder / "images" / f"{index}.png", Image(pixels))
        with h5py.File(folder / "images" / f"{index}.h5", "w") as file:
            file["depth"] = depth
    for name in names:
        write_index(scene, folder, name)


def write_index(scene: PlaneScene, folder: Path, name: str, **changes: object) -> Path:
    poses = []
    for camera in (scene.camera0, scene.camera1):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = camera.rotation, camera.translation
        poses.append(pose)
    pair_infos = np.empty(3, object)
    pair_infos[:] = [
        ((0, 2), np.float64(SHARE), np.zeros((2, 2))),
        ((2, 0), SHARE, []),
        ((0, 2), 0.9, []),  # shows next to nothing new
    ]
    arrays = {
        "image_paths": objects("images/0.png", None, "images/1.png"),
        "depth_paths": objects("images/0.h5", None, "images/1.h5"),
        "intrinsics": objects(OFFSET @ scene.camera0.intrinsics, None, OFFSET @ scene.camera1.intrinsics),
        "poses": objects(poses[0], None, poses[1]),
        "pair_infos": pair_infos,
        **changes,
    }
    file = folder / "scene_info" / f"{name}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
    return file


def objects(*values: object) -> np.ndarray:
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def write_imc2022(scene: PlaneScene, folder: Path, names: tuple[str, ...] = ("arch", "bridge")) -> None:
    def words(matrix: np.ndarray) -> str:
        return " ".join(repr(float(value)) for value in matrix.ravel())

    for name in names:
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        lines = ["image_id,camera_intrinsics,rotation_matrix,translation_vector"]
        for key, pixels, camera in (("b", scene.pixels0, scene.camera0), ("a", scene.pixels1, scene.camera1)):
            assert cv2.imwrite(str(images / f"{key}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
            numbers = (OFFSET @ camera.intrinsics, camera.rotation, camera.translation)
            lines.append(",".join([key, *map(words, numbers)]))
        (images.parent / "calibration.csv").write_text("\n".join(lines))
        pairs = f"pair,covisibility,fundamental_matrix\nb-a,{SHARE},{words(np.eye(3))}\na-b,0.02,\n"
        (images.parent / "pair_covisibility.csv").write_text(pairs)
