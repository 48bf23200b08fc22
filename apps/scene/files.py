"""The files of a scene, as bytes. `trimesh` and `OpenEXR` write what is theirs.

Meshes and clouds are in a world with y up: x right, z towards the viewer, as glTF wants it. Where a
floor was found it is at y = 0; where nothing tells what is level, the world is the camera's frame
turned over.
Maps (.npz, .exr, .png) stay in the camera's frame: x right, y down, z forward.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.encoding import png
from runtime.exr import encode_exr
from runtime.marker import MARKER
from runtime.mesh import Mesh, build_mesh
from runtime.prediction import TaskMap
from runtime.reconstruct import Points, Reconstruction

GLTF_AXES = np.diag([1.0, -1.0, -1.0])
_LARGEST_TEXTURE = 4096  # pixels: what every viewer takes
_AXES = ("XR", "YG", "ZB")  # channels of x, y and z
_NAMES = ("mesh.glb", "mesh.ply", "cloud.ply", "maps.npz", "depth.exr", "normal.exr")
FILES = (*_NAMES, "depth-16bit.png", "views.png", "camera.json")
"""What a scene's folder holds; `camera.json` says whose the others are."""


def world_from_camera(found: Reconstruction) -> NDArray[np.float64]:
    """[4,4]: from the camera's frame to the world of meshes and clouds."""
    matrix = np.eye(4)
    matrix[:3, :3] = GLTF_AXES @ found.upright
    if found.floor is not None:
        matrix[1, 3] = found.floor.distance
    return matrix


def to_world(found: Reconstruction, points: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Points [N,3] of the camera's frame in the world."""
    matrix = world_from_camera(found)
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3], np.float32)


def encode_meshes(
    found: Reconstruction, rgb: NDArray[np.uint8], stride: int, island: int, faces: int | None
) -> tuple[dict[str, bytes], Mesh]:
    """GLB with the picture as texture, and PLY with a colour at each vertex; the mesh itself.

    `faces`: as few triangles as that, by quadric edge collapse.
    """
    import trimesh

    mesh = build_mesh(found, stride, island)
    height, width = found.depth.shape
    vertices, triangles = mesh.vertices, mesh.faces
    if faces is not None and faces < len(triangles):
        plain = trimesh.Trimesh(vertices, triangles, process=False)
        plain = plain.simplify_quadric_decimation(face_count=faces)
        vertices, triangles = np.asarray(plain.vertices), np.asarray(plain.faces)
    seen = found.camera.project(vertices)
    columns, rows = (
        np.clip(seen[:, axis].astype(np.intp), 0, size - 1)
        for axis, size in ((0, width), (1, height))
    )
    turn = world_from_camera(found)[:3, :3]
    placed = {
        "vertices": to_world(found, vertices),
        "faces": triangles,
        "vertex_normals": np.asarray(
            np.nan_to_num(found.normals[rows, columns]) @ turn.T, np.float32
        ),
        "process": False,
    }
    # Its v runs upwards.
    uv = np.stack([seen[:, 0] / width, 1 - seen[:, 1] / height], axis=1)
    material = trimesh.visual.material.PBRMaterial(
        name="picture",
        baseColorTexture=_texture(rgb),
        metallicFactor=0.0,
        roughnessFactor=1.0,
        doubleSided=True,
    )
    texture = trimesh.visual.TextureVisuals(uv=uv, material=material)
    textured = trimesh.Trimesh(**placed, visual=texture)
    colored = trimesh.Trimesh(**placed, vertex_colors=rgb[rows, columns])
    scene = trimesh.Scene({"picture": textured}, metadata={"unit": found.alignment.unit})
    contents = {
        "mesh.glb": bytes(scene.export(file_type="glb", include_normals=True)),
        "mesh.ply": bytes(colored.export(file_type="ply", vertex_normal=True)),
    }
    return contents, mesh


