"""`python -m benchmarks.device`: its steps, what it keeps, what it says of what is missing, and the
command end to end on the null backend.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_null_bundle

from benchmarks import device
from benchmarks.baselines import Work
from benchmarks.on_device import kept, plot, running
from benchmarks.on_device.contenders import NAMES, contenders, given_bundles, why_not
from benchmarks.on_device.plan import Setting, build_name, plan
from runtime.backends import BACKENDS
from runtime.errors import OutputError
from runtime.manifest import Manifest

WORK = Work(checkpoint="tiny/disparity-d", resolution="64x64")
DRAW = plot.plot_device
SETTING = Setting(work=WORK, image="room.png", seconds=1.0)


def machine_with(*usable: str, nvidia: bool = False, no_torch: str = "") -> dict[str, Any]:
    """Facts of a machine on which only these backends open, and PyTorch unless `no_torch` says
    why not.
    """
    places = [*BACKENDS, "openvino:GPU", "openvino:NPU"]
    return {
        "device": "NVIDIA Jetson Orin Nano Developer Kit" if nvidia else "a CPU",
        "nvidia": nvidia,
        "gpu": "Orin" if nvidia else "none",
        "gpus": [],
        "machine": {"arch": "x86_64", "cores": "2", "os": "Linux", "python": "3.11", "isa": ""},
        "settings": {},
        "versions": {"torch": "2"},
        "backends": {name: "" if name in usable else f"{name} is not here" for name in places}
        | {"pytorch": no_torch},
    }


def result_of(action: str, options: dict[str, Any]) -> Any:
    """What the worker would answer, made up."""
    stages = {"encoder": 0.1, "unet": 0.3, "decoder": 0.2}
    timed = {"p50_s": 0.7, "p90_s": 0.8, "first_s": 2.0, "peak_gb": 1.0, "device_gb": 0.5}
    timed["readings"] = {"CPU clock, MHz": {"least": 1.0, "median": 2.0, "most": 3.0}}
    return {
        "build": {
            "bundle": options.get("bundle"),
            "manifest": kept.identity_of(Path(str(options.get("bundle")))) or "gone",
        },
        "engine": {"bundle": options.get("bundle"), "manifest": "gone"},
        "verify": {"largest": 1e-5, "tolerance": 1e-3},
        "latency": timed,
        "reference": timed | {"p50_s": 1.4, "stages_s": stages, "device": "its CPU"},
        "bound": {"measured": {"fused_ms": 100.0, "kernels_ms": 200.0}},
        "stages": {
            "stages_s": stages,
            "device_s": {"copy in": 0.002, "replayed": 0.02}
            if options.get("backend") == "tensorrt"
            else None,
        },
        "rates": {"tflops": {"fp32": 0.1}, "bandwidth_gb_s": 10.0, "by": "torch on cpu"},
        "plumbing": {"checks": [{"check": "runs", "found": "fine"}], "failed": 0},
        "astray": {"checks": [{"check": "astray", "failed": "no error"}], "failed": 1},
        "folded": {
            "device": "CPU",
            "precision": "fp32",
            "folds": ["fold-prompt"],
            "times_s": {name: stages | {"all": 0.6} for name in ("plain", "folded")},
            "ratio": 1.0,
            "difference": {"largest": 0.0, "mean": 0.0},
            "plain_from_fp32": {"largest": 0.0, "mean": 0.0},
            "folded_from_fp32": {"largest": 0.0, "mean": 0.0},
        },
    }[action]


class Steps:
    """Stands in for `run_step`. `fail` are steps that end with this exception."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts, self.ran = facts, list[str]()
        self.fail: dict[str, BaseException] = {}

    def __call__(
        self, action: str, options: dict[str, Any], *, folder: Path, seconds: float
    ) -> Any:
        if action == "facts":
            return self.facts
        known = self.facts["backends"]
        if action == "pytorch":
            return {"pytorch": known["pytorch"]}
        if action == "backends":
            return {key: known[key] for key in known if key.partition(":")[0] in options["names"]}
        self.ran.append(action)
        if action in self.fail:
            raise self.fail[action]
        return result_of(action, options)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    found = Steps(machine_with("openvino"))
    monkeypatch.setattr(device, "run_step", found)
    # Half a second each time; one test draws it.
    monkeypatch.setattr(plot, "plot_device", lambda body, path: path.write_bytes(b"plot"))
    return found


