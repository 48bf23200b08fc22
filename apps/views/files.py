"""The files of a scene of several views, as bytes. `trimesh` writes the meshes.

All of it stays in the world of the model, so that it lies on the model's sparse points.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.scene.views import two_sides
from apps.views.fuse import Surface
from apps.views.model import Floats
from apps.views.solve import Solved
from runtime.geometry import Mask

FILES = ("mesh.ply", "mesh.glb", "cloud.ply", "views.png", "report.json")
"""What the folder holds beside `depth/` and `maps/`; `report.json` says whose the others are."""
_ABOVE = 25.0  # degrees from which the picture looks down into the scene, beside its own 12
_FOV = 35.0  # degrees: from far, with little perspective


def encode_surface(mesh: Surface, cloud: Surface, up: Floats) -> dict[str, bytes]:
    """mesh.ply, mesh.glb and cloud.ply. The node in the GLB has a matrix that turns `up` [3] into
    glTF's y; its vertices are in the world of the model as those of the PLYs.
    """
    import trimesh

    whole = trimesh.Trimesh(
        np.asarray(mesh.vertices, np.float32),
        mesh.faces,
        vertex_normals=np.asarray(mesh.normals, np.float32),
        vertex_colors=mesh.colors,
        process=False,
    )
    scene = trimesh.Scene()
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag([1.0, -1.0, -1.0]) @ _upright(up)
    scene.add_geometry(whole, node_name="views", geom_name="views", transform=matrix)
    return {
        "mesh.ply": bytes(whole.export(file_type="ply", vertex_normal=True)),
        "mesh.glb": bytes(scene.export(file_type="glb", include_normals=True)),
        "cloud.ply": _cloud(cloud),
    }


def _cloud(cloud: Surface) -> bytes:
    """A binary PLY: position, normal and colour of each point."""
    floats, bytes_ = ("x", "y", "z", "nx", "ny", "nz"), ("red", "green", "blue")
    table = np.empty(
        len(cloud.vertices),
        [*((name, "<f4") for name in floats), *((name, "u1") for name in bytes_)],
    )
    columns = np.concatenate([cloud.vertices, cloud.normals, cloud.colors], axis=1).T
    for name, column in zip((*floats, *bytes_), columns, strict=True):
        table[name] = column
    properties = "".join(
        f"property {kind} {name}\n"
        for kind, names in (("float", floats), ("uchar", bytes_))
        for name in names
    )
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment lotus-edge; the world of the model\n"
        f"element vertex {len(table)}\n{properties}end_header\n"
    )
    return header.encode() + table.tobytes()


def encode_depth(view: Solved, confirmed: Mask, unit: str) -> bytes:
    """A view's depth as `.npz`: `mask` are the pixels that other views confirm."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        depth=view.depth,
        mask=confirmed,
        intrinsics=view.camera.matrix,
        world_from_camera=np.linalg.inv(view.camera_from_world),
        scale=view.alignment.scale,
        shift=view.alignment.shift,
        unit=unit,
        method=view.alignment.method,
        name=view.view.name,
        size=np.array(view.depth.shape),
    )
    return file.getvalue()


def encode_picture(mesh: Surface, up: Floats, forward: Floats, voxel: float) -> bytes:
    """What came out, from two sides and from above; of walls only the side that was seen."""
    turn = _upright(up)
    ahead = turn @ forward
    around = np.arctan2(ahead[0], ahead[2])
    c, s = np.cos(-around), np.sin(-around)
    d, e = np.cos(np.radians(_ABOVE)), np.sin(np.radians(_ABOVE))
    turn = (
        np.array([[1, 0, 0], [0, d, -e], [0, e, d]])
        @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        @ turn
    )
    points = mesh.vertices @ turn.T
    low, high = np.percentile(points, [2, 98], axis=0)
    away = float(np.linalg.norm(high - low)) * 1.1
    points = points - (low + high) / 2 + [0, 0, away]
    sheet = two_sides(points, mesh.colors, voxel / away, _FOV, normals=mesh.normals @ turn.T)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, format="PNG")
    return file.getvalue()


def _upright(up: NDArray[Any]) -> Floats:
    """A rotation [3,3] that brings the direction `up` [3] to (0, -1, 0), the shortest way."""
    target = np.array([0.0, -1.0, 0.0])
    up = up / max(float(np.linalg.norm(up)), 1e-12)
    axis, cosine = np.cross(up, target), float(up @ target)
    if cosine < -0.9999:
        return np.diag([1.0, -1.0, -1.0])
    x, y, z = axis
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + skew + skew @ skew / (1 + cosine))
