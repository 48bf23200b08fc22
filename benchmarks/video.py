"""Flicker of maps on rendered clips with exact depth: `python -m benchmarks.video BUNDLE...`.

For each clip AbsRel with *one* alignment to the truth for all its frames, which is what a viewer
sees, over AbsRel with an alignment for each frame, which is the network's own error. The ratio less
1 is the flicker; off, causal and clip are the ways of `runtime/steady.py`, with and without the
smoothing of `runtime/motion.py` after them. A clip with a cut is measured shot by shot, and says
which frames were taken for cuts.

What smoothing is for is the change along the motion: how much a map differs from the one before it,
brought there by the exact motion, over pixels that both frames show, as a share of the clip's
spread. What exact maps differ so is given beside it. Milliseconds are those of the processor, for
all that is done after the network.

The temporal profile (results/video-profile-BUNDLE.png) is one row of the picture over time.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.metrics import fit_depth
from benchmarks.rows import RESULTS, parse_arguments, write_rows
from runtime import LotusEngine, LotusError
from runtime.extras import explain_missing_packages, require
from runtime.motion import Smoother, to_grey
from runtime.spaces import SPACES
from runtime.steady import Causal, Step, Thumbnail, plan_clip, shrink
from runtime.tasks import TASKS
from tiny.clip import render_clip

FRAMES = 64
_SIZE = 128
_CUT = 40  # the first frame of the second shot of the clip with a cut
_RATE = 30.0
_NEAREST, _FARTHEST = 0.1, 30.0
_MODES = ("off", "causal", "clip")
_WAYS = (*((mode, False) for mode in _MODES), ("causal", True), ("clip", True))
_ROW = 75  # of the picture: below the horizon, where things stand


Maps = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Maps, true depth and sky [T,H,W] of the frames, their grey levels, where their pixels were in
    the frame before [T,H,W,2] and whether they were seen there, and their thumbnails.
    """

    maps: Maps
    depth: NDArray[np.float32]
    sky: NDArray[np.bool_]
    grey: NDArray[np.uint8]
    flow: NDArray[np.float32]
    seen: NDArray[np.bool_]
    thumbnails: list[Thumbnail]


def main() -> int:
    """Measure, print, save. Status 1 when something cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--count", type=int, default=8, help="clips: held-out seeds from 0 on")
    parser.add_argument("--kept", type=Path, metavar="DIR", help="keep maps here for another run")
    parser.add_argument("--name", default="video", help="of the file of rows (video)")
    arguments = parse_arguments(parser)
    require("cv2")
    rows: list[dict[str, Any]] = []
    try:
        for bundle in arguments.bundles:
            rows += _of_bundle(bundle, range(arguments.count), arguments.kept)
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(write_rows(arguments.name, rows, dirty=arguments.dirty).name)
    return 0


def _of_bundle(bundle: Path, seeds: range, kept: Path | None) -> list[dict[str, Any]]:
    rows = []
    with LotusEngine(bundle) as engine:
        task = next(name for name in engine.manifest.tasks if TASKS[name].space is not None)
        clips = [_predict(engine, task, seed, kept=kept) for seed in seeds]
        with_cut = _predict(engine, task, seeds[0], _CUT, kept)
        about = {"bundle": engine.manifest.name, "mode": engine.manifest.mode, "task": task}
    profile = {}
    for mode, smooth in _WAYS:
        way = {"steady": mode, "smooth": smooth}
        row = about | way | _measure(clips, with_cut, task, mode, smooth)
        print({key: row[key] for key in row if key != "flicker_of_clips"})
        print("  ", [f"{each:.3f}" for each in row["flicker_of_clips"]])
        rows.append(row)
        if smooth <= (mode == "clip"):
            name = f"{mode}, smooth" if smooth else mode
            profile[name] = steady_maps(clips[0], task, mode, smooth)[0]
    path = RESULTS / f"video-profile-{about['bundle']}.png"
    draw_profile(clips[0], profile, str(TASKS[task].space), task).save(path)
    return rows


def _measure(
    clips: list[Clip], with_cut: Clip, task: str, mode: str, smooth: bool
) -> dict[str, Any]:
    """What one way makes of the clips."""
    space = str(TASKS[task].space)
    begin = time.process_time()
    made = [steady_maps(clip, task, mode, smooth) for clip in clips]
    seconds = (time.process_time() - begin) / sum(len(clip.maps) for clip in clips)
    both = [(clip, maps) for clip, (maps, _) in zip(clips, made, strict=True)]
    errors = [clip_errors(clip, maps, space) for clip, maps in both]
    exact = [SPACES[space].of_depth(clip.depth).astype(np.float32) for clip in clips]
    cut_maps, cut_steps = steady_maps(with_cut, task, mode, smooth)
    shots = [
        clip_errors(with_cut, cut_maps, space, part) for part in (slice(0, _CUT), slice(_CUT, None))
    ]
    per_frame, whole = (np.array(each) for each in zip(*errors, strict=True))
    opencv = {"opencv": importlib.metadata.version("opencv-python-headless")} if smooth else {}
    return opencv | {
        "clips": len(clips),
        "frames": FRAMES,
        "per_frame_abs_rel": float(per_frame.mean()),
        "clip_abs_rel": float(whole.mean()),
        "flicker": float(whole.mean() / per_frame.mean() - 1),
        "flicker_of_clips": [float(each) for each in whole / per_frame - 1],
        "change_along_motion": float(np.mean([change(clip, maps) for clip, maps in both])),
        "change_of_exact_maps": float(np.mean([*map(change, clips, exact)])),
        "cpu_ms_per_frame": 1000 * seconds,
        "false_cuts": sum(step.cut for _, steps in made for step in steps[1:]),
        "cuts_found": [number for number, step in enumerate(cut_steps) if step.cut and number],
        "cut_clip_flicker": float(
            np.mean([shot[1] for shot in shots]) / np.mean([shot[0] for shot in shots]) - 1
        ),
    }


def _predict(
    engine: LotusEngine, task: str, seed: int, cut: int | None = None, kept: Path | None = None
) -> Clip:
    """The maps of a clip; from the folder `kept` where they lie there, else they are put there."""
    name = f"{engine.manifest.name}-{seed}-{cut}.npy"
    before = np.load(kept / name) if kept is not None and (kept / name).exists() else None
    maps, frames, thumbnails = [], [], []
    for number, frame in enumerate(render_clip(seed, FRAMES, _SIZE, _SIZE, cut=cut)):
        sys.stderr.write(f"\rclip {seed}, frame {number + 1} ")
        values = engine(frame.image)[task].values if before is None else before[number]
        maps.append(values)
        frames.append(frame)
        thumbnails.append(shrink(values, frame.image, number / _RATE))
    sys.stderr.write("\n")
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        np.save(kept / name, np.stack(maps))
    return Clip(
        maps=np.stack(maps),
        depth=np.stack([frame.depth for frame in frames]),
        sky=np.stack([frame.sky for frame in frames]),
        grey=np.stack([to_grey(frame.image, _SIZE, _SIZE) for frame in frames]),
        flow=np.stack([frame.flow for frame in frames]),
        seen=np.stack([frame.seen for frame in frames]),
        thumbnails=thumbnails,
    )


def steady_maps(clip: Clip, task: str, mode: str, smooth: bool) -> tuple[Maps, list[Step]]:
    """The maps of a clip's frames made steady in one of the ways, and the steps to it."""
    steps = plan_steps(mode, clip.thumbnails)
    steady = [step(values) for step, values in zip(steps, clip.maps, strict=True)]
    if smooth:
        smoother = Smoother()
        steady = [
            smoother(grey, {task: values}, cut=step.cut)[task]
            for grey, values, step in zip(clip.grey, steady, steps, strict=True)
        ]
    return np.stack(steady), steps