def run(folder: Path, *words: str) -> int:
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    only = () if {"--bundle", "--only"} & {*words} else ("--only", "openvino")
    work = ("--checkpoint", "tiny/disparity-d", "--resolution", "64x64")
    try:
        return device.main([*work, *only, *words, "--folder", str(folder)])
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def test_order_of_value_on_a_cpu_and_on_a_gpu(tmp_path: Path) -> None:
    every = contenders(WORK, tmp_path)
    on_cpu = plan(every, machine_with("openvino", "onnxruntime"), SETTING)
    tried = [step.name for step in on_cpu if not step.why_not]
    first = "disparity-d-64x64-openvino-fp32.build"
    assert tried[:4] == ["rates", first, "openvino.verify", "openvino.latency"]
    assert tried.index("pytorch.latency") < tried.index("onnxruntime.verify")
    assert tried[-1] == "folds"
    facts = machine_with("tensorrt", "onnxruntime-cuda", nvidia=True)
    on_gpu = [step for step in plan(every, facts, SETTING) if not step.why_not]
    names = [step.name for step in on_gpu]
    assert names[:6] == [
        *("plumbing", "plumbing-astray", "rates", "pytorch.latency", "pytorch-fp16.latency"),
        "folds",
    ]
    build = [step for step in on_gpu if step.name == "disparity-d-64x64-tensorrt-fp16.build"]
    assert len(build) == 1, "TensorRT and ONNX Runtime share the bundle"
    assert "--no-engine" in build[0].options["words"]
    by_name = {step.name: step for step in on_gpu}
    engine = by_name["tensorrt-fp16.engine"]
    assert engine.options["source"] == build[0].options["bundle"] != engine.options["bundle"]
    assert build[0].name in engine.after
    assert engine.name in by_name["tensorrt-fp16.latency"].after
    without = plan(every, machine_with("onnxruntime-cuda", nvidia=True), SETTING)
    assert not [step.name for step in without if step.action == "engine"]


