"""Training samples: rendered scenes cached on disk, cropped, flipped and recoloured into (image,
map) pairs.

Images and maps are float32 [3, H, W] in [-1, 1], as the autoencoder takes them.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from tiny.render import LOTUS_AXES, render
from tiny.scene import TRAIN_FIRST_SEED

SCENE_COUNTS = {"motley": 3200, "mixed": 9600}
"""Training scenes of each style: the autoencoder's, and the UNets'."""
SCENE_SIZE = 256
LATENT_VIEWS = (
    *[((128, 128), (0.6, 1.3))] * 3,
    ((128, 192), (0.6, 1.3)),
    ((256, 256), (0.6, 1.3)),
)
"""The views of every scene whose latents are stored: (height, width) in pixels, and the range of
`share` in `draw_views`.
"""
_CHUNK = 50


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """The rendered training set, as memory maps."""

    images: np.ndarray  # uint8 [N, 256, 256, 3]
    depth: np.ndarray  # float16 [N, 256, 256], metres
    normals: np.ndarray  # int8 [N, 256, 256, 3], 127 is 1; camera frame

    def __len__(self) -> int:
        return len(self.images)


def load_scenes(folder: Path, style: str = "mixed") -> Scenes:
    """Open the cached training scenes of a style, rendering them on two processes the first
    time.
    """
    count = SCENE_COUNTS[style]
    arrays = {
        "images": (np.uint8, (count, SCENE_SIZE, SCENE_SIZE, 3)),
        "depth": (np.float16, (count, SCENE_SIZE, SCENE_SIZE)),
        "normals": (np.int8, (count, SCENE_SIZE, SCENE_SIZE, 3)),
    }
    final, partial = folder / f"scenes-{style}", folder / f"scenes-{style}.partial"
    if not final.exists():
        partial.mkdir(parents=True, exist_ok=True)
        for name, (dtype, shape) in arrays.items():
            np.lib.format.open_memmap(partial / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        with ProcessPoolExecutor(2) as pool:
            chunks = range(0, count, _CHUNK)
            list(pool.map(functools.partial(_render_chunk, partial, style), chunks))
        partial.rename(final)
    return Scenes(**{name: np.load(final / f"{name}.npy", mmap_mode="r") for name in arrays})


def _render_chunk(folder: Path, style: str, first: int) -> None:
    images, depth, normals = (
        np.load(folder / f"{n}.npy", mmap_mode="r+") for n in ("images", "depth", "normals")
    )
    for i in range(first, first + _CHUNK):
        rendered = render(TRAIN_FIRST_SEED + i, SCENE_SIZE, SCENE_SIZE, style)
        images[i], depth[i] = rendered.image, rendered.depth
        normals[i] = np.round(rendered.normals * 127)


def load_latents(folder: Path) -> list[np.ndarray]:
    """Latents float16 [N, 4, 4, h, w] of each of LATENT_VIEWS: of the image, then of its maps in
    TASKS's order.

    Encoded once with `folder/vae`, on two processes, for all the UNets. A killed run begins anew.
    """
    final, partial = folder / "latents", folder / "latents.partial"
    if not final.exists():
        partial.mkdir(parents=True, exist_ok=True)
        count = len(load_scenes(folder))
        for view, ((height, width), _) in enumerate(LATENT_VIEWS):
            shape = (count, 1 + len(TASKS), 4, height // 8, width // 8)
            np.lib.format.open_memmap(
                partial / f"{view}.npy", mode="w+", dtype=np.float16, shape=shape
            )
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            chunks = [
                pool.submit(_encode_chunk, folder, partial, at) for at in range(0, count, _CHUNK)
            ]
            for done, chunk in enumerate(chunks, 1):
                chunk.result()
                sys.stderr.write(f"\rlatents of {done * _CHUNK}/{count} scenes")
        sys.stderr.write("\n")
        partial.rename(final)
    return [np.load(final / f"{view}.npy", mmap_mode="r") for view in range(len(LATENT_VIEWS))]


def _encode_chunk(folder: Path, output: Path, first: int) -> None:
    torch.set_num_threads(1)
    scenes = load_scenes(folder)
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(memory_format=torch.channels_last)
    for view, (size, shares) in enumerate(LATENT_VIEWS):
        latents = np.load(output / f"{view}.npy", mmap_mode="r+")
        for index in range(first, first + _CHUNK):
            rng = np.random.default_rng([view, index])
            views = draw_views(scenes, rng, list(TASKS), size, rng.uniform(*shares), index)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                mean = vae.encode(
                    views.contiguous(memory_format=torch.channels_last)
                ).latent_dist.mode()
            latents[index] = mean.float() * vae.config.scaling_factor


def disparity_map(depth: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """1 / z, scaled so that its 2nd and 98th percentiles are -1 and 1; near is large. float32
    [H, W, 3].
    """
    return _normalise(1 / np.asarray(depth, np.float32))


def depth_map(depth: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """z, scaled so that its 2nd and 98th percentiles are -1 and 1; near is small. float32
    [H, W, 3].
    """
    return _normalise(np.asarray(depth, np.float32))


def normal_map(depth: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Camera-frame normals turned to x right, y up, z towards the camera; float32 [H, W, 3]."""
    return np.asarray(normals, np.float32) * LOTUS_AXES


