"""Flicker of maps on rendered clips with exact depth: `python -m benchmarks.video BUNDLE...`.

For each clip AbsRel with *one* alignment to the truth for all its frames, which is what a viewer
sees, over AbsRel with an alignment for each frame, which is the network's own error. The ratio less
1 is the flicker; off, causal and clip are the ways of `runtime/steady.py`. A clip with a cut is
measured shot by shot, and says which frames were taken for cuts.

The temporal profile (results/video-profile.png) is one row of the picture over time.
"""

from __future__ import annotations

import argparse
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
_ROW = 75  # of the picture: below the horizon, where things stand


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Maps, true depth and sky [T,H,W] of the frames, and their thumbnails."""

    maps: NDArray[np.float32]
    depth: NDArray[np.float32]
    sky: NDArray[np.bool_]
    thumbnails: list[Thumbnail]


def main() -> int:
    """Measure, print, save. Status 1 when something cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--count", type=int, default=8, help="clips: held-out seeds from 0 on")
    parser.add_argument("--kept", type=Path, metavar="DIR", help="keep maps here for another run")
    arguments = parse_arguments(parser)
    rows: list[dict[str, Any]] = []
    try:
        for bundle in arguments.bundles:
            rows += _of_bundle(bundle, range(arguments.count), arguments.kept)
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(write_rows("video", rows, dirty=arguments.dirty).name)
    return 0


def _of_bundle(bundle: Path, seeds: range, kept: Path | None) -> list[dict[str, Any]]:
    rows = []
    with LotusEngine(bundle) as engine:
        task = next(name for name in engine.manifest.tasks if TASKS[name].space is not None)
        space = str(TASKS[task].space)
        clips = [_predict(engine, task, seed, kept=kept) for seed in seeds]
        with_cut = _predict(engine, task, seeds[0], _CUT, kept)
        name, mode_of_bundle = engine.manifest.name, engine.manifest.mode
    for mode in _MODES:
        begin = time.perf_counter()
        steps = [plan_steps(mode, clip.thumbnails) for clip in clips]
        seconds = (time.perf_counter() - begin) / sum(len(clip.maps) for clip in clips)
        errors = [clip_errors(clip, own, space) for clip, own in zip(clips, steps, strict=True)]
        cut_steps = plan_steps(mode, with_cut.thumbnails)
        shots = [
            clip_errors(with_cut, cut_steps, space, part)
            for part in (slice(0, _CUT), slice(_CUT, None))
        ]
        cuts = [number for number, step in enumerate(cut_steps) if step.cut and number]
        per_frame, whole = (np.array(each) for each in zip(*errors, strict=True))
        row = {
            "bundle": name,
            "mode": mode_of_bundle,
            "task": task,
            "steady": mode,
            "clips": len(clips),
            "frames": FRAMES,
            "per_frame_abs_rel": float(per_frame.mean()),
            "clip_abs_rel": float(whole.mean()),
            "flicker": float(whole.mean() / per_frame.mean() - 1),
            "flicker_of_clips": [float(each) for each in whole / per_frame - 1],
            "ms_per_frame": 1000 * seconds,
            "false_cuts": sum(step.cut for own in steps for step in own[1:]),
            "cuts_found": cuts,
            "cut_clip_flicker": float(
                np.mean([shot[1] for shot in shots]) / np.mean([shot[0] for shot in shots]) - 1
            ),
        }
        print({key: row[key] for key in row if key != "flicker_of_clips"})
        print("  ", [f"{each:.3f}" for each in row["flicker_of_clips"]])
        rows.append(row)
    profile = {mode: plan_steps(mode, clips[0].thumbnails) for mode in _MODES}
    path = RESULTS / f"video-profile-{name}.png"
    draw_profile(clips[0], profile, space, task).save(path)
    return rows


def _predict(
    engine: LotusEngine, task: str, seed: int, cut: int | None = None, kept: Path | None = None
) -> Clip:
    """The maps of a clip; from the folder `kept` where they lie there, else they are put there."""
    name = f"{engine.manifest.name}-{seed}-{cut}.npy"
    before = np.load(kept / name) if kept is not None and (kept / name).exists() else None
    maps, depth, sky, thumbnails = [], [], [], []
    for number, frame in enumerate(render_clip(seed, FRAMES, _SIZE, _SIZE, cut=cut)):
        sys.stderr.write(f"\rclip {seed}, frame {number + 1} ")
        values = engine(frame.image)[task].values if before is None else before[number]
        maps.append(values)
        depth.append(frame.depth)
        sky.append(frame.sky)
        thumbnails.append(shrink(values, frame.image, number / _RATE))
    sys.stderr.write("\n")
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        np.save(kept / name, np.stack(maps))
    return Clip(
        maps=np.stack(maps), depth=np.stack(depth), sky=np.stack(sky), thumbnails=thumbnails
    )


def plan_steps(mode: str, thumbnails: list[Thumbnail]) -> list[Step]:
    """The steps of a clip's frames in one of the ways."""
    if mode == "clip":
        return plan_clip(thumbnails)
    causal = Causal(fit=mode == "causal")
    return [causal(thumbnail) for thumbnail in thumbnails]


def clip_errors(
    clip: Clip, steps: list[Step], space: str, part: slice = slice(None)
) -> tuple[float, float]:
    """AbsRel of a part of a clip's frames with an alignment for each, and with one for all."""
    steady = np.stack([step(values) for step, values in zip(steps, clip.maps, strict=True)])[part]
    depth, counted = clip.depth[part], ~clip.sky[part]
    each = [
        _abs_rel(values[mask], truth[mask], space)
        for values, truth, mask in zip(steady, depth, counted, strict=True)
        if mask.any()
    ]
    return float(np.mean(each)), _abs_rel(steady[counted], depth[counted], space)


def _abs_rel(values: NDArray[np.float32], depth: NDArray[np.float32], space: str) -> float:
    truth = depth.astype(np.float64)
    fitted = np.clip(fit_depth(values.astype(np.float64), truth, space), _NEAREST, _FARTHEST)
    return float((np.abs(fitted - truth) / truth).mean())


def draw_profile(clip: Clip, steps: dict[str, list[Step]], space: str, task: str) -> Image.Image:
    """One row of the picture over time, time to the right: exact, then each way."""
    truth = SPACES[space].of_depth(clip.depth)
    rows: dict[str, NDArray[Any]] = {"exact": truth[:, _ROW]}
    for mode, own in steps.items():
        steady = np.stack([step(values) for step, values in zip(own, clip.maps, strict=True)])
        scale, shift = np.polyfit(steady.ravel()[::7], truth.ravel()[::7], 1)
        rows[mode] = scale * steady[:, _ROW] + shift
    bounds = tuple(np.percentile(truth, [2, 98]))
    sheet = Image.new("RGB", (4 * (4 * FRAMES + 8) - 8, _SIZE + 18), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, profile) in enumerate(rows.items()):
        colors = TASKS[task].colorize(profile.T.astype(np.float32), bounds)
        strip = Image.fromarray(colors).resize((4 * FRAMES, _SIZE), Image.Resampling.NEAREST)
        sheet.paste(strip, (number * (4 * FRAMES + 8), 18))
        draw.text((number * (4 * FRAMES + 8) + 2, 3), name, fill="black")
    return sheet


if __name__ == "__main__":
    sys.exit(main())
