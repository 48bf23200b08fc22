"""Latency, memory and error of our bundles and of what a user would run instead: `python -m
benchmarks.latency`.

Each baseline is a process of its own. They are loaded in groups that fit into memory, each group
with the reference. In every round each one predicts once, in turn, so that a machine that slows
down slows all of them. The image is read and decoded beforehand; pre- and post-processing are
inside the timed region. Ratios are of medians within one group. With --batch N a prediction is of N
images: by PyTorch in one pass, by a bundle one after the other, by `...-batch` in one run. Several
checkpoints, with commas between them, are one joint bundle; `...-apart` is a bundle for each, and
PyTorch runs one after the other. With --sizes one bundle of several sizes serves the runs of all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import latency_worker
from benchmarks.baselines import BASELINES, REFERENCE, Work, built
from benchmarks.ceilings import SLOW_GFLOPS, product_rates
from benchmarks.rows import ROOT, parse_arguments, write_rows
from export.errors import BuildError


def main() -> int:
    """Measure and save; status 1 when nothing could be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="random/lotus-d", metavar="CHECKPOINT[,...]")
    parser.add_argument("--task", default="", metavar="TASK[,...]", help="as build_engine takes it")
    parser.add_argument("--resolution", default="512x512", metavar="HxW")
    parser.add_argument(
        "--sizes", default="", metavar="HxW[,...]", help="of a bundle; default: --resolution alone"
    )
    alone = [name for name, each in BASELINES.items() if each.alone]
    parser.add_argument("--what", nargs="+", default=alone, choices=BASELINES)
    parser.add_argument(
        "--reference",
        default=REFERENCE,
        choices=BASELINES,
        help="what ratios are to; in each group",
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--together", type=int, default=2, help="baselines in memory at once, beside the reference"
    )
    parser.add_argument("--image", type=Path, default=ROOT / "tiny" / "samples" / "room.png")
    parser.add_argument(
        "--bundles", type=Path, default=ROOT / "engines", help="where bundles are built and kept"
    )
    parser.add_argument(
        "--name", help="of the file of rows; default: latency-CHECKPOINT-RESOLUTION[-batch-N]"
    )
    arguments = parse_arguments(parser)
    if arguments.task and arguments.task.count(",") != arguments.checkpoint.count(","):
        parser.error("--task names a task for each checkpoint, or is left out")
    if arguments.sizes and arguments.resolution not in arguments.sizes.split(","):
        parser.error("--sizes holds --resolution, or is left out")
    others = [name for name in arguments.what if name != arguments.reference]
    groups = [
        others[at : at + arguments.together] for at in range(0, len(others), arguments.together)
    ] or [[]]
    title = f"latency-{_work(arguments).name}"
    rates = product_rates()
    rows = [{"what": "ceiling", "gflops": rates}]
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(groups):
            rows += [
                {"group": number} | row
                for row in _race([arguments.reference, *group], arguments, Path(folder), rates)
            ]
            # After each group: a run of an hour that is stopped keeps what it has.
            saved = write_rows(
                arguments.name or title,
                rows,
                dirty=arguments.dirty,
                unfinished=number + 1 < len(groups),
            )
            print(f"rows: {saved.name}, group {number + 1} of {len(groups)}")
    return 0 if any("p50_s" in row for row in rows) else 1


def _work(arguments: argparse.Namespace) -> Work:
    return Work(
        checkpoint=arguments.checkpoint,
        resolution=arguments.resolution,
        batch=arguments.batch,
        task=arguments.task,
        sizes=arguments.sizes,
    )


