"""Shapes out of affine maps, on rendered rooms with exact depth: `python -m benchmarks.geometry
[BUNDLE...]`.

With exact maps: how well known distances and normals give scale and shift back. With the maps that
bundles predict (depth or disparity, and normals; one bundle or several): AbsRel of the depth after
*scale only*, beside that of the fit of scale and shift to the truth, and how flat planes come out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics import fit_depth
from benchmarks.rows import parse_arguments, write_rows
from runtime import LotusEngine, LotusError
from runtime.alignment import Anchors, align, guess
from runtime.calibration import calibrate
from runtime.camera import Camera
from runtime.geometry import unproject
from runtime.refine import refine
from runtime.spaces import SPACES
from runtime.tasks import TASKS
from tiny.render import LOTUS_AXES, Rendered, render

_SIZE = 256
_OUTLIERS = 0.3
_ANCHORS = 200
_NEAREST, _FARTHEST = 0.1, 30.0
_LEAST_PLANE = 400  # pixels
_FIT = "fit of scale and shift to the truth"

Maps = dict[str, NDArray[np.float32]]


def main() -> int:
    """Measure, print, save. Status 1 when something cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE")
    parser.add_argument("--count", type=int, default=48, help="rooms: held-out seeds from 0 on")
    arguments = parse_arguments(parser)
    try:
        rows = [_exact(space, arguments.count) for space in SPACES]
        rows += _predicted(arguments.bundles, arguments.count)
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for row in rows:
        print(row["name"], {key: row[key] for key in row if key != "name"})
    print(write_rows("geometry", rows, dirty=arguments.dirty).name)
    return 0


def _camera(scene: Rendered) -> Camera:
    return Camera.from_matrix(scene.intrinsics, *scene.depth.shape)


def _exact(space: str, count: int) -> dict[str, Any]:
    """Errors of what is found in exact maps with a random affine change."""
    errors: dict[str, list[float]] = {
        name: [] for name in ("anchors", "shift", "fov", "fov_error", "searched_shift")
    }
    for seed in range(count):
        scene, random = render(seed, _SIZE, _SIZE, "room"), np.random.default_rng(seed)
        scale, shift = float(np.exp(random.uniform(-3, 3))), float(random.uniform(-3, 3))
        values = (SPACES[space].of_depth(scene.depth) - shift) / scale
        found = align(values, space, _anchors(scene, random))
        errors["anchors"].append(
            max(abs(found.scale / scale - 1), abs(found.shift - shift) / scale)
        )
        size = float(np.ptp(values))
        known = calibrate(values, space, scene.normals, _camera(scene))
        errors["shift"].append(abs(known.alignment.offset - shift / scale) / size)
        searched = calibrate(values, space, scene.normals, None)
        errors["fov"].append(abs(searched.camera.fov - _camera(scene).fov))
        errors["fov_error"].append(searched.fov_error or 0.0)
        errors["searched_shift"].append(abs(searched.alignment.offset - shift / scale) / size)
    return {
        "name": f"exact {space}",
        "rooms": count,
        **{
            name: {"median": float(np.median(each)), "largest": float(np.max(each))}
            for name, each in errors.items()
        },
    }


def _anchors(scene: Rendered, random: np.random.Generator) -> Anchors:
    """Known distances at random places, of which a share is off by a factor of 1.3 to 7."""
    u, v = random.uniform(0, _SIZE, (2, _ANCHORS))
    depth = scene.depth[v.astype(int), u.astype(int)].astype(np.float64)
    wrong = random.permutation(_ANCHORS)[: round(_OUTLIERS * _ANCHORS)]
    factors = np.exp(random.uniform(0.3, 2, len(wrong)) * random.choice([-1, 1], len(wrong)))
    depth[wrong] *= factors
    return Anchors(u=u, v=v, depth=depth)


def _predicted(bundles: list[Path], count: int) -> Iterator[dict[str, Any]]:
    """A row for each way to a depth, from each map that has a space."""
    maps: list[Maps] = [{} for _ in range(count)]
    for bundle in bundles:
        with LotusEngine(bundle) as engine:
            for seed in range(count):
                sys.stderr.write(f"\r{bundle.name} {seed + 1}/{count} ")
                prediction = engine(render(seed, _SIZE, _SIZE, "room").image)
                maps[seed] |= {task: each.values for task, each in prediction.items()}
    sys.stderr.write("\n" if bundles else "")
    for task in maps[0] if maps else ():
        if TASKS[task].space is not None:
            yield from _of_task(task, maps)