def plan_steps(mode: str, thumbnails: list[Thumbnail]) -> list[Step]:
    """The steps of a clip's frames in one of the ways."""
    if mode == "clip":
        return plan_clip(thumbnails)
    causal = Causal(fit=mode == "causal")
    return [causal(thumbnail) for thumbnail in thumbnails]


def clip_errors(
    clip: Clip, steady: Maps, space: str, part: slice = slice(None)
) -> tuple[float, float]:
    """AbsRel of a part of a clip's frames with an alignment for each, and with one for all."""
    steady, depth, counted = steady[part], clip.depth[part], ~clip.sky[part]
    each = [
        _abs_rel(values[mask], truth[mask], space)
        for values, truth, mask in zip(steady, depth, counted, strict=True)
        if mask.any()
    ]
    return float(np.mean(each)), _abs_rel(steady[counted], depth[counted], space)


def change(clip: Clip, maps: Maps) -> float:
    """How much a map differs from the one before it, brought there by the exact motion: the mean
    over the pixels that both show, as a share of the standard deviation of all that is no sky.
    """
    rows, columns = np.mgrid[: maps.shape[1], : maps.shape[2]]
    means = []
    shown = clip.seen & ~clip.sky
    for (before, now), flow, seen in zip(
        itertools.pairwise(maps), clip.flow[1:], shown[1:], strict=True
    ):
        y, x = rows[seen] + flow[seen, 1], columns[seen] + flow[seen, 0]
        if seen.any():
            means.append(np.abs(_bilinear(before, y, x) - now[seen]).mean())
    return float(np.mean(means)) / float(maps[~clip.sky].std())


def _bilinear(values: Maps, y: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """The map at these places; beyond its edges as at them."""
    height, width = values.shape
    y, x = y.clip(0, height - 1), x.clip(0, width - 1)
    top, left = (np.minimum(each.astype(int), size - 2) for each, size in ((y, height), (x, width)))
    down, right = y - top, x - left
    upper = values[top, left] * (1 - right) + values[top, left + 1] * right
    lower = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)


def _abs_rel(values: NDArray[np.float32], depth: NDArray[np.float32], space: str) -> float:
    truth = depth.astype(np.float64)
    fitted = np.clip(fit_depth(values.astype(np.float64), truth, space), _NEAREST, _FARTHEST)
    return float((np.abs(fitted - truth) / truth).mean())


def draw_profile(clip: Clip, ways: dict[str, Maps], space: str, task: str) -> Image.Image:
    """One row of the picture over time, time to the right: exact, then each way's maps."""
    truth = SPACES[space].of_depth(clip.depth)
    rows: dict[str, NDArray[Any]] = {"exact": truth[:, _ROW]}
    for name, steady in ways.items():
        scale, shift = np.polyfit(steady.ravel()[::7], truth.ravel()[::7], 1)
        rows[name] = scale * steady[:, _ROW] + shift
    bounds = tuple(np.percentile(truth, [2, 98]))
    sheet = Image.new("RGB", (len(rows) * (4 * FRAMES + 8) - 8, _SIZE + 18), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, profile) in enumerate(rows.items()):
        colors = TASKS[task].colorize(profile.T.astype(np.float32), bounds)
        strip = Image.fromarray(colors).resize((4 * FRAMES, _SIZE), Image.Resampling.NEAREST)
        sheet.paste(strip, (number * (4 * FRAMES + 8), 18))
        draw.text((number * (4 * FRAMES + 8) + 2, 3), name, fill="black")
    return sheet


if __name__ == "__main__":
    explain_missing_packages()
    sys.exit(main())