def _race(
    names: list[str], arguments: argparse.Namespace, folder: Path, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Load the group one after the other, run the rounds in turn, and describe each. `rates` are
    of `product_rates`: PyTorch in a type without instructions would take a quarter of an hour.
    """
    runners: dict[str, _Runner] = {}
    rows: list[dict[str, Any]] = []
    for name in names:
        dtype = BASELINES[name].options.get("dtype")
        try:
            if dtype in rates and rates[dtype] < SLOW_GFLOPS:
                raise _WorkerError(f"this CPU has no instructions for {dtype}")
            runners[name] = _Runner(name, arguments, folder)
        except (_WorkerError, BuildError) as error:
            rows.append(
                {"what": name, "meaning": BASELINES[name].meaning, "not_measured": str(error)}
            )
            _say(f"{name:<18} not measured: {error}")
    for turn in range(arguments.rounds):
        for runner in runners.values():
            _say(
                f"round {turn + 1}/{arguments.rounds}  {runner.name:<18} {runner.predict():8.3f} s"
            )
    for runner in runners.values():
        rows.append(runner.finish(arguments))
    first = names[0]
    reference = np.load(folder / f"{first}.npy") if first in runners else None
    base = next((row for row in rows if row["what"] == first), {})
    for row in rows:
        if "p50_s" not in row:
            continue
        if reference is not None and "p50_s" in base:
            row["ratio"] = base["p50_s"] / row["p50_s"]
            row["max_abs_error"] = float(
                np.abs(np.load(folder / f"{row['what']}.npy") - reference).max()
            )
        print(
            f"{row['what']:<18} p50 {row['p50_s']:7.3f} s  {row.get('ratio', 1):5.2f}x  first "
            f"{row['first_s']:6.2f} s  "
            f"load {row['load_s']:6.2f} s  peak {row['peak_gb']:5.2f} GB  error "
            f"{row.get('max_abs_error', 0):.1e}"
        )
    return rows


class _WorkerError(Exception):
    pass


class _Runner:
    """A baseline's process. A bundle that is not there yet is built first, by a process of its own.

    Raises: BuildError, _WorkerError where the baseline cannot run here.
    """

    def __init__(self, name: str, arguments: argparse.Namespace, folder: Path) -> None:
        self.name, self.seconds = name, list[float]()
        self._bundles = built(name, _work(arguments), arguments.bundles)
        # Before the rounds: a graph that cannot be counted is told at once. NNCF's is not ONNX.
        graphs = [] if BASELINES[name].nncf else self._bundles
        self._counted = _work_of(graphs, arguments.resolution)
        command = latency_worker.command_line(
            name,
            _work(arguments),
            bundles=arguments.bundles,
            image=arguments.image,
            output=folder / f"{name}.npy",
        )
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.start = self._read()

    def predict(self) -> float:
        """One prediction's seconds."""
        self.seconds.append(float(self._ask("go")["seconds"]))
        return self.seconds[-1]

    def finish(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """The row; the process has ended then."""
        end = self._ask("end")
        self._process.communicate()
        p50, p90, p99 = (float(np.percentile(self.seconds, share)) for share in (50, 90, 99))
        row = {
            "what": self.name,
            "meaning": BASELINES[self.name].meaning,
            "checkpoint": arguments.checkpoint,
        }
        row |= {
            "resolution": arguments.resolution,
            "batch": arguments.batch,
            "rounds": len(self.seconds),
        }
        row |= {"p50_s": p50, "p90_s": p90, "p99_s": p99, "min_s": min(self.seconds)}
        row |= {"per_second": arguments.batch / p50}
        work = _work(arguments)
        row |= {"task": work.task} if work.task else {}
        if self._bundles:
            row |= {"bundle_gb": sum(_bytes(bundle) for bundle in self._bundles) / 1e9}
        if self._counted:
            rate = 2 * self._counted["multiply_adds"] / (p50 / arguments.batch) / 1e9
            row |= {**self._counted, "gflops": rate}
        return row | self.start | end

    def _ask(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        message: dict[str, Any] = (
            json.loads(line)
            if line
            else {"error": f"the process ended with status {self._process.wait()}"}
        )
        if "error" in message:
            self._process.communicate()
            raise _WorkerError(message["error"])
        return message


def _work_of(bundles: list[Path], resolution: str) -> dict[str, Any]:
    """Multiply-adds of the bundles' graphs at HxW, for one image, and their folds; nothing of
    none.
    """
    from export.bundle.costs import read_costs
    from runtime.manifest import Manifest

    count = 0
    folds: list[str] = []
    for bundle in bundles:
        manifest = Manifest.load(bundle)
        folds = manifest.folds
        bucket = next(b for b in manifest.buckets if f"{b.height}x{b.width}" == resolution)
        count += read_costs(bundle / bucket.graph)["all"].multiply_adds // bucket.batch
    return {"multiply_adds": count, "folds": folds} if bundles else {}


def _bytes(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.iterdir() if path.is_file())


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
