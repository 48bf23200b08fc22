"""Many depth maps as one surface: a truncated signed distance in voxels (Curless & Levoy 1996), by
Open3D. The only file that imports it.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.views.solve import Solved
from runtime.errors import GeometryError
from runtime.extras import require
from runtime.geometry import Mask

_LEAST_REACH = 4.0  # voxels on both sides of a surface
_SEEN = 0.5  # weight of a voxel from which on it counts: one view is enough, it was checked before
_EDGE, _BLOCKS = 8, 2048  # voxels of a block's edge; blocks to begin with, the grid grows


def load_open3d() -> Any:
    """The library. On Linux its wheel wants libusb, for cameras that we do not use, and servers
    have none: then that of the package `libusb_package` is taken.

    Raises: ModuleNotFoundError where it is not installed, GeometryError where it cannot be loaded.
    """
    require("open3d")
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError):
            try:
                ctypes.CDLL("libusb-1.0.so.0")
            except OSError:
                import libusb_package

                ctypes.CDLL(str(libusb_package.get_library_path()))  # stays; it is found by name
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise GeometryError(
            f"Open3D is installed and cannot be loaded: {error}. A library of the system is "
            "missing; on Debian and Ubuntu: `apt install libusb-1.0-0 libgl1 libegl1 libgomp1`"
        ) from error
    return open3d


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """Vertices float64 [N,3] in the world with unit `normals` and `colors` uint8 [N,3]; `faces`
    int32 [M,3], none of a cloud.
    """

    vertices: NDArray[np.float64]
    normals: NDArray[np.float64]
    colors: NDArray[np.uint8]
    faces: NDArray[np.int32]


def fuse(
    views: Iterable[tuple[Solved, Mask]], voxel: float, reach: float, island: int, faces: int | None
) -> tuple[Surface, Surface]:
    """A mesh and a cloud of the pixels of views that their masks [H,W] choose.

    `voxel` is the edge of a voxel and `reach` how far from a surface distances count, at least 4
    voxels, both in the unit of the model. Parts of fewer than `island` triangles are left out;
    `faces`: as few triangles as that. Raises: GeometryError where nothing is left;
    ModuleNotFoundError without Open3D.
    """
    open3d = load_open3d()
    number = open3d.core.float32
    grid = open3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight", "color"), (number,) * 3, ((1,), (1,), (3,)), voxel, _EDGE, _BLOCKS
    )
    for view, mask in views:
        _integrate(open3d, grid, view, mask, max(reach / voxel, _LEAST_REACH))
    cloud, mesh = grid.extract_point_cloud(_SEEN), grid.extract_triangle_mesh(_SEEN)
    surface = _whole(open3d, _sorted(mesh.vertex, mesh.triangle.indices.numpy()), island, faces)
    return surface, _sorted(cloud.point, np.zeros((0, 3), np.int32))


def _integrate(open3d: Any, grid: Any, view: Solved, mask: Mask, reach: float) -> None:
    tensor, image = open3d.core.Tensor, open3d.t.geometry.Image
    depth = np.where(mask, np.nan_to_num(view.depth), 0).astype(np.float32)
    pictures = image(tensor(depth[..., None])), image(tensor(view.rgb.astype(np.float32) / 255))
    # It cuts (u, v) off to find a pixel, so the centre of the first is at (0.5, 0.5) there too.
    where = tensor(view.camera.matrix), tensor(np.ascontiguousarray(view.camera_from_world))
    scale, farthest = 1.0, float(depth.max()) * 1.01
    blocks = grid.compute_unique_block_coordinates(pictures[0], *where, scale, farthest, reach)
    grid.integrate(blocks, *pictures, *where, scale, farthest, reach)


def _sorted(points: Any, faces: NDArray[np.int32]) -> Surface:
    """In an order of its own: threads find them in any."""
    vertices = points.positions.numpy().astype(np.float64)
    colors = np.rint(np.clip(points.colors.numpy(), 0, 1) * 255).astype(np.uint8)
    order = np.lexsort((*colors.T, *vertices.T))
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    faces = place[faces].reshape(-1, 3)
    first = faces.argmin(1)[:, None] if len(faces) else np.zeros((0, 1), np.intp)
    faces = np.take_along_axis(faces, (first + np.arange(3)) % 3, axis=1)
    return Surface(
        vertices=vertices[order],
        normals=points.normals.numpy().astype(np.float64)[order],
        colors=colors[order],
        faces=faces[np.lexsort(faces.T[::-1])],
    )


def _whole(open3d: Any, found: Surface, island: int, faces: int | None) -> Surface:
    """A mesh without small parts, and simplified. Raises: GeometryError where nothing is left."""
    array = open3d.utility.Vector3dVector
    mesh = open3d.geometry.TriangleMesh(
        array(found.vertices), open3d.utility.Vector3iVector(found.faces)
    )
    mesh.vertex_colors = array(found.colors / 255)
    if island > 1 and len(found.faces):
        part, sizes, _ = mesh.cluster_connected_triangles()
        mesh.remove_triangles_by_mask(np.asarray(sizes)[np.asarray(part)] < island)
    if faces is not None and faces < len(mesh.triangles):
        mesh = mesh.simplify_quadric_decimation(faces)
    mesh.remove_unreferenced_vertices()
    if not len(mesh.triangles):
        raise GeometryError(
            "no surface is left for a mesh: the views confirm too little of each other. --agree 1 "
            "takes what one view says, --tolerance allows more, --island keeps smaller parts"
        )
    mesh.compute_vertex_normals()
    return Surface(
        vertices=np.asarray(mesh.vertices),
        normals=np.asarray(mesh.vertex_normals),
        colors=np.rint(np.clip(np.asarray(mesh.vertex_colors), 0, 1) * 255).astype(np.uint8),
        faces=np.asarray(mesh.triangles),
    )


def nearest(points: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """The distance [N] from each of `points` [N,3] to the nearest of `others` [M,3]."""
    open3d = load_open3d()
    clouds = [
        open3d.geometry.PointCloud(open3d.utility.Vector3dVector(np.asarray(each, np.float64)))
        for each in (points, others)
    ]
    return np.asarray(clouds[0].compute_point_cloud_distance(clouds[1]))
