"""The whole set of rows: what is there is left out, what failed is tried again, and each step's
command is one that the benchmark understands.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from benchmarks import all_rows, latency, rows
from benchmarks.all_rows import SIZES, Step
from benchmarks.baselines import BASELINES, Work, bundle_paths
from export.families import FAMILIES, resolve_task


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of rows; the code is that of commit `here`."""
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(rows, "commit", lambda: "here")
    monkeypatch.setattr(rows, "same_code", lambda commit: commit == "here")
    rows.RESULTS.mkdir()
    return rows.RESULTS


def save(name: str, **more: object) -> None:
    body = {"commit": "here", "rows": [], **more}
    (rows.RESULTS / f"{name}.json").write_text(json.dumps(body))


def test_rows_count_that_are_whole_and_of_this_code() -> None:
    assert not all_rows.is_there("a")
    save("a")
    assert all_rows.is_there("a")
    for more in ({"unfinished": True}, {"dirty": True}, {"commit": "elsewhere"}):
        save("a", **more)
        assert not all_rows.is_there("a"), more


def test_what_failed_is_tried_again_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ("build.py", "{folder}/bundle")
    steps = [
        Step(name=name, minutes=minutes, commands=(build, ("measure.py", name, "{folder}")))
        for name, minutes in (("a", 60), ("b", 60), ("c", 120))
    ]
    ran: list[str] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        assert command[0] == sys.executable
        ran.append(command[1])
        if command[1] == "build.py":
            Path(command[2]).mkdir()
            return SimpleNamespace(returncode=0)
        if command[2] == broken:
            return SimpleNamespace(returncode=1)
        assert (Path(command[3]) / "bundle").is_dir()
        save(command[2])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(all_rows, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(all_rows, "steps", lambda *_, **__: steps)
    words = ["--work", str(tmp_path / "work"), "--dirty"]
    broken = "b"
    assert all_rows.main(words) == 1
    said = capsys.readouterr().out
    assert "0 of 3 rows are there" in said
    assert "[1/3] a; about 4 h 0 min left" in said
    assert "[2/3] b; about 1 min left" in said, "after a step that took no time"
    assert "failed: b" in said
    assert ran == ["build.py", "measure.py"] * 3
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["b-here"]
    ran.clear()
    broken = ""
    assert all_rows.main([*words, "--dry-run"]) == 0
    assert "missing: b, about 60 min" in capsys.readouterr().out
    assert ran == []
    assert all_rows.main(words) == 0
    assert ran == ["measure.py"], "it was built before"
    assert not any((tmp_path / "work").iterdir())
    assert all_rows.main(words) == 0
    assert "3 of 3 rows are there" in capsys.readouterr().out
    assert all_rows.main([*words, "--only", "x*"]) == 0
    assert "0 of 0 rows" in capsys.readouterr().out


def test_bundles_of_several_steps_stay_until_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        (Path(command[2]) / command[1]).mkdir()
        seen.append(sorted(path.name for path in Path(command[2]).iterdir()))
        return SimpleNamespace(returncode=int(command[1] == broken))

    monkeypatch.setattr(all_rows, "subprocess", SimpleNamespace(run=run))
    steps = [
        Step(name=name, minutes=1, commands=((name, "{folder}"),), shared=shared)
        for name, shared in (("a", "both"), ("b", "both"), ("c", ""))
    ]
    broken = ""
    assert all_rows.run(steps, tmp_path / "work") == []
    assert seen == [["a"], ["a", "b"], ["c"]]
    assert not any((tmp_path / "work").iterdir())
    broken = "a"
    assert all_rows.run(steps, tmp_path / "work") == ["a"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["both-here"], "a's, and b's"


def test_each_step_writes_other_rows_with_a_command_that_is_there() -> None:
    steps = all_rows.steps("random/lotus-d", SIZES, 3)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert {f"latency-{family}-256x256" for family in FAMILIES} <= set(names)
    for step in steps:
        for first, *rest in step.commands:
            file = Path(first) if first != "-m" else Path(*rest[0].split(".")).with_suffix(".py")
            assert (ROOT / file).is_file(), step.name
        assert step.minutes > 0
    minutes = {step.name: step.minutes for step in steps}
    alone = {
        size: next(s.minutes for s in all_rows.steps("random/lotus-d", [size], 3))
        for size in ("256x256", "384x384")
    }
    assert minutes["latency-lotus-d-256x256"] == alone["256x256"]
    assert minutes["latency-lotus-d-384x384"] == alone["384x384"] - 25, "its five bundles are there"


@pytest.mark.parametrize("checkpoint", ["random/lotus-d", "tiny/disparity-d"])
def test_no_step_asks_for_a_task_that_the_weights_are_not_of(checkpoint: str) -> None:
    joint = 0
    for step in all_rows.steps(checkpoint, SIZES, 3):
        words = dict(itertools.pairwise(step.commands[0]))
        if "--task" in words:
            for name, task in zip(
                words["--checkpoint"].split(","), words["--task"].split(","), strict=True
            ):
                assert resolve_task(name.removesuffix("@1"), task).name == task
            joint += 1
    assert joint == (6 if checkpoint.startswith("random/") else 0)


def test_seconds_of_another_machine_replace_none() -> None:
    plain, labelled = (
        all_rows.steps("random/lotus-d", SIZES, 3, contended="256x256", label=label)
        for label in ("", "avx2")
    )
    for one, other in zip(plain, labelled, strict=True):
        timed = one.commands[0][1] == "benchmarks.latency"
        assert other.name == one.name + ("-avx2" if timed else "")
        contended = timed and "nncf" in one.commands[0]
        assert contended == (one.name == "latency-lotus-d-256x256")


@pytest.mark.parametrize("label", ["", "avx2"])
def test_the_names_of_latency_are_those_that_it_writes(
    monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    """And every precision of the two CPU backends is among them at each size."""
    raced: dict[str, list[str]] = {}
    written: list[str] = []

    def race(names: list[str], *_: object) -> list[dict[str, object]]:
        raced.setdefault(step.name, []).extend(names)
        return [{"p50_s": 1.0}]

    def write(name: str, *_: object, **__: object) -> Path:
        written.append(name)
        return Path(name)

    monkeypatch.setattr(latency, "_race", race)
    monkeypatch.setattr(latency, "product_rates", lambda: {})
    monkeypatch.setattr(latency, "write_rows", write)
    every = {"onnxruntime", "onnxruntime-int8", "openvino", "openvino-bf16", "openvino-int8"}
    for step in all_rows.steps("random/lotus-d", SIZES, 3, label=label):
        if "benchmarks.latency" in step.commands[0]:
            (command,) = step.commands
            monkeypatch.setattr(sys, "argv", ["latency", *command[2:], "--dirty"])
            assert latency.main() == 0
            assert set(written) == {step.name}
            written.clear()
    for size in SIZES:
        assert every <= set(raced[f"latency-lotus-d-{size}{label and '-'}{label}"])


def test_int8_of_trained_weights_keeps_its_limit(tmp_path: Path) -> None:
    """Of random ones every layer is int8: what is compared is speed."""
    work = Work(checkpoint="tiny/x", resolution="64x64")
    trained = Work(checkpoint="tiny/x", resolution="64x64", trained=True)
    int8 = BASELINES["openvino-int8"]
    assert int8.build_options(work)["budget"] == 1.0
    assert "budget" not in int8.build_options(trained)
    assert int8.build_options(trained)["calibration-images"] == 8
    assert "calibration-images" not in BASELINES["openvino"].build_options(trained)
    for name in ("openvino-int8", "nncf"):
        paths = [*bundle_paths(name, work, tmp_path), *bundle_paths(name, trained, tmp_path)]
        assert len(set(paths)) == 2, name
