"""Small data sets in the layouts of the published ones, made of rendered scenes: six pictures of
odd sizes each, with pixels that do not count.
"""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tiny.render import LOTUS_AXES, Rendered, render

COUNT = 6


def write_sets(root: Path) -> Path:
    """All sets as folders under `root`."""
    for write in (_nyuv2, _kitti, _eth3d, _scannet, _diode, _normals):
        write(root)
    return root


def pack(folder: Path) -> Path:
    """The tar of a folder, beside it; members begin with "./"."""
    path = folder.with_name(f"{folder.name}.tar")
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")
    return path


def _scenes(height: int, width: int, enlarge: int = 1) -> Iterator[tuple[int, Rendered]]:
    """Six scenes, each of its own size, or each pixel of a smaller one `enlarge` times."""
    for number in range(COUNT):
        scene = render(7000 + number, height + number // 2, width + number // 2)
        if enlarge > 1:
            bigger: Callable[[np.ndarray], np.ndarray] = lambda array: array.repeat(  # noqa: E731
                enlarge, 0
            ).repeat(enlarge, 1)
            scene = Rendered(
                image=bigger(scene.image),
                depth=bigger(scene.depth),
                normals=bigger(scene.normals),
                sky=bigger(scene.sky),
                intrinsics=scene.intrinsics,
            )
        yield number, scene


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _sparse(scene: Rendered, one_in: int, seed: int) -> np.ndarray:
    """Depth at some random pixels, 0 elsewhere and in the sky."""
    kept = np.random.default_rng(seed).integers(0, one_in, scene.depth.shape) == 0
    return np.where(kept & ~scene.sky, scene.depth, 0)


def _nyuv2(root: Path) -> None:
    place = root / "nyuv2" / "nyu_labeled_extracted"
    lines = []
    for number, scene in _scenes(101, 137):
        room = f"test/kitchen_{number // 3:04d}"
        depth = np.rint(_sparse(scene, 2, number) * 1000).clip(0, 65535).astype(np.uint16)
        _save(place / room / f"rgb_{number:04d}.png", scene.image)
        _save(place / room / f"depth_{number:04d}.png", depth)
        _save(place / room / f"filled_{number:04d}.png", np.full_like(depth, 1234))
        names = (f"{room}/{kind}_{number:04d}.png" for kind in ("rgb", "depth", "filled"))
        lines.append(" ".join(names))
    _save(place / "train" / "bath_0001" / "rgb_0900.png", scene.image)
    _save(place / "train" / "bath_0001" / "depth_0900.png", depth)
    (place.parent / "filename_list_test.txt").write_text("\n".join(reversed(lines)) + "\n")


def _kitti(root: Path) -> None:
    place = root / "kitti" / "kitti_eigen_split_test"
    lines = []
    for number, scene in _scenes(93, 309, enlarge=4):
        drive = f"2011_09_26_drive_{number:04d}_sync"
        rgb = f"2011_09_26/{drive}/image_02/data/{number:010d}.png"
        truth = f"{drive}/proj_depth/groundtruth/image_02/{number:010d}.png"
        depth = np.rint(_sparse(scene, 60, number) * 256).clip(0, 65535).astype(np.uint16)
        _save(place / rgb, scene.image)
        _save(place / truth, depth)
        lines.append(f"{rgb} {truth} 721.5377")
    lines.insert(2, "2011_09_26/2011_09_26_drive_0999_sync/image_02/data/7.png None 721.5377")
    (root / "kitti" / "eigen_test_files_with_gt.txt").write_text("\n".join(lines))


def _eth3d(root: Path) -> None:
    place = root / "eth3d" / "eth3d"
    for number, scene in _scenes(86, 131, enlarge=8):
        rgb = place / f"rgb/office/images/dslr_images/DSC_{number:04d}.JPG"
        truth = place / "depth/office_dslr_depth/office/ground_truth_depth/dslr_images" / rgb.name
        _save(rgb, scene.image)
        truth.parent.mkdir(parents=True, exist_ok=True)
        depth = _sparse(scene, 50, number)
        truth.write_bytes(np.where(depth > 0, depth, np.inf).astype("<f4").tobytes())


def _scannet(root: Path) -> None:
    place = root / "scannet" / "scannet_val_sampled_800_1"
    for number, scene in _scenes(67, 85):
        depth = np.rint(_sparse(scene, 3, number) * 1000).clip(0, 65535).astype(np.uint16)
        _save(place / f"scene{number:04d}_00/color/{number:06d}.jpg", scene.image)
        _save(place / f"scene{number:04d}_00/depth/{number:06d}.png", depth)


def _diode(root: Path) -> None:
    place = root / "diode" / "diode_val"
    for number, scene in _scenes(75, 101):
        stem = place / f"indoors/scene_00021/scan_00189/00021_00189_indoors_{number:03d}_010"
        _save(stem.with_suffix(".png"), scene.image)
        mask = _sparse(scene, 3, number) > 0
        np.save(f"{stem}_depth.npy", np.where(mask, scene.depth, 0)[..., None].astype(np.float32))
        np.save(f"{stem}_depth_mask.npy", mask.astype(np.float64))


def _normals(root: Path) -> None:
    place = root / "dsine_eval"
    for number, scene in _scenes(53, 77):
        normals = scene.normals * LOTUS_AXES
        kept = np.random.default_rng(number).integers(0, 3, scene.sky.shape) > 0
        normals[~kept | scene.sky] = 0
        levels = np.rint((normals + 1) * 127.5).clip(0, 255).astype(np.uint8)
        levels[(normals == 0).all(axis=-1)] = 0
        for stem in (f"nyuv2/test/{number:06d}", f"scannet/scene0532_00/{number:06d}"):
            _with_camera(place / f"{stem}_img.png", scene)
            _save(place / f"{stem}_normal.png", levels)
        for stem in (f"ibims/ibims/room_{number:02d}", f"sintel/alley_1/frame_{number:04d}"):
            _with_camera(place / f"{stem}_img.png", scene)
            _write_exr(place / f"{stem}_normal.exr", normals.astype(np.float32) * 0.9)
        stem = f"oasis/val/{number}_DT"
        _with_camera(place / f"{stem}_img.png", scene)
        part = normals[5:41, 7:60] * np.array([-1, -1, 1])
        box = {"min_y": 5, "max_y": 40, "min_x": 7, "max_x": 59, "normal": part}
        (place / f"{stem}_normal.pkl").write_bytes(pickle.dumps(box))


def _with_camera(path: Path, scene: Rendered) -> None:
    _save(path, scene.image)
    np.save(str(path).replace("_img.png", "_intrins.npy"), scene.intrinsics)


def _write_exr(path: Path, normals: np.ndarray) -> None:
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    planes = {band: np.ascontiguousarray(normals[..., i]) for i, band in enumerate("RGB")}
    OpenEXR.File(header, planes).write(str(path))