def _texture(rgb: NDArray[np.uint8]) -> Image.Image:
    """The picture as a JPEG that viewers take."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((_LARGEST_TEXTURE, _LARGEST_TEXTURE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=92)
    return Image.open(file)


def confidence_of(task_map: TaskMap) -> NDArray[np.float32] | None:
    """1 where the answers of an ensemble agree, 0 where they lie as far apart as their value;
    float32 [H,W]. None without an ensemble.
    """
    if task_map.uncertainty is None:
        return None
    return np.asarray(np.clip(1 - task_map.uncertainty, 0, 1), np.float32)


def encode_cloud(
    found: Reconstruction,
    cloud: Points,
    rgb: NDArray[np.uint8],
    confidence: NDArray[np.float32] | None = None,
) -> bytes:
    """A binary PLY: position, normal and colour of each point, and its confidence if there is one:
    [H,W] in [0,1].
    """
    turn = world_from_camera(found)[:3, :3]
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    fields += [(name, "u1") for name in ("red", "green", "blue")]
    parts = [
        to_world(found, cloud.positions),
        cloud.normals @ turn.T.astype(np.float32),
        rgb[cloud.rows, cloud.columns],
    ]
    if confidence is not None:
        fields.append(("confidence", "<f4"))
        parts.append(confidence[cloud.rows, cloud.columns, None])
    table = np.empty(len(cloud.positions), fields)
    for (name, _), column in zip(
        fields, np.concatenate(parts, axis=1, dtype=np.float32).T, strict=True
    ):
        table[name] = column
    properties = "\n".join(
        f"property {'float' if kind == '<f4' else 'uchar'} {name}" for name, kind in fields
    )
    header = (
        f"ply\nformat binary_little_endian 1.0\ncomment lotus-edge; {_unit_in_words(found)}; y up\n"
        f"element vertex {len(table)}\n{properties}\nend_header\n"
    )
    return header.encode() + table.tobytes()


def encode_maps(
    found: Reconstruction, confidence: NDArray[np.float32] | None = None
) -> dict[str, bytes]:
    """maps.npz, the EXRs and the 16-bit PNG. `confidence` [H,W] is stored where there is one."""
    depth = np.where(found.edges, np.nan, found.depth).astype(np.float32)
    archive = io.BytesIO()
    alignment = found.alignment
    more: dict[str, Any] = {} if confidence is None else {"confidence": confidence}
    np.savez_compressed(
        archive,
        depth=found.depth,
        normal=found.normals,
        mask=np.isfinite(depth),
        sky=found.sky,
        intrinsics=found.camera.matrix,
        world_from_camera=world_from_camera(found),
        scale=alignment.scale,
        shift=alignment.shift,
        unit=alignment.unit,
        method=alignment.method,
        task=found.task,
        size=np.array(depth.shape),
        **more,
    )
    words = f"{_unit_in_words(found)}; camera frame: x right, y down, z forward"
    return {
        "maps.npz": archive.getvalue(),
        # Twice each: OpenCV and many viewers read only luminance or colours.
        "depth.exr": encode_exr(
            dict.fromkeys("ZY", found.depth),
            {"comments": f"lotus-edge; depth along z; NaN: not known; {words}"},
        ),
        "normal.exr": encode_exr(
            {name: found.normals[..., axis] for axis in range(3) for name in _AXES[axis]},
            {"comments": f"lotus-edge; unit normals towards the camera; {words}"},
        ),
        "depth-16bit.png": _millimetres(found),
    }


def _millimetres(found: Reconstruction) -> bytes:
    """16 bits: millimetres, 0 where depth is not known, 65535 for that and beyond. Where nothing is
    metric, thousandths of the median depth.
    """
    depth = np.nan_to_num(found.depth.astype(np.float64), nan=0)
    what = (
        "millimetres" if found.alignment.unit == "m" else f"thousandths of: {found.alignment.unit}"
    )
    texts = {
        MARKER[0]: MARKER[1],
        "Lotus-Unit": f"{what}; 0: not known; 65535: that or more",
    }
    known = depth > 0
    levels = np.where(known, np.clip(np.rint(depth * 1000), 1, 65535), 0).astype(np.uint16)
    return png(levels, texts)


def encode_camera(found: Reconstruction, picture: str, counts: dict[str, int]) -> bytes:
    """camera.json: all that was found out, and how. `picture` is what the picture is known by."""
    camera, alignment, floor = found.camera, found.alignment, found.floor
    height, width = found.depth.shape
    body = {
        "generator": "lotus-edge scene",
        "picture": picture,
        "height": height,
        "width": width,
        "matrix": camera.matrix.tolist(),
        "field_of_view": {
            "degrees": camera.fov,
            "across": "longer edge",
            "source": camera.source,
            "uncertainty": found.fov_error,
        },
        "depth": {
            "task": found.task,
            "unit": alignment.unit,
            "method": alignment.method,
            "fallback": alignment.fallback,
            "space": alignment.space,
            "scale": alignment.scale,
            "shift": alignment.shift,
            "residual": None if np.isnan(alignment.residual) else alignment.residual,
            "normals_turned": None if np.isnan(alignment.turned) else alignment.turned,
            "inliers": alignment.inliers,
            "candidates": alignment.candidates,
            "refined": found.refined,
            "normals_mirrored": found.mirrored,
        },
        "floor": None
        if floor is None
        else {"normal": floor.normal.tolist(), "distance": floor.distance, "pixels": floor.pixels},
        "up": None if found.up is None else found.up.tolist(),
        "world_from_camera": world_from_camera(found).tolist(),
        "counts": counts,
    }
    return (json.dumps(body, indent=2, allow_nan=False) + "\n").encode()


def _unit_in_words(found: Reconstruction) -> str:
    return f"unit: {found.alignment.unit} ({found.alignment.method})"
