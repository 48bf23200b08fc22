"""Models of a rendered room as COLMAP and nerfstudio write them, by their documents, not by their
libraries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tiny.around import Seen, render_around, sparse_points


@dataclass(frozen=True, kw_only=True, eq=False)
class Room:
    """`views` of a room, the same in `fine` resolution; sparse `points` [N,3] and which views each
    was `seen` in, [N,V].
    """

    seed: int
    views: list[Seen]
    fine: list[Seen]
    points: np.ndarray
    seen: np.ndarray
    names: list[str] = field(default_factory=list)

    def answer(self, rgb: np.ndarray) -> tuple[int, np.ndarray]:
        """Which view a picture is of (it may be smaller), and its disparity but for an affine
        change.
        """
        small = [
            np.asarray(Image.fromarray(view.image).resize(rgb.shape[1::-1])).astype(int)
            for view in self.views
        ]
        number = int(np.argmin([np.abs(each - rgb).mean() for each in small]))
        inverse = Image.fromarray(1 / self.views[number].depth).resize(rgb.shape[1::-1])
        values = (np.asarray(inverse) - 0.1 * number) / (1 + number)
        return number, values.astype(np.float32)


def make_room(seed: int, count: int, height: int, width: int) -> Room:
    """A room from `count` places."""
    views = [*render_around(seed, count, height, width)]
    points, seen = sparse_points(views, 150)
    fine = [*render_around(seed, count, 3 * height, 3 * width)]
    return Room(seed=seed, views=views, fine=fine, points=points, seen=seen)


def write_pictures(room: Room, folder: Path) -> None:
    """00.png, 01.png and so on."""
    folder.mkdir(parents=True)
    for number, view in enumerate(room.views):
        Image.fromarray(view.image).save(folder / f"{number:02}.png")


def write_colmap(room: Room, folder: Path) -> Path:
    """`images/` and a text model in `sparse/0/`. Source: COLMAP's page "Output Format"."""
    write_pictures(room, folder / "images")
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    first = room.views[0]
    height, width = first.depth.shape
    (fx, _, cx), (_, fy, cy), _ = first.intrinsics.tolist()
    (sparse / "cameras.txt").write_text(f"1 PINHOLE {width} {height} {fx} {fy} {cx} {cy}\n")
    lines, tracks = [], [[] for _ in room.points]  # type: ignore[var-annotated]
    for number, view in enumerate(room.views):
        pose = view.camera_from_world
        words = [*quaternion(pose[:3, :3]), *pose[:3, 3]]
        lines.append(f"{number + 1} {' '.join(map(repr, map(float, words)))} 1 {number:02}.png")
        observed = []
        for index, point in enumerate(np.flatnonzero(room.seen[:, number])):
            own = pose[:3, :3] @ room.points[point] + pose[:3, 3]
            u, v, _ = view.intrinsics @ own / own[2]
            observed.append(f"{u} {v} {point + 1}")
            tracks[point].append(f"{number + 1} {index}")
        lines.append(" ".join(observed))
    (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    (sparse / "points3D.txt").write_text(
        "".join(
            f"{number + 1} {x} {y} {z} 9 9 9 0.5 {' '.join(tracks[number])}\n"
            for number, (x, y, z) in enumerate(room.points.tolist())
        )
    )
    return folder


def write_transforms(room: Room, folder: Path) -> Path:
    """As nerfstudio's `ns-process-data` leaves it. Source: its page "Data conventions"."""
    write_pictures(room, folder / "images")
    first = room.views[0]
    height, width = first.depth.shape
    (fx, _, cx), (_, fy, cy), _ = first.intrinsics.tolist()
    frames = []
    for number, view in enumerate(room.views):
        matrix = np.linalg.inv(view.camera_from_world)
        matrix[:, 1:3] *= -1  # OpenGL: y up, z backward
        path = f"images/{number:02}.png"
        frames.append({"file_path": path, "transform_matrix": matrix.tolist()})
    body = {"w": width, "h": height, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "k1": 0}
    body |= {"camera_model": "OPENCV", "ply_file_path": "sparse_pc.ply", "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(body))
    header = f"ply\nformat ascii 1.0\nelement vertex {len(room.points)}\n"
    header += "property float x\nproperty float y\nproperty float z\nend_header\n"
    rows = "".join(f"{x} {y} {z}\n" for x, y, z in room.points.tolist())
    (folder / "sparse_pc.ply").write_text(header + rows)
    return folder


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation [3,3]: the largest eigenvector of Bar-Itzhack's matrix."""
    r = rotation
    k = np.array(
        [
            [r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [0, r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [0, 0, r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
            [0, 0, 0, r[2, 2] - r[0, 0] - r[1, 1]],
        ]
    )
    k = np.triu(k) + np.triu(k, 1).T
    return np.asarray(np.linalg.eigh(k)[1][:, -1])