def _of_task(task: str, maps: list[Maps]) -> Iterator[dict[str, Any]]:
    space, ways = str(TASKS[task].space), dict[str, list[tuple[float, float]]]()
    fallbacks, fovs, turned = 0, [], []
    for seed, own in enumerate(maps):
        scene = render(seed, _SIZE, _SIZE, "room")
        camera, values = _camera(scene), own[task]
        # A map that says near where it is far: only a fit to the truth can turn it round.
        exact_values = SPACES[space].of_depth(scene.depth).ravel()
        turned.append(float(np.corrcoef(values.ravel(), exact_values)[0, 1]) <= 0)
        depths = {
            _FIT: _fitted(values, scene, space),
            "guess": guess(values, space).depth(values),
        }
        if "normal" in own:
            normals = own["normal"] * LOTUS_AXES
            found = calibrate(values, space, normals, camera).alignment
            fallbacks += found.fallback is not None
            depths["shift from normals"] = found.depth(values)
            depths["and refined"] = refine(found.depth(values), normals, camera)
            searched = calibrate(values, space, normals, None)
            fovs.append((abs(searched.camera.fov - camera.fov), searched.fov_error or 0.0))
            depths["field of view searched"] = searched.alignment.depth(values)
            exact = calibrate(values, space, scene.normals, camera).alignment
            depths["shift from exact normals"] = exact.depth(values)
        for way, depth in depths.items():
            scaled = depth if way == _FIT else _scaled(depth, scene)
            one = (_abs_rel(scaled, scene), _flatness(depth, scene))
            ways.setdefault(way, []).append(one)
    least = np.array(ways[_FIT])[:, 0]
    right = ~np.array(turned)
    for way, numbers in ways.items():
        errors, flat = np.array(numbers).T
        yield {
            "name": f"predicted {task}: {way}",
            "rooms": len(errors),
            "abs_rel": float(errors.mean()),
            "ratio": float(errors.mean() / least.mean()),
            "turned": int((~right).sum()),
            "ratio_others": float(errors[right].mean() / least[right].mean()),
            "median": float(np.median(errors)),
            "largest": float(errors.max()),
            "flatness": {str(q): float(np.nanpercentile(flat, q)) for q in (25, 50, 75)},
            **({"fallbacks": fallbacks} if way == "shift from normals" else {}),
            **(_fov_numbers(fovs) if way == "field of view searched" else {}),
        }


def _fov_numbers(fovs: list[tuple[float, float]]) -> dict[str, float]:
    errors, said = np.array(fovs).T
    return {
        "fov_off": float(np.median(errors)),
        "fov_error": float(np.median(said)),
        "covered": float((errors <= said).mean()),
    }


def _fitted(values: NDArray[np.float32], scene: Rendered, space: str) -> NDArray[np.floating[Any]]:
    counted = values.ravel().astype(np.float64), scene.depth.ravel().astype(np.float64)
    return fit_depth(*counted, space).reshape(values.shape)


def _scaled(depth: NDArray[np.floating[Any]], scene: Rendered) -> NDArray[np.floating[Any]]:
    """With the median ratio to the truth as its only scale; what is nowhere is far away."""
    depth = np.asarray(depth, np.float64)
    seen = np.isfinite(depth) & (depth > 0)
    return np.where(seen, depth * np.median(scene.depth[seen] / depth[seen]), _FARTHEST)


def _abs_rel(depth: NDArray[np.floating[Any]], scene: Rendered) -> float:
    truth = scene.depth.astype(np.float64)
    return float((np.abs(np.clip(depth, _NEAREST, _FARTHEST) - truth) / truth).mean())


def _flatness(depth: NDArray[np.floating[Any]], scene: Rendered) -> float:
    """The median over the room's planes of how far points are from their best plane: the root mean
    square over the plane's extent.
    """
    points = unproject(depth, _camera(scene)).reshape(-1, 3).astype(np.float64)
    truth = unproject(scene.depth, _camera(scene)).reshape(-1, 3).astype(np.float64)
    normals = scene.normals.reshape(-1, 3)
    away = (normals * truth).sum(-1)
    keys = np.rint(np.column_stack([normals * 50, away * 10])).astype(int)
    _, index = np.unique(keys, axis=0, return_inverse=True)
    index = index.ravel()
    answers = []
    for plane in np.flatnonzero(np.bincount(index) >= _LEAST_PLANE):
        own = points[(index == plane) & np.isfinite(points).all(1)]
        if len(own) < _LEAST_PLANE:
            continue
        spread = np.linalg.svd(own - own.mean(0), compute_uv=False) / np.sqrt(len(own))
        answers.append(spread[2] / (np.sqrt(12) * spread[0]))
    return float(np.median(answers)) if answers else float("nan")


if __name__ == "__main__":
    sys.exit(main())