TASKS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disparity": disparity_map,
    "depth": depth_map,
    "normal": normal_map,
}
"""Each task's target from depth [H, W] in metres and camera-frame unit normals [H, W, 3]."""


def image_map(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to float32 [H, W, 3] in [-1, 1]."""
    return np.asarray(image, np.float32) / 127.5 - 1


def draw_views(
    scenes: Scenes,
    rng: np.random.Generator,
    tasks: Sequence[str],
    size: tuple[int, int],
    share: float,
    index: int | None = None,
) -> torch.Tensor:
    """A scene (by default a random one) as an augmented image and each task's map of the same view,
    float32 [1 + T, 3, *size] in [-1, 1].

    The view is a random window that spans `share` of the scene's edge; from 1 on it is the whole
    scene.
    """
    share = min(share, 1.0)
    index = int(rng.integers(len(scenes))) if index is None else index
    aspect = size[0] / size[1]
    height = int(share * SCENE_SIZE * min(1, aspect))
    width = int(share * SCENE_SIZE * min(1, 1 / aspect))
    top, left = rng.integers(SCENE_SIZE - height + 1), rng.integers(SCENE_SIZE - width + 1)
    window = (index, slice(top, top + height), slice(left, left + width))
    image = np.asarray(scenes.images[window])
    depth, normals = scenes.depth[window], scenes.normals[window].astype(np.float32) / 127
    if rng.random() < 0.5:
        image, depth = image[:, ::-1], depth[:, ::-1]
        normals = normals[:, ::-1] * np.array([-1, 1, 1], np.float32)
    maps = [_resize(TASKS[task](depth, normals), size) for task in tasks]
    return torch.stack([_recolour(_resize(image_map(image), size), rng), *maps])


def _normalise(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [2, 98])
    scaled = np.clip(2 * (values - low) / max(high - low, 1e-6) - 1, -1, 1).astype(np.float32)
    return np.repeat(scaled[..., None], 3, axis=2)


def _resize(values: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    planes = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
    if planes.shape[1:] == size:
        return planes
    return F.interpolate(planes[None], size=size, mode="bilinear", antialias=True)[0]


def _recolour(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """What cameras and light do to a picture: white balance, exposure, saturation, contrast, gamma,
    blur.
    """
    if rng.random() < 0.5:
        return image
    grey = image.mean(0, keepdim=True)
    image = grey + (image - grey) * rng.uniform(0.6, 1.3)
    gain = torch.from_numpy(
        np.exp(rng.normal(0, 0.05, (3, 1, 1)) + rng.normal(0, 0.1)).astype(np.float32)
    )
    unit = ((image + 1) / 2 * gain).clamp(0, 1) ** float(np.exp(rng.normal(0, 0.15)))
    unit = 0.5 + (unit - 0.5) * rng.uniform(0.8, 1.2)
    if rng.random() < 0.3:
        unit = F.avg_pool2d(F.pad(unit[None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0]
    return unit.clamp(0, 1) * 2 - 1
