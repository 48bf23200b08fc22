"""The whole set of rows from one commit: `python -m benchmarks.all_rows` (`make rows`).

Latency at the published sizes in every precision, against the contenders, with batches, of joint
bundles and of each family; accuracy of every precision and of the contenders; tiles; what is
around the network. It takes a day on two cores, and can be stopped and started again: a step whose
rows are there is left out if the code is still that of their commit. Rows and text may be committed
meanwhile.

Each step builds its bundles anew, in a folder of its own under `--work`, which is removed once its
rows are there; the steps of all sizes share one, whose bundles hold them all. Without the extra
`peers` its contenders are lines that say so.

Joint bundles are measured of random weights alone. With `--label avx2` rows of latency lie beside
those of another machine and do not replace them.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import rows
from benchmarks.baselines import Work
from benchmarks.rows import ROOT, parse_arguments
from export.families import FAMILIES

SIZES = ("256x256", "384x384", "512x512", "576x768", "768x768", "1024x1024")
"""Heights and widths in pixels; 576x768 is what the published code makes of a 4:3 photograph."""
_EVERY = ("onnxruntime", "onnxruntime-int8", "openvino", "openvino-bf16", "openvino-int8")
_CONTENDERS = (
    *("pytorch-authors", "pytorch-bf16", "pytorch-compile", "pytorch-compile-bf16"),
    *("pytorch-torchao-weights", "pytorch-torchao-dynamic", "plain-onnxruntime", "plain-openvino"),
    *("nncf", "nncf-best", "nncf-half", *_EVERY, "openvino-bf16-taesd", "openvino-int8-taesd"),
)
_TINY = tuple(f"{task}-{mode}" for task in ("disparity", "depth", "normal") for mode in "dg")
_BUILT = (
    ("fp32", "onnxruntime"),
    ("bf16", "openvino"),
    ("int8", "openvino"),
    ("int8", "onnxruntime"),
)
_EMULATED = (("fp16", "tensorrt-rtx"), ("int8", "tensorrt"))
_COMPARED = (
    *("onnxruntime", "openvino-int8", "nncf", "nncf-best", "nncf-half"),
    *("pytorch-torchao-weights", "pytorch-torchao-dynamic"),
)
_FOLDER = "{folder}"  # of the step, in its words


@dataclass(frozen=True, kw_only=True)
class Step:
    """`commands` are run one after the other: the words behind `python`, with {folder} for the
    step's own folder, or for `shared`, which others have too. The last one writes the rows `name`.
    `minutes` on two cores, about.
    """

    name: str
    minutes: float
    commands: tuple[tuple[str, ...], ...]
    shared: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps whose rows are not there. Status 1 where one failed; the others are run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="random/lotus-d", help="of latency")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="HxW", help="of latency")
    parser.add_argument("--contended", default="512x512", metavar="HxW", help="for all contenders")
    parser.add_argument("--rounds", type=int, default=3, help="of latency")
    parser.add_argument("--label", default="", help="added to the names of latency's rows")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of names of rows")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "all-rows", help="for bundles")
    parser.add_argument("--dry-run", action="store_true", help="say what is there and what is not")
    arguments = parse_arguments(parser, argv, wanted=lambda arguments: not arguments.dry_run)
    every = steps(
        arguments.checkpoint,
        arguments.sizes,
        arguments.rounds,
        contended=arguments.contended,
        label=arguments.label,
    )
    chosen = [step for step in every if fnmatch.fnmatch(step.name, arguments.only)]
    missing = [step for step in chosen if not is_there(step.name)]
    print(f"{len(chosen) - len(missing)} of {len(chosen)} rows are there, of this code")
    if arguments.dry_run:
        for step in missing:
            print(f"missing: {step.name}, {_duration(step.minutes * 60)}")
        return 0
    failed = run(missing, arguments.work, dirty=arguments.dirty)
    for name in failed:
        print(f"failed: {name}")
    return 1 if failed else 0


def steps(
    checkpoint: str,
    sizes: Sequence[str],
    rounds: int,
    *,
    contended: str = "512x512",
    label: str = "",
) -> list[Step]:
    """All of them, the short ones first within each kind."""
    return [
        *_latencies(checkpoint, sizes, rounds, contended=contended, label=label),
        *(_accuracy(name, *setting) for name in _TINY for setting in _BUILT),
        *(_emulated(name, *setting) for name in _TINY for setting in _EMULATED),
        *(_compared(name, what) for name in ("disparity-d", "depth-d") for what in _COMPARED),
        _tiles(),
        Step(name="host", minutes=15, commands=(("-m", "benchmarks.host"),)),
    ]


def _latencies(
    checkpoint: str, sizes: Sequence[str], rounds: int, *, contended: str, label: str
) -> Iterator[Step]:
    """Each size in every precision, all contenders at one; then two tasks, batches, families."""

    def step(
        name: str, size: str, *words: str, bundles: int, built: int | None = None, shared: str = ""
    ) -> Step:
        name = f"{name}-{label}" if label else name
        words = (*words, "--name", name)
        own = ("--resolution", size, "--rounds", str(rounds), "--together", "1", *words)
        height, width = map(int, size.split("x"))
        seconds = 35 * (height * width) / 512**2 * (rounds + 2) * 2 * bundles
        command = ("-m", "benchmarks.latency", *own, "--bundles", _FOLDER)
        minutes = seconds / 60 + 5 * (bundles if built is None else built)
        return Step(name=name, minutes=minutes, commands=(command,), shared=shared)

    def name_of(checkpoint: str, size: str) -> str:
        return f"latency-{Work(checkpoint=checkpoint, resolution=size).name}"

    one = ("--checkpoint", checkpoint)
    shared: set[str] = set()  # of earlier sizes; their bundles are there
    for size in sizes:
        what = _CONTENDERS if size == contended else _EVERY
        built = len(set(what) - shared)
        shared.update(what)
        words = (*one, "--sizes", ",".join(sizes), "--what", "pytorch", *what)
        own = name_of(checkpoint, size)
        yield step(own, size, *words, bundles=len(what), built=built, shared="latency")
    # No normals: with random weights bf16 is too far off for a bundle to prove itself.
    # Weights that are not random predict one task: there is no second one for a joint bundle.
    pairs = {"batch": (*one, "--batch", "4")}
    if checkpoint.startswith("random/"):
        two = ("--checkpoint", f"{checkpoint},{checkpoint}@1", "--task", "disparity,depth")
        pairs["one-decode"] = two
        for precision in ("", "-bf16", "-int8"):
            what = ("--reference", f"openvino{precision}-apart", "--what", f"openvino{precision}")
            name = f"together-joint-{sizes[0]}{precision}"
            yield step(name, sizes[0], *two, *what, bundles=4)
    backends = ("onnxruntime", "openvino", "openvino-bf16")
    for variant, words in pairs.items():
        for backend in backends:
            name = f"together-{backend}-{variant}"
            pair = ("--reference", backend, "--what", f"{backend}-{variant}")
            yield step(name, sizes[0], *words, *pair, bundles=4)
    others = [checkpoint.replace("-d", "-g")]
    if checkpoint.startswith("random/"):
        others = [f"random/{family}" for family in FAMILIES]
    for other in others:
        if other == checkpoint:
            continue
        words = ("--checkpoint", other, "--what", "pytorch", *_EVERY)
        yield step(name_of(other, sizes[0]), sizes[0], *words, bundles=len(_EVERY))


def _bundle_words(names: Sequence[str], precision: str, target: str) -> tuple[str, ...]:
    checkpoints = (f"tiny/{name}" for name in names)
    setting = ("--resolution", "256x256", "--target", target, "--precision", precision)
    return ("export/build_engine.py", *checkpoints, *setting, "--output", f"{_FOLDER}/bundle")


def _accuracy(name: str, precision: str, target: str) -> Step:
    measure = ("-m", "benchmarks.accuracy", "--bundle", f"{_FOLDER}/bundle")
    return Step(
        name=f"accuracy-{name}-256x256-{precision}-{target}-synthetic",
        minutes=3,
        commands=(
            _bundle_words([name], precision, target),
            (*measure, "--output", f"{_FOLDER}/maps"),
        ),
    )


def _emulated(name: str, precision: str, target: str) -> Step:
    emulate = ("-m", "benchmarks.emulate", f"{_FOLDER}/bundle", "--output", f"{_FOLDER}/emulated")
    measure = ("-m", "benchmarks.accuracy", "--bundle", f"{_FOLDER}/emulated")
    return Step(
        name=f"accuracy-{name}-256x256-{precision}-{target}-emulated-synthetic",
        minutes=6,
        commands=(
            _bundle_words([name], precision, target),
            emulate,
            (*measure, "--output", f"{_FOLDER}/maps"),
        ),
    )


def _compared(name: str, what: str) -> Step:
    measure = ("-m", "benchmarks.accuracy", "--what", what, "--checkpoint", f"tiny/{name}")
    return Step(
        name=f"accuracy-{name}-256x256-{what}-synthetic",
        minutes=5,
        commands=((*measure, "--bundles", _FOLDER, "--output", f"{_FOLDER}/maps"),),
    )


def _tiles() -> Step:
    return Step(
        name="tiles-disparity-d-normal-d-256x256-fp32-onnxruntime-1024",
        minutes=5,
        commands=(
            _bundle_words(["disparity-d", "normal-d"], "fp32", "onnxruntime"),
            ("-m", "benchmarks.tiles", "--bundle", f"{_FOLDER}/bundle"),
        ),
    )


def is_there(name: str) -> bool:
    """Whether these rows were measured to their end, with the code that is checked out."""
    path = rows.RESULTS / f"{name}.json"
    if not path.exists():
        return False
    body = json.loads(path.read_text(encoding="utf-8"))
    return not (body.get("dirty") or body.get("unfinished")) and rows.same_code(body["commit"])


def run(missing: Sequence[Step], work: Path, *, dirty: bool = False) -> list[str]:
    """Run the steps; the names of those that failed. Ctrl-C leaves the folder of the one at hand,
    where the next run goes on.
    """
    failed: list[Step] = []
    expected = spent = 0.0
    for number, step in enumerate(missing, 1):
        rest = sum(other.minutes for other in missing[number - 1 :]) * 60
        # How long things take here, as far as it is known.
        left = rest * (spent / expected if expected else 1)
        print(f"[{number}/{len(missing)}] {step.name}; {_duration(left)} left", flush=True)
        start = time.monotonic()
        folder = work / f"{step.shared or step.name}-{rows.commit()}"
        folder.mkdir(parents=True, exist_ok=True)
        if not _run_step(step, folder, dirty=dirty):
            failed.append(step)
            print(f"FAILED: {step.name}; what it built is in {folder}", flush=True)
            continue
        if not step.shared or step.shared not in {s.shared for s in (*missing[number:], *failed)}:
            shutil.rmtree(folder)
        expected, spent = expected + step.minutes * 60, spent + time.monotonic() - start
    return [step.name for step in failed]


def _run_step(step: Step, folder: Path, *, dirty: bool) -> bool:
    for number, words in enumerate(step.commands, 1):
        command = [sys.executable, *(word.replace(_FOLDER, str(folder)) for word in words)]
        last = number == len(step.commands)
        if not last and (folder / words[-1].removeprefix(f"{_FOLDER}/")).exists():
            continue  # built before the last run was stopped
        command += ["--dirty"] if dirty and last else []
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return False
    return True


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"about {minutes // 60} h {minutes % 60} min" if minutes > 90 else f"about {minutes} min"


if __name__ == "__main__":
    sys.exit(main())
