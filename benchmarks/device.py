"""What lotus-edge does on this device, in one command: `python -m benchmarks.device`.

For each backend that can open here it builds the bundles or finishes their engines, verifies them,
and measures latency by stage, memory, clocks and temperature, with PyTorch and the roofline beside
it. On NVIDIA it also proves the CUDA plumbing without TensorRT, and what the folds are worth in
PyTorch. The report, a plot and the rows come into --folder: attach them to an issue. What cannot be
done is a line with the reason. Steps that are finished are kept there, and the next run goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.baselines import Work
from benchmarks.on_device import kept as keeping
from benchmarks.on_device import page, plot
from benchmarks.on_device.contenders import NAMES, Contender, contenders, given_bundles
from benchmarks.on_device.facts import OPENVINO_DEVICES, not_installed, packages
from benchmarks.on_device.kept import Kept, Outcome
from benchmarks.on_device.plan import Setting, Step, plan
from benchmarks.on_device.running import StepFailed, TimeUp, run_step
from benchmarks.rows import ROOT, describe, parse_arguments, write_rows
from runtime.errors import LotusError
from runtime.manifest import Manifest
from runtime.writing import write_together

_FACTS_SECONDS = 120.0  # importing the vendors' packages from a cold disk


class Stopped(Exception):
    """A signal came; its number."""


def main(words: list[str] | None = None) -> int:
    """Status 0 when something was measured, 1 when nothing was, 130 or 143 when a signal stopped
    it; the report is written all the same.
    """
    arguments = _parse(words)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        store = Kept(arguments.folder.resolve())
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        return Run(store, arguments).whole()
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:  # before the first step
        return 128 + int(stopped.args[0])
    finally:
        store.close()


class Run:
    """One run of the command: outcomes by the names of the steps."""

    def __init__(self, store: Kept, arguments: argparse.Namespace) -> None:
        self.store = store
        self.arguments = arguments
        self.end = time.monotonic() + 60 * arguments.budget
        self.outcomes: dict[str, Outcome] = {}
        self.common: dict[str, Any] = {}
        self.fresh: list[str] = []

    def whole(self) -> int:
        """Everything; the status of the command."""
        arguments = self.arguments
        _say("what this machine is")
        facts = self._facts()
        work = self._work()
        every = self._contenders(work)
        setting = Setting(
            work=work, image=str(arguments.image.resolve()), seconds=arguments.seconds
        )
        steps = plan(every, facts, setting)
        self.common |= {"facts": {name: facts[name] for name in _DECIDES}}
        status = 0
        try:
            for number, step in enumerate(steps, 1):
                self._do(step, f"[{number}/{len(steps)}]")
        except Stopped as stopped:
            for signal_number in (signal.SIGTERM, signal.SIGINT):  # the report takes a moment
                signal.signal(signal_number, signal.SIG_IGN)
            status = 128 + int(stopped.args[0])
            _say("stopped; what is finished is kept, the same command goes on from there")
        self._report(facts, every, steps, work)
        measured = [name for name in self.outcomes if name.endswith(".latency")]
        return status or (0 if any("result" in self.outcomes[name] for name in measured) else 1)

    def _facts(self) -> dict[str, Any]:
        """Asked anew in each run: power mode and versions may have changed."""
        body = describe([])
        self.common = {"commit": body["commit"], "code": keeping.code_digest()}
        try:
            found: dict[str, Any] = self._ask("facts", {})
        except (StepFailed, TimeUp) as error:
            raise LotusError(f"this machine cannot be described: {error}") from error
        reasons = not_installed()
        asked = [("backends", {"names": names}, names) for names in packages().values()]
        asked.append(("pytorch", {"nvidia": found["nvidia"]}, ["pytorch"]))
        for action, options, names in asked:  # a process each: a broken package ends but its own
            try:
                reasons |= self._ask(action, options)
            except (StepFailed, TimeUp) as error:
                reasons |= dict.fromkeys(names, str(error))
        for device in OPENVINO_DEVICES:
            reasons.setdefault(f"openvino:{device}", reasons["openvino"])
        return found | {"backends": reasons}

    def _ask(self, action: str, options: dict[str, Any]) -> Any:
        """Raises: StepFailed, TimeUp."""
        return run_step(action, options, folder=self.store.folder, seconds=_FACTS_SECONDS)

    def _work(self) -> Work:
        """What PyTorch does beside the contenders: what a bundle of the user holds, where its
        checkpoint can be known from it. Raises: BundleError.
        """
        arguments = self.arguments
        checkpoint, resolution = arguments.checkpoint, arguments.resolution
        task = arguments.task
        if arguments.bundle:
            manifest = Manifest.load(arguments.bundle[0])
            bucket, known = manifest.buckets[0], manifest.checkpoint.id
            resolution, task = f"{bucket.height}x{bucket.width}", task or manifest.tasks[0]
            one = known.startswith(_ALWAYS_HERE) and len(manifest.tasks) == 1
            checkpoint = checkpoint or (known if one else "")
        else:
            checkpoint = checkpoint or "random/lotus-d"
        return Work(checkpoint=checkpoint, resolution=resolution, task=task)

    def _contenders(self, work: Work) -> list[Contender]:
        """Raises: BundleError."""
        bundles = self.store.folder / "bundles"
        if self.arguments.bundle:
            return list(given_bundles(self.arguments.bundle, bundles))
        return contenders(work, bundles, self.arguments.only)

    def _do(self, step: Step, number: str) -> None:
        before = {name: self.outcomes[name].get("key") for name in step.after}
        uses = {
            name: self.outcomes.get(other, {}).get("result") for name, other in step.uses.items()
        }
        options = dict(step.options) | uses
        identity = [
            self.outcomes[name]["result"].get("manifest")
            for name in step.after
            if "result" in self.outcomes[name]
        ]
        key = keeping.key_of(
            {"action": step.action} | options, self.common, before | {"bundles": identity}
        )
        lacking = [name for name in step.after if "result" not in self.outcomes[name]]
        if step.why_not or lacking:
            self.outcomes[step.name] = {
                "not_measured": step.why_not or f"without {lacking[0]}, see there"
            }
            return
        found = self.store.load(step.name, key)
        if found is not None:
            self.outcomes[step.name] = found
            _say(f"{number} {step.title}: kept from {found['when']}")
            return
        outcome = self._try(step, options, key, number)
        self.outcomes[step.name] = outcome

    def _try(self, step: Step, options: dict[str, Any], key: str, number: str) -> Outcome:
        """Run it within what is left of the budget, and keep what comes out."""
        left = self.end - time.monotonic()
        spent = self.store.ran_out_after(step.name, key)
        budget = f"the budget of {self.arguments.budget:g} minutes"
        if left < 1:
            return {"not_measured": f"{budget} was used up; the next run goes on from here"}
        if left < 1.1 * spent:  # later steps shall have their turn
            reason = f"it was not done within {spent:.0f} s before, and {left:.0f} s were left"
            return {"not_measured": f"{reason}; a larger --budget measures it"}
        _say(f"{number} {step.title}: begins, {left:.0f} s left")
        start, when = time.monotonic(), datetime.datetime.now(datetime.timezone.utc)
        outcome: Outcome = {"key": key, "when": when.isoformat(timespec="seconds")}
        try:
            result = run_step(step.action, options, folder=self.store.folder, seconds=left)
        except TimeUp as error:
            outcome |= {
                "not_measured": f"{error}, when {budget} was used up; the next run tries again",
                "stopped_after": time.monotonic() - start,
            }
        except StepFailed as error:
            outcome |= {"not_measured": str(error)}
        else:
            outcome |= {"result": result, "seconds": time.monotonic() - start}
            self.fresh.append(step.name)
        self.store.save(step.name, outcome)
        took = time.monotonic() - start
        _say(f"{number} {step.title}: {outcome.get('not_measured', f'done in {took:.1f} s')}")
        return outcome

    def _report(
        self, facts: dict[str, Any], every: list[Contender], steps: list[Step], work: Work
    ) -> None:
        """Rows, plot and page; the plot may be missing, with the reason on the page."""
        folder, arguments = self.store.folder, self.arguments
        rows = page.rows(facts, every, steps, self.outcomes, work)
        body = describe(rows)
        write_together({folder / "row.json": json.dumps(body, indent=2).encode() + b"\n"})
        try:
            plot.plot_device(body, folder / "report.png")
            no_plot = ""
        except (ImportError, OSError, ValueError) as error:
            (folder / "report.png").unlink(missing_ok=True)
            no_plot = f"no plot: {error}"
        done = [name for name, outcome in self.outcomes.items() if "result" in outcome]
        kept = len(done) - len(self.fresh)
        text = page.render(body, no_plot, kept=kept)
        write_together({folder / "report.md": text.encode()})
        if arguments.name:
            saved = write_rows(arguments.name, rows, dirty=arguments.dirty)
            if not no_plot:
                shutil.copyfile(folder / "report.png", saved.with_suffix(".png"))
            print(f"rows: {saved.name}")
        print(folder / "report.md")


_DECIDES = ("device", "gpu", "machine", "settings", "versions")
"""The facts that a kept step depends on."""
_ALWAYS_HERE = ("random/", "tiny/")
"""Checkpoints that are made here, not fetched."""


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", default="", help="default: random/lotus-d, full size with random weights")
    add("--task", default="", help="as build_engine takes it")
    add("--resolution", default="512x512", type=_resolution, metavar="HxW")
    add(
        "--bundle",
        nargs="+",
        type=Path,
        default=[],
        metavar="BUNDLE",
        help="measure these instead of building; an engine that one lacks is built in a copy",
    )
    add("--only", nargs="+", default=[], choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    add(
        "--budget",
        type=_positive,
        default=10.0,
        metavar="MINUTES",
        help="of the whole run; default 10",
    )
    add(
        "--seconds",
        type=_positive,
        default=20.0,
        help="that each measurement repeats, three times at least; default 20",
    )
    add("--image", type=Path, default=ROOT / "tiny" / "samples" / "room.png")
    add(
        "--folder",
        type=Path,
        default=ROOT / "out" / "device",
        help="of the report, of finished steps and of the bundles (up to 4 GB each)",
    )
    add("--name", help="write rows and plot to benchmarks/results/NAME too")
    arguments = parse_arguments(parser, words, wanted=lambda parsed: bool(parsed.name))
    if arguments.bundle and arguments.only:
        parser.error("--bundle and --only exclude each other")
    if "," in arguments.checkpoint:
        parser.error("--checkpoint is one checkpoint; measure a joint bundle with --bundle")
    if not arguments.image.is_file():
        parser.error(f"--image: there is no file {arguments.image}")
    return arguments


def _resolution(text: str) -> str:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"HxW, such as 512x512; found {text!r}")
    return text


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"a number above 0, found {text!r}")
    return number


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
