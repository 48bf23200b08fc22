"""The protocols of the paper's tables once more, one pixel at a time, from their description alone:
nothing here is shared with `benchmarks/evaluation`. Truths are read, pictures are resized and
metrics are computed in other ways.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

RANGES = {
    "nyuv2": (1e-3, 10),
    "kitti": (1e-5, 80),
    "eth3d": (1e-5, math.inf),
    "scannet": (1e-3, 10),
    "diode": (0.6, 350),
}
EDGES = {"eth3d": 768, "diode": 640}


def read_depth(name: str, folder: Path, picture: str, truth: str) -> tuple[Any, Any, Any]:
    """The picture, its depth, and where it counts."""
    rgb = np.asarray(Image.open(folder / picture))
    low, high = RANGES[name]
    if name == "diode":
        depth = np.load(folder / truth)[:, :, 0].astype(np.float64)
        mask = np.load(str(folder / truth).replace("_depth", "_depth_mask")) != 0
        return rgb, depth, mask
    if name == "eth3d":
        depth = np.fromfile(folder / truth, np.float32).reshape(rgb.shape[:2]).astype(np.float64)
        return rgb, depth, (depth > low) & (depth < math.inf)
    depth = np.asarray(Image.open(folder / truth)) / (256 if name == "kitti" else 1000)
    if name == "kitti":
        top, left = depth.shape[0] - 352, (depth.shape[1] - 1216) // 2
        rgb, depth = (each[top : top + 352, left : left + 1216] for each in (rgb, depth))
    # The authors' arrays are float32: 0.001 m is not above 1e-3 there.
    mask = (depth.astype(np.float32) > np.float32(low)) & (depth < high)
    rows, columns = np.indices(depth.shape)
    if name == "nyuv2":
        mask &= (rows >= 45) & (rows < 471) & (columns >= 41) & (columns < 601)
    if name == "kitti":
        height, width = depth.shape
        mask &= (rows >= int(0.3324324 * height)) & (rows < int(0.91351351 * height))
        mask &= (columns >= int(0.0359477 * width)) & (columns < int(0.96405229 * width))
    return rgb, depth, mask


def predict_depth(name: str, rgb: Any, answer: Callable[[Any], Any]) -> Any:
    """The map at the size of the picture, resized by PyTorch where the set says so."""
    if name not in EDGES:
        return answer(rgb)
    height, width = rgb.shape[:2]
    factor = min(EDGES[name] / width, EDGES[name] / height)
    inner = _resize(rgb.transpose(2, 0, 1), (int(height * factor), int(width * factor)))
    fed = np.ascontiguousarray(inner.round().astype(np.uint8).transpose(1, 2, 0))
    return _resize(answer(fed)[None], (height, width))[0]


def depth_metrics(name: str, prediction: Any, depth: Any, mask: Any, *, disparity: bool) -> Any:
    """By pixels, in plain Python."""
    low, high = RANGES[name]
    scale, shift = _fit(name, prediction, depth, mask, disparity=disparity)
    pairs = []
    for guess, true in zip(prediction[mask].tolist(), depth[mask].tolist(), strict=True):
        aligned = scale * guess + shift
        if disparity:
            aligned = 1 / max(aligned, 1e-3)
        pairs.append((max(min(max(aligned, low), high), 1e-6), true))
    n = len(pairs)
    logs = [math.log(p) - math.log(t) for p, t in pairs]
    return {
        "abs_rel": sum(abs(p - t) / t for p, t in pairs) / n,
        "sq_rel": sum((p - t) ** 2 / t for p, t in pairs) / n,
        "rmse": math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n),
        "rmse_log": math.sqrt(sum(x * x for x in logs) / n),
        "log10": sum(abs(math.log10(p) - math.log10(t)) for p, t in pairs) / n,
        "delta1": sum(max(p / t, t / p) < 1.25 for p, t in pairs) / n,
        "delta2": sum(max(p / t, t / p) < 1.25**2 for p, t in pairs) / n,
        "delta3": sum(max(p / t, t / p) < 1.25**3 for p, t in pairs) / n,
        "i_rmse": math.sqrt(sum((1 / p - 1 / t) ** 2 for p, t in pairs) / n),
        "silog": 100 * math.sqrt(sum(x * x for x in logs) / n - (sum(logs) / n) ** 2),
    }


def _fit(name: str, prediction: Any, depth: Any, mask: Any, *, disparity: bool) -> Any:
    """NumPy's least squares; ETH3D's maps are shrunk by PyTorch, as the authors call it."""
    factor = min(1024 / edge for edge in depth.shape)
    if name == "eth3d" and factor < 1:
        shrink = torch.nn.Upsample(scale_factor=factor, mode="nearest")
        prediction, depth, mask = (
            shrink(torch.as_tensor(np.ascontiguousarray(each)).double()[None]).numpy()
            for each in (prediction, depth, mask)
        )
        mask = mask > 0
    if disparity:
        mask = mask & (prediction > 0)
    x, y = prediction[mask].astype(np.float64), depth[mask].astype(np.float64)
    design = np.stack([x, np.ones_like(x)], axis=1)
    return np.linalg.lstsq(design, 1 / y if disparity else y, rcond=None)[0]


def read_normals(path: Path) -> tuple[Any, Any]:
    """The vectors [H,W,3] of a file, and where they count."""
    if path.suffix == ".png":
        levels = np.asarray(Image.open(path)).astype(np.float64)
        return levels / 255 * 2 - 1, levels.sum(axis=-1) > 0
    if path.suffix == ".exr":
        import OpenEXR

        normals = OpenEXR.File(str(path)).channels()["RGB"].pixels.astype(np.float64)
        return normals, (normals**2).sum(axis=-1) > 0.25
    box = pickle.loads(path.read_bytes())
    image = np.asarray(Image.open(str(path).replace("_normal.pkl", "_img.png")))
    normals = np.zeros(image.shape)
    for row in range(box["normal"].shape[0]):
        for column in range(box["normal"].shape[1]):
            x, y, z = box["normal"][row, column]
            normals[box["min_y"] + row, box["min_x"] + column] = (-x, -y, z)
    return normals, np.abs(normals).sum(axis=-1) > 0


def angles(prediction: Any, truth: Any, mask: Any) -> list[float]:
    """Degrees, of each pixel that counts."""
    found = []
    for p, t in zip(prediction[mask].tolist(), truth[mask].tolist(), strict=True):
        dot = sum(a * b for a, b in zip(p, t, strict=True))
        lengths = math.sqrt(sum(a * a for a in p)) * math.sqrt(sum(b * b for b in t))
        cosine = dot / lengths if lengths > 0 else 0.0
        found.append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
    return found


def pooled(found: list[float]) -> dict[str, float]:
    """The numbers of a set from the angles of all its pixels."""
    n, order = len(found), sorted(found)
    below = {f"below_{limit:g}": limit for limit in (5, 7.5, 11.25, 22.5, 30)}
    return {
        "mean": sum(found) / n,
        "median": (order[(n - 1) // 2] + order[n // 2]) / 2,
        "rmse": math.sqrt(sum(x * x for x in found) / n),
        **{name: 100 * sum(x < limit for x in found) / n for name, limit in below.items()},
    }


def _resize(planes: Any, size: tuple[int, int]) -> Any:
    batch = torch.as_tensor(np.ascontiguousarray(planes)).float()[None]
    done = torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)
    return done[0].numpy()
