"""The guard of a refactor: `python -m benchmarks.replay [ENTRY ...] [--update]`.

Each entry is one build of a tiny checkpoint, small and without a vendor's engine; in int8 every
layer that can be int8 is. The script keeps a hash of each graph and of the golden:

    graph    nodes in their order with names, operators, attributes and types, which value goes
             where, and the bytes of every weight; names of values do not count
    golden   every array of golden.npz

and compares it with the committed list, `benchmarks/replay.json`. A refactor leaves that list as
it is. Where a graph is meant to change, `--update` writes the new hashes, and the commit says why.

Weights and goldens come from floating-point sums, which another CPU or another version of PyTorch
may round in another way. So the list says where it was made, and holds sums of each stage's
weights. Elsewhere an entry whose bytes differ counts as the same where these sums agree to 1e-4,
and the script says so. Where the list was made, every byte counts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rows
from benchmarks.random_checkpoints import save_family
from export.versions import tool_versions
from runtime.extras import require

LIST = Path(__file__).with_name("replay.json")
ROOT = LIST.parents[1]
_CLOSE = 1e-4
_RANDOM = "random:"
_DRAWING = threading.Lock()
_ALL_INT8 = 1e6  # an error limit that nothing exceeds: no search

_PRECISIONS = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16", "int8"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16", "int8"),
}
_TINY = [f"{task}-{mode}" for task in ("disparity", "depth", "normal") for mode in "dg"]
ENTRIES: dict[str, tuple[str, ...]] = {
    f"{name}-{precision}-{target}": (f"tiny/{name}", "--target", target, "--precision", precision)
    for name in _TINY
    for target, precisions in _PRECISIONS.items()
    for precision in precisions
}
ENTRIES |= {
    # With the settings of the others these two are beyond the tolerance of their golden.
    name: (*ENTRIES[name], "--resolution", "128x128", "--seed", "1")
    for name in ("normal-d-int8-openvino", "normal-g-int8-onnxruntime")
}
ENTRIES |= {
    "plain": ("tiny/disparity-d", "--no-folds"),
    "plain-int8": ("tiny/disparity-d", "--no-folds", "--target", "openvino", "--precision", "int8"),
    "opset-20": ("tiny/disparity-d", "--opset", "20"),
    "two-sizes": ("tiny/normal-d", "--resolution", "64x64,64x104"),
    "fixed-noise": ("tiny/disparity-g", "--fixed-noise", "--target", "openvino", "--seed", "3"),
    "small-vae": ("tiny/disparity-d", "--vae", "tiny/taesd"),
    "small-vae-int8": (
        *("tiny/disparity-d", "--vae", "tiny/taesd"),
        *("--target", "openvino", "--precision", "int8"),
    ),
    "joint": ("tiny/disparity-d", "tiny/normal-g", "--batch", "1,2"),
    "joint-int8": (
        *("tiny/disparity-d", "tiny/normal-d"),
        *("--target", "openvino", "--precision", "int8"),
    ),
}
# Of the other families there are no small trained networks: these are random, made for the build.
_FAMILIES = {
    "marigold-depth": ("random:v1-0", "--family", "marigold", "--task", "depth"),
    "marigold-normal": ("random:v1-1", "--family", "marigold", "--task", "normal"),
    "e2e-ft-depth": ("random:e2e", "--family", "diffusion-e2e-ft", "--task", "depth"),
    "e2e-ft-normal": ("random:e2e", "--family", "diffusion-e2e-ft", "--task", "normal"),
    "genpercept-matting": ("random:genpercept", "--family", "genpercept", "--task", "matting"),
}
ENTRIES |= {
    **{f"{name}-fp32-onnxruntime": words for name, words in _FAMILIES.items()},
    **{
        f"{name}-{precision}-{target}": (
            *_FAMILIES[name],
            *("--target", target, "--precision", precision),
        )
        for name, precision, target in (
            ("marigold-depth", "int8", "openvino"),
            ("e2e-ft-normal", "bf16", "openvino"),
            ("genpercept-matting", "fp16", "tensorrt"),
        )
    },
    "joint-families": (
        *("random:e2e", "random:e2e", "--task", "depth,normal"),
        *("--family", "diffusion-e2e-ft,marigold"),
    ),
}
"""What is built, by name: the words of a command line; 64x64 unless they say otherwise. "random:X"
is a checkpoint of `random_checkpoints.save_family` with scheduler X.
"""
QUICK = ("disparity-d-fp32-onnxruntime", "normal-g-int8-tensorrt", "small-vae-int8")
"""The entries that run among the tests."""


def main(argv: list[str] | None = None) -> int:
    """Compare, or update the list. Exit status 1 where an entry differs or failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help="default: all")
    parser.add_argument("--update", action="store_true", help="write what is found into the list")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    arguments = parser.parse_args(argv)
    names = arguments.entries or list(ENTRIES)
    if unknown := set(names) - set(ENTRIES):
        parser.error(f"unknown entries {sorted(unknown)}; known: {', '.join(ENTRIES)}")
    require("torch")
    made_on, known = read_list()
    failed = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for number, (name, found) in enumerate(zip(names, pool.map(build, names), strict=True), 1):
            verdict = compare(known.get(name), found, exactly=made_on == machine())
            print(f"[{number}/{len(names)}] {name}: {verdict}", flush=True)
            if not verdict.startswith("same"):
                failed.append(name)
            if arguments.update:
                known[name] = found
                ordered = {entry: known[entry] for entry in ENTRIES if entry in known}
                body = {"made_on": machine(), "entries": ordered}
                LIST.write_text(json.dumps(body, indent=1) + "\n")
    print(f"{len(names) - len(failed)} of {len(names)} entries are as in {LIST.name}")
    return 1 if failed and not arguments.update else 0


