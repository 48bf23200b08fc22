"""What a prediction costs around the network: `python -m benchmarks.host [--before COMMIT]`.

The stages load, fit, normalise, restore, colours and files (the three default ones, colours given)
of a JPEG of 1920x1080 and one of 12 megapixels, for disparity in a bucket of 512x512, on one core.
And `predict` on a folder, with a network that sleeps for 30 ms, on all cores.

Three ways take turns in processes of their own: the commit before the change, this tree with NumPy
and Pillow alone, and this tree with the extra `fast`, whose compiled loops are loaded before the
stages, and by `predict` itself while it runs. The least time of all rounds counts. Files
are synced to the disk; the clock has that in it, the processor time has not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzzing.bundles import write_bundle
from benchmarks.rows import ROOT, parse_arguments, write_rows
from runtime.extras import require

BEFORE = "1e356b1"
SIZES = {"1920x1080": (1920, 1080), "12 megapixels": (4000, 3000)}
_SAMPLE = ROOT / "tiny" / "samples" / "room.png"
_STEP = 0.03  # seconds of the network that sleeps
_TURNS = 3  # of `predict`
_SAME = "check"  # sums over values and colours: equal in all ways


def main() -> int:
    """Measure, print, save. Status 1 where the ways do not answer the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=5, help="of all ways, one after the other")
    parser.add_argument("--pictures", type=int, default=200, help="for `predict`; 0: leave it out")
    parser.add_argument("--name", default="host")
    arguments = parse_arguments(parser)
    require("isal", "numba")
    with tempfile.TemporaryDirectory() as scratch, _tree(arguments.before, Path(scratch)) as old:
        ways: dict[str, tuple[Path, list[str]]] = {
            "before": (old, []),
            "after": (ROOT, ["--plain"]),
            "after, with `fast`": (ROOT, []),
        }
        rows = [*_stages(ways, Path(scratch), arguments.rounds)]
        if arguments.pictures:
            rows += _predict(ways, Path(scratch), arguments.pictures)
    for row in rows:
        print(
            *(
                f"{key} {value:.4g}" if isinstance(value, float) else value
                for key, value in row.items()
            )
        )
    different = {row["size"] for row in rows if row.get("same") is False}
    print(f"rows: {write_rows(arguments.name, rows, dirty=arguments.dirty).name}")
    return 1 if different else 0


def write_picture(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """A rendered room with the grain of a camera, as JPEG of quality 90."""
    with Image.open(_SAMPLE) as image:
        large = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, 4, (height, width, 1))
    noisy = (np.asarray(large) + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=90)
    return path


def _stages(
    ways: dict[str, tuple[Path, list[str]]], scratch: Path, rounds: int
) -> Iterator[dict[str, Any]]:
    for size, (width, height) in SIZES.items():
        picture = write_picture(scratch / f"{width}.jpg", width, height)
        best: dict[str, dict[str, dict[str, float]]] = {}
        for _ in range(rounds):
            for way, (tree, options) in ways.items():
                found = _child(tree, "stages", str(picture), "3", *options)
                stages = best.setdefault(way, found)
                for stage, numbers in found.items():
                    stages[stage] = {key: min(numbers[key], stages[stage][key]) for key in numbers}
        expected = best["before"][_SAME]
        for way, stages in best.items():
            same = stages.pop(_SAME) == expected
            sizes = stages.pop("bytes")
            both = {"what": "stages", "way": way, "size": size, "bytes_in": picture.stat().st_size}
            for stage, numbers in stages.items():
                yield {**both, "stage": stage, **numbers}
            total = {
                key: sum(each[key] for each in stages.values()) for key in ("cpu_ms", "wall_ms")
            }
            yield {**both, "stage": "all", **total, "files": sizes, "same": same}


def _predict(
    ways: dict[str, tuple[Path, list[str]]], scratch: Path, count: int
) -> Iterator[dict[str, Any]]:
    bundle = write_bundle(scratch / "bundle", target="null", sizes=[(512, 512)])
    folder = scratch / "photos"
    folder.mkdir()
    originals = [write_picture(scratch / f"p{seed}.jpg", 1920, 1080, seed) for seed in range(4)]
    for number in range(count):
        name = folder / f"{number:03}.jpg"
        name.write_bytes(originals[number % len(originals)].read_bytes())
    best: dict[str, dict[str, Any]] = {}
    for _ in range(_TURNS):
        for way, (tree, options) in ways.items():
            found = _child(tree, "predict", str(bundle), str(folder), str(_STEP), *options)
            best[way] = min(best.get(way, found), found, key=lambda each: each["seconds"])
    for way, found in best.items():
        rate = found["pictures"] / found["seconds"]
        yield {
            "what": "predict",
            "way": way,
            "size": "1920x1080",
            "network_s": _STEP,
            **found,
            "pictures_per_s": rate,
            "of_the_network": rate * _STEP,
        }


def _child(tree: Path, *words: str) -> dict[str, Any]:
    code = (ROOT / "benchmarks" / "host_worker.py").read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tree, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def _tree(commit: str, scratch: Path) -> Iterator[Path]:
    """The files of a commit."""
    folder = scratch / "before"
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    yield folder


if __name__ == "__main__":
    sys.exit(main())
