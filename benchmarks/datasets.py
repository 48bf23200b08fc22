"""Images with ground truth: the project's rendered scenes, or a folder of the user's own.

Such a folder holds `dataset.yaml`:

    kind: depth                   # or normal
    image: rgb/{name}.jpg         # every file that matches is an image; {name} is its name
    truth: depth/{name}.png       # .npy or PNG, see below
    mask: mask/{name}.png         # optional; what is not zero counts
    scale: 0.001                  # metres in one unit of `truth` (depth)
    valid: [0.1, 80]              # metres that count (depth)

Depth is an array [H,W] or a 16-bit PNG. Normals are an array [H,W,3] in Lotus's axes, or an 8-bit
PNG with rgb = (n + 1) / 2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.ground_truth import GROUND_TRUTHS
from runtime.errors import LotusError
from runtime.image import load
from runtime.tasks import Task

_CONSTANT_SCENES = 256


class DatasetError(LotusError):
    """A data set cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image with its truth: depth [H,W] in metres, or normals [H,W,3] in Lotus's axes; `mask`
    [H,W]: what counts.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Named samples of one kind (a key of GROUND_TRUTHS), read one at a time; a name's first part
    is its group.

    `nearest` and `farthest` bound the depth that counts, in metres. `read` raises DatasetError or
    ImageError. `constant` gives a task's best map [H,W] or [H,W,3] that does not look at the image.
    """

    name: str
    kind: str
    nearest: float
    farthest: float
    names: list[str]
    read: Callable[[str], Sample]
    constant: Callable[[Task], NDArray[np.float32]] | None = None


def synthetic(kind: str) -> Dataset:
    """The 200 held-out rendered scenes at 256x256, half of them in a style that training never
    sees, with ground truth of a kind.

    The sky does not count: a sensor would measure no depth there.
    """
    from tiny.render import render
    from tiny.scene import HELD_OUT_SEEDS, STYLES

    @functools.cache
    def read(name: str) -> Sample:
        group, seed = name.split("/")
        scene = render(int(seed), 256, 256, styles[group])
        truth = GROUND_TRUTHS[kind].from_scene(scene)
        return Sample(image=scene.image, truth=truth, mask=~scene.sky)

    styles = {"in-style": "mixed", "unseen-style": "unseen"}
    half = len(HELD_OUT_SEEDS) // 2
    names = [
        f"{'in-style' if number < half else 'unseen-style'}/{seed:03d}"
        for number, seed in enumerate(HELD_OUT_SEEDS)
    ]
    return Dataset(
        name="synthetic",
        kind=kind,
        nearest=0.1,
        farthest=STYLES["mixed"].far,
        names=names,
        read=read,
        constant=_mean_training_map,
    )


def _mean_training_map(task: Task) -> NDArray[np.float32]:
    """The mean of the maps that the tiny Lotus learns, over the first training scenes, as values
    [H,W] or [H,W,C] of the task.
    """
    from tiny.data import TASKS
    from tiny.render import render
    from tiny.scene import TRAIN_FIRST_SEED

    scenes = (render(TRAIN_FIRST_SEED + index, 256, 256) for index in range(_CONSTANT_SCENES))
    mean = np.mean(
        [TASKS[task.name](scene.depth, scene.normals) for scene in scenes],
        axis=0,
        dtype=np.float32,
    )
    # The maps are in [-1, 1]; those of a scalar task have three equal channels.
    stretched = mean * np.float32((task.high - task.low) / 2) + np.float32(
        (task.high + task.low) / 2
    )
    return task.decode(stretched.transpose(2, 0, 1)[: task.channels])


def open_folder(folder: Path) -> Dataset:
    """The data set that `folder/dataset.yaml` describes. Raises: DatasetError."""
    settings = _settings(folder)
    kind, scale, (nearest, farthest) = settings["kind"], settings["scale"], settings["valid"]
    before, after = settings["image"].split("{name}")
    names = [
        path.relative_to(folder).as_posix().removeprefix(before).removesuffix(after)
        for path in sorted(folder.glob(f"{before}*{after}"))
    ]
    if not names:
        raise DatasetError(f"{folder}: no file matches {settings['image']!r}")

    def read(name: str) -> Sample:
        paths = {
            part: folder / settings[part].replace("{name}", name)
            for part in ("image", "truth", "mask")
            if part in settings
        }
        truth = _read_map(paths["truth"], kind, scale)
        mask = _open(paths["mask"]) != 0 if "mask" in paths else np.ones(truth.shape[:2], bool)
        if mask.shape != truth.shape[:2]:
            raise DatasetError(
                f"{paths['mask']} is {list(mask.shape)}, its truth {list(truth.shape[:2])}"
            )
        return Sample(image=load(paths["image"]), truth=truth, mask=mask)

    return Dataset(
        name=folder.resolve().name,
        kind=kind,
        nearest=nearest,
        farthest=farthest,
        names=names,
        read=read,
    )


def _settings(folder: Path) -> dict[str, Any]:
    import yaml

    path = folder / "dataset.yaml"
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings = {
            key: str(given[key])
            for key in ("kind", "image", "truth", "mask")
            if key in given or key != "mask"
        }
        settings["scale"] = float(given.get("scale", 1))
        settings["valid"] = tuple(map(float, given.get("valid", (1e-3, 1e9))))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"cannot use {path}: {error!r}. benchmarks/datasets.py says what it must hold."
        ) from error
    patterns = [settings[key] for key in ("image", "truth", "mask") if key in settings]
    if settings["kind"] not in GROUND_TRUTHS or any(
        pattern.count("{name}") != 1 for pattern in patterns
    ):
        raise DatasetError(
            f"{path}: `kind` is {' or '.join(GROUND_TRUTHS)}, and each pattern holds {{name}} once"
        )
    if (
        len(settings["valid"]) != 2
        or not 0 < settings["valid"][0] < settings["valid"][1]
        or not settings["scale"] > 0
    ):
        raise DatasetError(f"{path}: `valid` is [nearest, farthest] in metres, `scale` positive")
    return settings


def _read_map(path: Path, kind: str, scale: float) -> NDArray[np.float32]:
    raw = _open(path)
    ground_truth = GROUND_TRUTHS[kind]
    if raw.ndim < 2 or raw.shape[2:] != ground_truth.pixel:
        raise DatasetError(f"{path}: not a {kind} map, its shape is {list(raw.shape)}")
    return ground_truth.from_file(raw, path.suffix != ".npy", scale)


def _open(path: Path) -> NDArray[Any]:
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        with path.open("rb") as stream, Image.open(stream) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