def test_an_engine_that_cannot_be_built_takes_no_other_backend_with_it(
    steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = ["tensorrt", "onnxruntime-cuda"]
    steps.facts = machine_with(*usable, nvidia=True)
    monkeypatch.setattr(device, "packages", lambda: {"both": usable, "openvino": ["openvino"]})
    steps.fail = {"engine": running.StepFailed("the parser refuses Attention")}
    names = ("tensorrt-fp16", "onnxruntime-cuda-fp16")
    assert run(tmp_path, "--only", *names) == 0
    rows = {row["what"]: row for row in json.loads((tmp_path / "row.json").read_text())["rows"]}
    assert rows[names[1]]["latency"]["p50_s"] == 0.7
    assert "latency" not in rows[names[0]]
    lines = {line["step"]: line["reason"] for line in rows["missing"]["lines"]}
    assert lines["tensorrt-fp16: engine"] == "the parser refuses Attention"
    assert lines["tensorrt-fp16: latency"] == "without tensorrt-fp16.engine, see there"


def test_what_a_machine_lacks_is_said_and_nothing_is_tried(tmp_path: Path) -> None:
    none_here = machine_with(no_torch="PyTorch is not installed")
    nothing = plan(contenders(WORK, tmp_path), none_here, SETTING)
    assert [step.name for step in nothing if not step.why_not] == ["rates"]
    reasons = {step.title: step.why_not for step in nothing}
    assert reasons["pytorch: latency"] == "PyTorch is not installed"
    assert reasons["CUDA plumbing of the TensorRT backend"] == "there is no NVIDIA GPU"
    assert reasons["lotus-edge, OpenVINO fp32"] == "openvino is not here"
    assert len(nothing) == 6 + len(NAMES)
    bf16 = contenders(WORK, tmp_path, ["openvino-bf16"])
    facts = machine_with("openvino")
    assert "no instructions for bf16" in why_not(bf16[0], facts)
    facts["machine"]["isa"] = "avx2 amx_bf16"
    assert why_not(bf16[0], facts) == ""


def test_int8_is_built_without_a_search(tmp_path: Path) -> None:
    """Which takes hours; where weights alone are int8 there is none, and its limit is refused."""
    words = {each.name: {*each.words} for each in contenders(WORK, tmp_path)}
    no_search = {"--precision=int8", "--budget=1.0", "--calibration-images=1"}
    for name in ("tensorrt-int8", "openvino-int8", "onnxruntime-int8"):
        assert no_search <= words[name], name
    assert no_search & words["tensorrt-rtx-int8"] == {"--precision=int8"}


def test_given_bundles_stay_as_they_are(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    for path in paths:
        write_null_bundle(path)
    first, second = given_bundles(paths, tmp_path / "out")
    assert first.name != second.name
    assert [first.bundle, second.bundle] == [str(path) for path in paths]
    manifest = tmp_path / "a" / "x" / "manifest.json"
    from dataclasses import replace

    replace(Manifest.load(paths[0]), target="tensorrt").save(paths[0])
    own, by_cuda = given_bundles(paths[:1], tmp_path / "out")
    assert (own.backend, own.source, own.words) == ("tensorrt", str(paths[0]), ())
    assert Path(own.bundle).parent == tmp_path / "out"
    assert (by_cuda.backend, by_cuda.bundle) == ("onnxruntime-cuda", str(paths[0]))
    assert build_name(own) == build_name(by_cuda) != build_name(second)
    assert (own.needs_engine, by_cuda.needs_engine) == (True, False)
    assert manifest.is_file()


def test_the_second_run_does_nothing_again_and_reports_the_same(
    steps: Steps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 0
    first = list(steps.ran)
    ours = ["build", "verify", "latency", "bound", "stages"]
    assert first == ["rates", *ours, "reference", "folded"]
    body = json.loads((tmp_path / "row.json").read_text())
    DRAW(body, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 5000
    text = (tmp_path / "report.md").read_text()
    assert "**lotus-edge, OpenVINO fp32: 700 ms**" in text
    assert "2.00 times as fast as PyTorch in fp32 on its CPU" in text
    assert "| PyTorch fp32, prompt cached, posterior mean: the reference; on its CPU |" in text
    assert "100 ms - 200 ms, rates as measured" in text
    assert "Parts of it were kept" not in text
    steps.ran.clear()
    assert run(tmp_path) == 0
    assert steps.ran == ["build"], "the bundle that is no longer there is built again"
    assert "Parts of it were kept" in (tmp_path / "report.md").read_text()
    assert "kept from" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["settings", "versions", "code", "seconds"])
def test_what_changes_a_result_measures_again(
    steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    run(tmp_path)
    steps.ran.clear()
    words = ()
    if changed == "settings":
        steps.facts["settings"] = {"power mode": "15W"}
    elif changed == "versions":
        steps.facts["versions"] = {"torch": "3"}
    elif changed == "code":
        monkeypatch.setattr(kept, "code_digest", lambda: "other")
    else:
        words = ("--seconds", "3")
    run(tmp_path, *words)
    assert {"latency", "reference", "folded"} <= set(steps.ran)


def test_the_page_of_a_gpu(steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.facts = machine_with("tensorrt", nvidia=True)
    monkeypatch.setattr(device, "not_installed", lambda: {"openvino": "no OpenVINO"})
    monkeypatch.setattr(device, "packages", lambda: {"tensorrt": ["tensorrt"]})
    assert run(tmp_path, "--only", "tensorrt-fp16", "onnxruntime-cuda-fp16") == 0
    assert steps.ran[:6] == ["plumbing", "astray", "rates", "reference", "reference", "folded"]
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# lotus-edge on NVIDIA Jetson Orin Nano Developer Kit\n")
    assert "**lotus-edge, TensorRT fp16: 700 ms**" in text
    assert "lotus-edge, TensorRT fp16: copy in 2 ms, replayed 20 ms." in text
    assert "Checks of the CUDA plumbing that failed: 1" in text
    assert "- astray: **FAILED**: no error" in text
    assert "| no backend 'onnxruntime-cuda' here |" in text


def test_a_pytorch_without_cuda_takes_no_time_of_a_gpu(steps: Steps, tmp_path: Path) -> None:
    steps.facts = machine_with("openvino", nvidia=True, no_torch="this PyTorch has no CUDA: 2+cpu")
    assert run(tmp_path) == 0
    assert not {"reference", "folded"} & {*steps.ran}
    text = (tmp_path / "report.md").read_text()
    three = "pytorch: latency; pytorch-fp16: latency; folds in PyTorch"
    assert f"| {three} | this PyTorch has no CUDA: 2+cpu |" in text


def test_a_step_that_fails_is_a_line_and_the_others_go_on(steps: Steps, tmp_path: Path) -> None:
    steps.fail["verify"] = running.StepFailed("the golden | is wrong\nhere")
    assert run(tmp_path) == 0  # PyTorch was measured
    assert "latency" not in steps.ran
    text = (tmp_path / "report.md").read_text()
    assert "| openvino: verify | the golden \\| is wrong here |" in text
    assert "| openvino: latency; openvino: stages | without openvino.verify, see there |" in text
    steps.fail = {"verify": running.StepFailed("x"), "reference": running.StepFailed("y")}
    assert run(tmp_path / "b") == 1  # nothing was measured


def test_a_budget_that_is_too_small_is_said_and_the_next_run_goes_on(
    steps: Steps, tmp_path: Path
) -> None:
    assert run(tmp_path, "--budget", "0.001") == 1
    assert steps.ran == []
    text = (tmp_path / "report.md").read_text()
    assert "the budget of 0.001 minutes was used up; the next run goes on from here" in text
    assert "No backend of lotus-edge was measured here yet." in text
    steps.fail["latency"] = running.TimeUp("stopped after 5 s")
    run(tmp_path)
    assert "stopped after 5 s, when the budget" in (tmp_path / "report.md").read_text()
    path = tmp_path / "steps" / "openvino.latency.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stopped_after": 590}))
    steps.ran.clear()
    run(tmp_path)
    assert "latency" not in steps.ran, "it would take the time of the others again"
    assert "not done within 590 s before, and" in (tmp_path / "report.md").read_text()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stopped_after": 500}))
    steps.fail.clear()
    steps.ran.clear()
    assert run(tmp_path) == 0
    assert "latency" in steps.ran
    assert "verify" not in steps.ran


def test_a_signal_stops_it_with_a_report_and_its_status(steps: Steps, tmp_path: Path) -> None:
    steps.fail["stages"] = device.Stopped(signal.SIGTERM)
    assert run(tmp_path) == 143
    assert "the run was stopped before it" in (tmp_path / "report.md").read_text()
    steps.fail.clear()
    steps.ran.clear()
    run(tmp_path)
    assert "latency" not in steps.ran
    assert "stages" in steps.ran


def test_a_damaged_step_is_measured_again(steps: Steps, tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "steps" / "rates.json").write_bytes(b'{"key": ')
    (tmp_path / "steps" / "folds.json").write_bytes(b"[1]")
    steps.ran.clear()
    run(tmp_path)
    assert {"rates", "folded"} <= set(steps.ran)


def test_a_folder_that_cannot_be_used_is_one_line(
    steps: Steps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "inside") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write into")
    assert "pass another --folder" in error
    assert error.count("\n") == 1
    if sys.platform != "win32":
        store = kept.Kept(tmp_path / "used")
        with pytest.raises(OutputError, match="another run works in"):
            kept.Kept(tmp_path / "used")
        store.close()
        kept.Kept(tmp_path / "used").close()


@pytest.mark.parametrize(
    "words",
    [
        ("--budget", "0"),
        ("--seconds", "nan"),
        ("--resolution", "512"),
        ("--only", "no-such"),
        ("--image", "no-such.png"),
        ("--bundle", "x", "--only", "openvino"),
        ("--checkpoint", "a,b"),
    ],
)
def test_wrong_words_are_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "never", *words)
    assert caught.value.code == 2
    assert not (tmp_path / "never").exists()


def test_a_given_bundle_that_was_built_anew_is_measured_anew(
    steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    write_null_bundle(bundle)
    monkeypatch.setattr(device, "packages", lambda: {"": ["null"], "openvino": ["openvino"]})
    steps.facts = machine_with("null")
    words = ("--bundle", str(bundle))
    monkeypatch.setattr(kept, "identity_of", lambda path: "gone")  # as the made up results say
    run(tmp_path / "out", *words)
    assert {"build", "latency"} <= set(steps.ran)
    steps.ran.clear()
    run(tmp_path / "out", *words)
    assert steps.ran == []
    monkeypatch.setattr(kept, "identity_of", lambda path: "anew" if path == bundle else "gone")
    run(tmp_path / "out", *words)
    assert {"build", "latency"} <= set(steps.ran)


def test_a_bundle_that_is_none_is_one_line(
    steps: Steps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--bundle", str(tmp_path / "nothing")) == 1
    assert "error: " in capsys.readouterr().err
