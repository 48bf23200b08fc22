"""The backends' contract with other library versions: `python -m benchmarks.versions`.

Each line runs in a virtual environment of its own with exactly the named versions: the tests of
tests/test_runtime_contract.py, or, for a version that is known to answer wrong, one prediction,
which must be refused. What is no backend runs the tests of what needs it. Bundles are built once,
in the environment at hand. Environments are kept below out/versions/, so that a run that was
stopped goes on quickly. `--machine aarch64`: the lines for ARM, in QEMU (benchmarks/arm.py).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import arm
from benchmarks.rows import ROOT, parse_arguments, write_rows
from export.pipeline import build
from export.progress import Progress
from export.settings import BuildSettings
from export.targets import TARGETS
from runtime.errors import LotusError

FOLDER = ROOT / "out" / "versions"
CONTRACT = "tests/test_runtime_contract.py"
OTHERS = {
    "av": ["tests/test_apps_video.py", "tests/test_apps_video_odd.py"],
    "numba": ["tests/test_runtime_loops.py"],
}
"""Libraries that are no backends, with the tests of what needs them."""
BUNDLES = "LOTUS_EDGE_CONTRACT"
"""Names the folder of ready bundles to the tests."""
TOOLS = ("pytest>=8",)
NEW = {"python": "3.11", "numpy": "2.4.6", "pillow": "13.0.0"}
"""What the project is developed with."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One environment, of a backend or of what is in OTHERS. `right`: the contract must hold;
    otherwise a prediction must be refused, or, with `unlisted`, found wrong by its golden sample:
    the table of known versions is emptied. `machine`: "" is this one.
    """

    backend: str
    version: str
    python: str = NEW["python"]
    numpy: str = NEW["numpy"]
    pillow: str = NEW["pillow"]
    opset: int = 23
    machine: str = ""
    right: bool = True
    unlisted: bool = False

    @property
    def packages(self) -> list[str]:
        """What pip installs."""
        return [
            f"numpy=={self.numpy}",
            f"pillow=={self.pillow}",
            f"{self.backend}=={self.version}",
            *(TOOLS if self.right else ()),
        ]

    @property
    def name(self) -> str:
        """Of the environment's folder."""
        words = ["py" + self.python, "numpy" + self.numpy, "pillow" + self.pillow]
        return "-".join([*words, self.backend + self.version, *filter(None, [self.machine])])

    @property
    def tests(self) -> list[str]:
        """What pytest is given."""
        return OTHERS.get(self.backend) or [CONTRACT, "-k", f"[{self.backend}]"]


_INT8: dict[str, Any] = {"precision": "int8", "calibration_images": 2, "budget": (10.0,)}

LINES = (
    Line(backend="onnxruntime", version="1.23.0"),
    Line(backend="onnxruntime", version="1.32.0"),
    Line(backend="openvino", version="2026.3.0"),
    Line(backend="openvino", version="2026.4.1"),
    Line(backend="openvino", version="2025.4.0", opset=20, numpy="2.2.6"),
    Line(backend="openvino", version="2026.2.1", opset=20),
    Line(backend="openvino", version="2025.4.0", numpy="2.2.6", right=False),
    Line(backend="openvino", version="2026.1.0", right=False),
    Line(backend="openvino", version="2026.2.0", right=False),
    Line(backend="openvino", version="2026.2.1", right=False),
    Line(backend="openvino", version="2026.2.1", right=False, unlisted=True),
    Line(backend="onnxruntime", version="1.32.0", numpy="1.26.0"),
    Line(backend="openvino", version="2026.4.1", numpy="1.26.0"),
    Line(backend="onnxruntime", version="1.23.0", python="3.10", numpy="2.2.6", pillow="12.3.0"),
    Line(backend="openvino", version="2026.4.1", python="3.10", numpy="2.2.6", pillow="12.3.0"),
    Line(backend="onnxruntime", version="1.32.0", python="3.13"),
    Line(backend="openvino", version="2026.4.1", python="3.13"),
    Line(backend="onnxruntime", version="1.32.0", python="3.14", numpy="2.5.5"),
    Line(backend="openvino", version="2026.4.1", python="3.14", numpy="2.5.5"),
    Line(backend="av", version="17.0.0", python="3.10", numpy="2.2.6", pillow="12.3.0"),
    Line(backend="av", version="18.1.0"),
    Line(backend="av", version="19.0.2", python="3.12"),
    Line(backend="av", version="19.0.2", python="3.13"),
    Line(backend="av", version="19.0.2", python="3.14", numpy="2.5.5"),
    Line(backend="numba", version="0.62.0", python="3.10", numpy="2.2.6", pillow="12.3.0"),
    Line(backend="numba", version="0.68.1"),
    Line(backend="numba", version="0.68.1", python="3.12"),
    Line(backend="numba", version="0.68.1", python="3.13"),
    Line(backend="numba", version="0.68.1", python="3.14", numpy="2.5.5"),
    Line(backend="onnxruntime", version="1.32.0", machine=arm.NAME),
    Line(backend="openvino", version="2026.4.1", machine=arm.NAME),
    Line(backend="numba", version="0.68.1", machine=arm.NAME),
)