def build(name: str) -> dict[str, Any]:
    """Build one entry in a process of its own; what `fingerprint` finds, or {"error": words}."""
    words = list(ENTRIES[name])
    if "--resolution" not in words:
        words += ["--resolution", "64x64"]
    if "int8" in words and "tensorrt-rtx" not in words:  # which has int8 weights alone
        checkpoints = ("tiny/", _RANDOM)
        count = sum(word.startswith(checkpoints) and word != "tiny/taesd" for word in words)
        words += ["--budget", ",".join([str(_ALL_INT8)] * count)]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        words = [_found(word, Path(folder)) for word in words]
        words += ["--calibration-images", "1", "--output", str(bundle)]
        # Without the vendor's package the engine is left to the device.
        code = (
            "import sys; sys.modules['tensorrt_rtx'] = sys.modules['tensorrt'] = None\n"
            "from export.build_engine import main; sys.exit(main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return {"error": done.stderr[-2000:]}
        return fingerprint(bundle)


def _found(word: str, folder: Path) -> str:
    """The word, or the path of the random checkpoint that it names, made in `folder`."""
    if not word.startswith(_RANDOM):
        return word
    scheduler = word.removeprefix(_RANDOM)
    made = folder / scheduler
    with _DRAWING:  # all threads share PyTorch's generator
        if not made.exists():
            save_family(made, scheduler, channels=4 if scheduler == "genpercept" else 8)
    return str(made)


def read_list() -> tuple[dict[str, str], dict[str, Any]]:
    """Where the committed list was made, and its entries by name."""
    body = json.loads(LIST.read_text()) if LIST.exists() else {"made_on": {}, "entries": {}}
    return body["made_on"], body["entries"]


def machine() -> dict[str, str]:
    """What the last digits depend on: CPU, instruction sets, caches, the version of PyTorch."""
    facts = rows.machine()
    cpu = {name: facts.get(name, "unknown") for name in ("cpu", "isa")}
    details = Path("/proc/cpuinfo")
    if details.exists():
        pairs = (line.split(":", 1) for line in details.read_text().splitlines() if ":" in line)
        known = {key.strip(): value.strip() for key, value in pairs}
        names = ("cpu family", "model", "stepping", "cache size")
        cpu |= {name: known[name] for name in names if name in known}
    return cpu | tool_versions(["torch"])


def compare(known: dict[str, Any] | None, found: dict[str, Any], *, exactly: bool) -> str:
    """A verdict in words; one that begins with "same" is good. `exactly`: every byte counts."""
    if "error" in found:
        return f"FAILED: {found['error']}"
    if known is None:
        return "not in the list"
    if set(known) != set(found):
        return f"DIFFERENT files: {sorted(known)} in the list, {sorted(found)} found"
    changed = [file for file, was in known.items() if _hashes(was) != _hashes(found[file])]
    if not changed:
        return "same"
    turned = [f for f in changed if known[f].get("structure") != found[f].get("structure")]
    if turned:
        return f"DIFFERENT structure of {', '.join(turned)}"
    if exactly:
        return f"DIFFERENT values in {', '.join(changed)}, on the kind of machine of the list"
    for file, was in known.items():
        now = found[file]
        first, second = (np.array(list(side["sums"].values())) for side in (was, now))
        if was["sums"].keys() != now["sums"].keys() or not np.allclose(first, second, rtol=_CLOSE):
            return f"DIFFERENT values in {file}: {was['sums']} in the list, {now['sums']} found"
    return "same, but for the last digits of values (another CPU?)"


def _hashes(entry: dict[str, Any]) -> dict[str, str]:
    """An entry without its sums, whose last digits depend on the number of threads."""
    return {name: value for name, value in entry.items() if name != "sums"}


def fingerprint(bundle: Path) -> dict[str, Any]:
    """Of each graph and of the golden of a bundle."""
    found = {graph.name: _of_graph(graph) for graph in sorted(bundle.glob("*.onnx"))}
    with np.load(bundle / "golden.npz") as golden:
        arrays = {name: golden[name] for name in sorted(golden.files)}
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    sums = {name: _sums(array) for name, array in arrays.items()}
    return found | {"golden.npz": {"sha256": digest.hexdigest(), "sums": sums}}


def _of_graph(path: Path) -> dict[str, Any]:
    import onnx_ir as ir

    graph = ir.load(path).graph
    numbers: dict[ir.Value, int] = {}
    lines, weights, stages = [], hashlib.sha256(), {}

    def number(value: ir.Value | None, stage: str) -> str:
        if value is None:
            return "-"
        if value not in numbers:
            numbers[value] = len(numbers)
            if value.const_value is not None:
                array = value.const_value.numpy()
                lines.append(f"weight {numbers[value]} {value.const_value.dtype} {array.shape}")
                weights.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
                total = stages.setdefault(stage, [0.0, 0.0])
                for place, part in enumerate(_sums(array)):
                    total[place] += part
        return str(numbers[value])

    imports = sorted(graph.opset_imports.items())
    for value in graph.inputs:
        lines.append(f"input {value.name} {value.dtype} {value.shape} {number(value, '')}")
    for node in graph:
        stage = str(node.name).split("/")[0]
        inputs = [number(value, stage) for value in node.inputs]
        outputs = [number(value, stage) for value in node.outputs]
        attributes = [
            f"{name}={_attribute(attribute)}" for name, attribute in sorted(node.attributes.items())
        ]
        kinds = [f"{value.dtype} {value.shape}" for value in node.outputs]
        lines.append(" ".join([str(node.name), node.domain, node.op_type, *inputs, *outputs]))
        lines.append(" ".join([*attributes, *kinds]))
    for value in graph.outputs:
        lines.append(f"output {value.name} {value.dtype} {value.shape} {number(value, '')}")
    text = "\n".join([str(imports), *lines])
    return {
        "structure": hashlib.sha256(text.encode()).hexdigest(),
        "weights": weights.hexdigest(),
        "sums": stages,
    }


def _attribute(attribute: Any) -> str:
    value = attribute.value
    if hasattr(value, "numpy"):
        return hashlib.sha256(np.ascontiguousarray(value.numpy())).hexdigest()
    return str(value)


def _sums(array: np.ndarray) -> list[float]:
    """The sum of magnitudes, and one with weights from 1 to 2, which sees a change of order."""
    values = np.abs(np.asarray(array, dtype=np.float64).reshape(-1))
    return [float(values.sum()), float(values @ np.linspace(1, 2, values.size))]


if __name__ == "__main__":
    sys.exit(main())
