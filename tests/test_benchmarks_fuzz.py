"""The fuzzing harness sees what is wrong, and a sample of each kind of damage finds nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from random import Random

import pytest
from fuzz_cases import CASES, Broken, Misbehaving

if os.name == "nt":
    pytest.skip("the harness needs POSIX", allow_module_level=True)

from benchmarks import fuzz
from benchmarks.fuzzing.damage import damage_layout
from benchmarks.fuzzing.kind import Kind
from benchmarks.fuzzing.layouts import find_layout
from benchmarks.fuzzing.originals import originals
from benchmarks.fuzzing.pool import Outcome, run_cases
from benchmarks.fuzzing.stops import STOPS
from benchmarks.fuzzing.worker import KINDS, find_kind

SEED = 17  # another one than the default of the command
SAMPLE = {
    "pictures": 120,
    "manifests": 120,
    "weights": 40,
    "goldens": 60,
    "graphs": 40,
    "graphs-openvino": 15,
}
NEEDS = {"graphs": ("onnx", "onnxruntime"), "graphs-openvino": ("onnx", "openvino")}
NEEDS["weights"] = NEEDS["graphs"]


def outcomes(name: str, kind: Kind, numbers: range, folder: Path) -> list[Outcome]:
    found: list[Outcome] = []
    run_cases(name, kind, numbers, seed=SEED, jobs=1, keep=folder, note=found.append)
    return sorted(found, key=lambda outcome: outcome.number)


@pytest.mark.skipif(sys.platform != "linux", reason="memory and files are watched on Linux")
def test_the_harness_finds_what_is_wrong(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kind = Misbehaving()
    found = outcomes("tests.fuzz_cases:Misbehaving", kind, range(len(CASES)), kept)
    assert [outcome.label for outcome in found] == list(CASES)
    said = {outcome.label: outcome.findings for outcome in found}
    for name, (_, wrong) in CASES.items():
        if wrong:
            assert any(wrong in text for text in said[name]), (name, said[name])
        else:
            assert said[name] == [], name
    bad = {str(number) for number, (_, wrong) in enumerate(CASES.values()) if wrong}
    assert {path.name for path in kept.iterdir()} == bad
    assert found[0].outcome == "right"
    assert found[1].outcome == "ImageError"


def test_a_fault_of_the_harness_is_no_finding(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no inputs"):
        outcomes("tests.fuzz_cases:Broken", Broken(), range(3), tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_a_sample_of_damage(name: str, tmp_path: Path) -> None:
    for package in NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    found = outcomes(name, find_kind(name), range(SAMPLE[name]), tmp_path / "kept")
    assert len(found) == SAMPLE[name]
    assert [outcome for outcome in found if outcome.outcome == "finding"] == []
    assert len({outcome.outcome for outcome in found}) > 1, "some are refused, some answered"


@pytest.mark.parametrize(("name", "count"), [("kills", 4), ("disk", 4)])
def test_a_sample_of_stops(name: str, count: int) -> None:
    found = list(STOPS[name](count, SEED))
    assert len(found) == count
    assert [outcome for outcome in found if outcome.findings] == []
    assert len({outcome.outcome for outcome in found}) > 1


def test_a_number_and_a_seed_are_one_damage() -> None:
    for name, data in originals().items():
        layout = find_layout(data)
        first, again = (damage_layout(Random(f"{SEED}/{name}"), data, layout) for _ in range(2))
        assert first == again
        assert all(place.offset < len(data) for place in layout.fields[:8]), name


def test_structure_is_known_of_the_common_formats() -> None:
    parts = {name: len(find_layout(data).parts) for name, data in originals().items()}
    for kind in ("png", "jpeg", "webp", "tiff", "avif", "jpeg2000", "gif", "bmp"):
        assert any(name.startswith(kind) and count > 1 for name, count in parts.items()), kind


def test_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "FOLDER", tmp_path)
    words = ["fuzz", "--only", "manifests", "--no-rows", "--dirty", "--count"]
    for count, more in (("4", []), ("6", ["--resume"])):
        monkeypatch.setattr(sys, "argv", [*words, count, *more])
        assert fuzz.main() == 0
        lines = (tmp_path / "manifests-0.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["number"] for line in lines) == list(range(int(count)))
    assert "manifests: 6 cases" in capsys.readouterr().out