def main() -> int:
    """Run every line, print and save the table. Status 1 where one is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="environments with this in their name")
    parser.add_argument("--machine", default="", choices=["", arm.NAME])
    arguments = parse_arguments(parser)
    machine = arguments.machine
    lines = [each for each in LINES if each.machine == machine and arguments.only in each.name]
    _build_bundles({line.opset for line in lines if line.backend not in OTHERS})
    try:
        described = arm.describe() if machine else ""
    except LotusError as error:
        parser.error(str(error))
    rows = []
    for number, line in enumerate(lines, start=1):
        start = time.perf_counter()
        outcome, fine = _run(line)
        rows.append(
            {
                "backend": line.backend,
                "version": line.version,
                "machine": described,
                "opset": None if line.backend in OTHERS else line.opset,
                "python": line.python,
                "numpy": line.numpy,
                "pillow": line.pillow,
                "expected": "right" if line.right else "refused",
                "outcome": outcome,
                "as_expected": fine,
            }
        )
        seconds = time.perf_counter() - start
        words = f"{line.name} opset {rows[-1]['opset'] or '-'}: {outcome} ({seconds:.0f} s)"
        print(f"[{number}/{len(lines)}] {words}")
    name = "-".join(["versions", *filter(None, [machine, arguments.only])])
    print(f"rows: {write_rows(name, rows, dirty=arguments.dirty).name}")
    return 0 if all(row["as_expected"] for row in rows) else 1


def _run(line: Line) -> tuple[str, bool]:
    """What came out, in words, and whether it is what must come out."""
    try:
        python = _environment(line)
    except LotusError as error:
        return f"not run: {error}", False
    if line.right:
        return _contract(line, python)
    return _refusal(line, python)


def _contract(line: Line, python: Path) -> tuple[str, bool]:
    """The tests of the line."""
    done = _call(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *line.tests],
        {BUNDLES: str(_bundles(line.opset))},
    )
    last = done.stdout.strip().rpartition("\n")[2]
    summary = re.findall(r"\d+ (?:passed|failed|skipped|error)\w*", last)
    passed = done.returncode == 0 and any("passed" in word for word in summary)
    found = ", ".join(summary) or " ".join((done.stdout + done.stderr).split())[-300:]
    return found or f"status {done.returncode}, no output", passed


def _refusal(line: Line, python: Path) -> tuple[str, bool]:
    """One prediction, which must end in an error and leave no map."""
    output = FOLDER / "refused"
    shutil.rmtree(output, ignore_errors=True)
    bundle = _bundles(line.opset) / line.backend / "map"
    words = ["predict", bundle, ROOT / "tiny" / "samples" / "room.png", "--output", output]
    program = "import sys; from runtime.__main__ import main; sys.exit(main(sys.argv[1:]))"
    if line.unlisted:
        program = (
            "import dataclasses; from runtime.backends import BACKENDS; "
            f"BACKENDS['{line.backend}'] = dataclasses.replace("
            f"BACKENDS['{line.backend}'], known=()); {program}"
        )
    done = _call([python, "-c", program, *words], {"LOTUS_EDGE_CACHE": "off"})
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    message = errors[-1] if errors else f"status {done.returncode}, no error"
    fine = done.returncode == 1 and not list(output.rglob("*.npy"))
    message = message.removeprefix("error: ").replace(str(bundle), "BUNDLE")
    return message[:200], fine and bool(errors)


def _call(words: list[object], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", **variables}
    return subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _environment(line: Line) -> Path:
    """The interpreter of the line's environment, made where it is not there yet.

    Raises: LotusError where there is no such Python, or pip fails.
    """
    folder = FOLDER / line.name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / ".ready").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    if line.machine:
        arm.make_environment(folder, line.python, line.packages)
    else:
        arm.run(_find_python(line.python), "-m", "venv", folder)
        arm.run(python, "-m", "pip", "install", "--quiet", *line.packages)
    (folder / ".ready").touch()
    return python


def _find_python(version: str) -> str:
    """An interpreter of this version. Raises: LotusError."""
    for candidate in _candidates(version):
        done = subprocess.run(
            [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.stdout.strip() == version:
            return candidate
    raise LotusError(f"no Python {version} on this machine")


def _candidates(version: str) -> Iterator[str]:
    yield sys.executable
    if found := shutil.which(f"python{version}"):
        yield found
    for folder in sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}*")):
        yield str(folder / "bin" / "python")


def _bundles(opset: int) -> Path:
    return FOLDER / "bundles" / f"opset{opset}"


def _build_bundles(opsets: set[int]) -> None:
    """For each backend `d`, `g` and `int8`, as the contract wants them, and `map`, a trained one.

    int8 has the opset of its recipe, unless an older one is asked for.
    """
    square, wide = (64, 64), (64, 104)
    for opset in sorted(opsets):
        for target in ("onnxruntime", "openvino"):
            older = opset < TARGETS[target].opset
            for name, checkpoint, sizes, more in (
                ("d", "tiny/depth-d", (square, wide), {"opset": opset}),
                ("g", "tiny/normal-g", (square,), {"opset": opset, "seed": 7}),
                ("map", "tiny/disparity-d", ((256, 256),), {"opset": opset}),
                ("int8", "tiny/depth-d", (square,), _INT8 | ({"opset": opset} if older else {})),
            ):
                output = _bundles(opset) / target / name
                if output.exists():
                    continue
                print(f"building {output.relative_to(ROOT)}")
                with Progress(sys.stderr):
                    build(
                        BuildSettings(
                            checkpoint=checkpoint,
                            resolutions=sizes,
                            target=target,
                            output=output,
                            **more,
                        )
                    )


if __name__ == "__main__":
    sys.exit(main())
