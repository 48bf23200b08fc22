"""Where a bundle's time goes, by stage and operator: `python -m benchmarks.profile --bundle B`.

The engine's own profiler counts, over a few predictions on the golden's first image, after one that
is not counted. Profiling costs a little itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import parse_arguments, write_rows
from export.graph.stages import STAGES
from runtime.backends import BACKENDS
from runtime.backends.onnxruntime import may_saturate, session_options
from runtime.backends.openvino import hints
from runtime.backends.session import import_vendor
from runtime.manifest import Bucket, Manifest

Feeds = dict[str, NDArray[np.float32]]
Times = Counter[tuple[str, str]]
"""Seconds by (stage, operator)."""


def main() -> int:
    """Profile, print the operators that take the most, save all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--backend", choices=PROFILERS, help="default: the bundle's target")
    parser.add_argument("--runs", type=int, default=2)
    arguments = parse_arguments(parser)
    manifest = Manifest.load(arguments.bundle)
    backend = arguments.backend or manifest.target
    bucket = manifest.buckets[0]
    feeds = golden_feeds(arguments.bundle, manifest, bucket)
    times = PROFILERS[backend](arguments.bundle, manifest, bucket, feeds, arguments.runs)
    name = manifest.name + ("" if manifest.folds else "-plain")
    rows = [
        {
            "bundle": name,
            "backend": backend,
            "stage": stage,
            "operator": operator,
            "seconds": seconds,
        }
        for (stage, operator), seconds in times.most_common()
    ]
    total = times.total()
    for stage in dict.fromkeys(stage for stage, _ in times):
        seconds = sum(seconds for (of, _), seconds in times.items() if of == stage)
        print(f"{stage:<10}{'':<28}{seconds:8.3f} s {seconds / total:6.1%}")
    for row in rows[:25]:
        print(
            f"{row['stage']:<10}{row['operator']:<28}{row['seconds']:8.3f} s "
            f"{row['seconds'] / total:6.1%}"
        )
    title = f"profile-{name}" + (f"-on-{backend}" if backend != manifest.target else "")
    print(f"rows: {write_rows(title, rows, dirty=arguments.dirty).name}")
    return 0


def golden_feeds(folder: Path, manifest: Manifest, bucket: Bucket) -> Feeds:
    """The golden's first image, and its noise in mode G, as the bucket's inputs."""
    golden = np.load(folder / manifest.golden.file)
    feeds = {"image": manifest.preprocess.apply(golden[f"image_{bucket}"])}
    if "noise" in manifest.input_shapes(bucket):
        feeds["noise"] = golden[f"noise_{bucket}"]
    return feeds


def _onnxruntime(
    folder: Path, manifest: Manifest, bucket: Bucket, feeds: Feeds, runs: int
) -> Times:
    import onnx

    ort = import_vendor(BACKENDS["onnxruntime"])

    with tempfile.TemporaryDirectory() as log_folder:
        options = session_options(ort, saturates=may_saturate(manifest, "onnxruntime"))
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(log_folder) / "profile")
        session = ort.InferenceSession(
            str(folder / bucket.graph), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(runs + 1):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    counted = sorted(event["ts"] for event in events if event["name"] == "model_run")[1]
    nodes_run = [event for event in events if event.get("cat") == "Node" and event["ts"] >= counted]
    kernels = [event for event in nodes_run if event["name"].endswith("_kernel_time")]
    # Convolutions in the blocked layout bear the name of their output; reorders have numbers. Both
    # follow their stage.
    nodes = onnx.load(folder / bucket.graph, load_external_data=False).graph.node
    stages = {value: node.name.split("/")[0] for node in nodes for value in node.output}
    times: Times = Counter()
    stage = STAGES[0]
    for event in kernels:
        name = event["name"].removesuffix("_kernel_time")
        stage = (
            name.split("/")[0]
            if name.split("/")[0] in STAGES
            else stages.get(name.removesuffix("_nchwc"), stage)
        )
        times[stage, event["args"]["op_name"]] += event["dur"] / 1e6 / runs
    return times


def _openvino(folder: Path, manifest: Manifest, bucket: Bucket, feeds: Feeds, runs: int) -> Times:
    openvino = import_vendor(BACKENDS["openvino"])
    core = openvino.Core()
    graph = core.read_model(str(folder / bucket.graph))
    request = core.compile_model(
        graph, "CPU", hints(graph, manifest.precision) | {"PERF_COUNT": "YES"}
    ).create_infer_request()
    times: Times = Counter()
    request.infer(feeds)
    for _ in range(runs):
        request.infer(feeds)
        stage = STAGES[0]
        for layer in request.profiling_info:  # layers that OpenVINO adds follow their stage
            stage = (
                layer.node_name.split("/")[0] if layer.node_name.split("/")[0] in STAGES else stage
            )
            times[stage, layer.node_type] += layer.real_time.total_seconds() / runs
    return times


PROFILERS: dict[str, Callable[[Path, Manifest, Bucket, Feeds, int], Times]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}

if __name__ == "__main__":
    sys.exit(main())
