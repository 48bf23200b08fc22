"""`benchmarks.device`: steps fit the worker, engines come into copies, kept builds stay good."""

from __future__ import annotations

import importlib
import inspect
import shutil
from pathlib import Path

import pytest
from conftest import write_null_bundle

from benchmarks.baselines import Work
from benchmarks.on_device import kept, speed, worker
from benchmarks.on_device.contenders import contenders
from benchmarks.on_device.plan import Setting, plan
from export.targets import TARGETS, Recipe, Target
from runtime.errors import LotusError
from runtime.manifest import EngineInfo, Manifest


def test_steps_have_the_options_of_the_worker(tmp_path: Path) -> None:
    """On a machine where everything opens."""
    work = Work(checkpoint="tiny/disparity-d", resolution="64x64")
    every = contenders(work, tmp_path)
    facts = {
        "device": "all",
        "nvidia": True,
        "machine": {"isa": "amx_bf16"},
        "backends": {each.place: "" for each in every} | {"pytorch": ""},
    }
    steps = plan(every, facts, Setting(work=work, image="room.png", seconds=1.0))
    assert {step.action for step in steps} == set(worker.ACTIONS) - {"facts", "backends", "pytorch"}
    for step in steps:
        module = importlib.import_module(f"benchmarks.on_device.{worker.ACTIONS[step.action]}")
        options = dict(step.options) | dict.fromkeys(step.uses)
        inspect.signature(getattr(module, step.action)).bind(**options)


def test_an_engine_comes_into_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(graph: Path, engine: Path) -> EngineInfo:
        engine.write_bytes(graph.read_bytes())
        return EngineInfo(flavour="null", version="1", compute_capability=None, settings={})

    recipes = {"fp32": Recipe(tolerance=(1e-4, 1e-5))}
    target = Target(name="null", opset=23, recipes=recipes, engine_suffix=".engine", build=write)
    monkeypatch.setitem(TARGETS, "null", target)
    source, bundle = write_null_bundle(tmp_path / "x"), tmp_path / "x-finished"
    graphs = speed.build(bundle=str(source), words=[])
    made = speed.engine(source=str(source), bundle=str(bundle), target="null")
    assert made["manifest"] != graphs["manifest"] == kept.identity_of(source)
    assert made["bytes"] > graphs["bytes"]
    assert [each.engine for each in Manifest.load(source).buckets] == [None, None]
    assert all(each.engine for each in Manifest.load(bundle).buckets)
    with pytest.raises(LotusError, match="there is no folder"):
        speed.engine(source=str(tmp_path / "none"), bundle=str(bundle), target="null")


def test_a_kept_build_is_good_while_its_bundle_is_the_same(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_null_bundle(bundle)
    store = kept.Kept(tmp_path / "folder")
    identity = kept.identity_of(bundle)
    result = {"bundle": str(bundle), "manifest": identity}
    store.save("a.build", {"key": "k", "result": result})
    assert store.load("a.build", "k") is not None
    assert store.load("a.build", "another") is None
    with (bundle / "manifest.json").open("a") as stream:
        stream.write(" ")
    assert store.load("a.build", "k") is None
    shutil.rmtree(bundle)
    assert store.load("a.build", "k") is None
    store.close()
