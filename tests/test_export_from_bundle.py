"""`--from-bundle`: an engine is made of a bundle's graph, and a working bundle stays as it is."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_null_bundle

from export.bundle import finalize, replace
from export.bundle.finalize import finish_on_device
from export.errors import BuildError
from export.targets import TARGETS, Recipe, Target
from runtime import LotusEngine
from runtime.errors import (
    BackendMissingError,
    BundleError,
    DamagedBundleError,
    DeviceMissingError,
    LotusError,
    VerificationError,
)
from runtime.manifest import EngineInfo, Manifest

INFO = EngineInfo(flavour="null", version="1", compute_capability=None, settings={})


def write_engine(graph: Path, engine: Path) -> EngineInfo:
    engine.write_bytes(b"engine of " + graph.read_bytes())
    return INFO


def raiser(error: BaseException, *, after: int = 0) -> Callable[[Path, Path], EngineInfo]:
    """A builder that fails with `error`, once it has built `after` engines."""
    left = [None] * after

    def build(graph: Path, engine: Path) -> EngineInfo:
        write_engine(graph, engine)  # a builder may leave half of it
        if not left:
            raise error
        left.pop()
        return INFO

    return build


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """`null` has engines, and `other` has the same graphs without any."""
    target = Target(
        name="null",
        opset=23,
        recipes={"fp32": Recipe(tolerance=(1e-4, 1e-5))},
        engine_suffix=".engine",
        build=write_engine,
        stand_ins=(),
    )
    monkeypatch.setitem(TARGETS, "null", target)
    monkeypatch.setitem(
        TARGETS,
        "other",
        dataclasses.replace(target, name="other", build=None, engine_suffix=None),
    )


def set_builder(patch: pytest.MonkeyPatch, build: Callable[[Path, Path], EngineInfo]) -> None:
    patch.setitem(TARGETS, "null", dataclasses.replace(TARGETS["null"], build=build))


def finish(source: Path, output: Path | None = None, *, overwrite: bool = False) -> Path:
    return finish_on_device(
        source, target_name="null", output=output, overwrite=overwrite, command="finish"
    )


def content(folder: Path) -> dict[str, str]:
    """Everything below a folder: names, links, and hashes of the files."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else "folder"
        if path.is_dir()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def engines(bundle: Path) -> list[str | None]:
    manifest = Manifest.load(bundle)
    manifest.check_contents(bundle)
    return [bucket.engine for bucket in manifest.buckets]


def test_a_bundle_of_another_target_stays_as_it_is(tmp_path: Path) -> None:
    source = write_null_bundle(tmp_path / "x", target="other")
    before = content(source)
    made = finish(source)
    assert made == tmp_path / "x-null"
    assert content(source) == before
    assert Manifest.load(made).target == "null"
    assert engines(made) == ["model-64x96.engine"] * 2
    assert engines(source) == [None, None]
    with LotusEngine(source, backend="null") as engine:
        engine.verify()
    assert sorted(os.listdir(tmp_path)) == ["x", "x-null"]
    with pytest.raises(BuildError, match="x-null exists; pass --overwrite"):
        finish(source)
    finish(source, overwrite=True)
    assert content(source) == before


def test_a_bundle_that_lacks_its_own_engine_is_completed_in_place(tmp_path: Path) -> None:
    """What the first build says, and what an unfinished bundle says when it is opened."""
    source = write_null_bundle(tmp_path / "x")
    assert finish(source) == source
    assert engines(source) == ["model-64x96.engine"] * 2
    assert os.listdir(tmp_path) == ["x"]
    again = write_null_bundle(tmp_path / "y")
    assert finish(again, output=tmp_path / "." / "y") == tmp_path / "y"
    assert engines(again) == ["model-64x96.engine"] * 2


@pytest.mark.parametrize(
    ("when", "builder", "found"),
    [
        ("if possible", write_engine, "model-64x96.engine"),
        ("if possible", raiser(DeviceMissingError("no GPU")), None),
        ("if possible", raiser(DeviceMissingError("no GPU"), after=1), None),
        ("later", write_engine, None),
    ],
)
def test_when_an_engine_is_built(
    when: finalize.When,
    builder: Callable[[Path, Path], EngineInfo],
    found: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_builder(monkeypatch, builder)
    stage = write_null_bundle(tmp_path / "x")
    description = Manifest.load(stage)
    (stage / "manifest.json").unlink()
    finalize.finalize(stage, description, engine=when)
    assert engines(stage) == [found] * 2
    assert {path.name for path in stage.glob("*.engine")} == {found} - {None}


def test_a_finished_bundle_of_this_very_target_stays_as_it_is(tmp_path: Path) -> None:
    """Its engine may be one of another version; the new one comes beside it."""
    source = finish(write_null_bundle(tmp_path / "x"))
    before = content(source)
    made = finish(source)
    assert made == tmp_path / "x-null"
    assert engines(made) == ["model-64x96.engine"] * 2
    assert content(source) == before


@pytest.mark.parametrize("target", ["other", "null"])
def test_output_onto_the_source_wants_overwrite(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_null_bundle(tmp_path / "x", target=target)
    if target == "null":
        finish(source)
    (tmp_path / "link").symlink_to(source)
    before = content(source)
    monkeypatch.chdir(tmp_path)
    for output in (source, Path("x"), tmp_path / "link"):
        with pytest.raises(BuildError, match=r"is a finished bundle for .*would replace it"):
            finish(source, output=output)
        with pytest.raises(BuildError, match=r"Leave --output out \(it is then .*x-null\)"):
            finish(Path("x"), output=output)
    with pytest.raises(BuildError, match="lies inside the bundle"):
        finish(source, output=source / "engine")
    assert content(source) == before
    assert finish(source, output=source, overwrite=True) == source
    assert Manifest.load(source).target == "null"
    assert engines(source) == ["model-64x96.engine"] * 2


def test_default_output_of_a_folder_that_is_named_by_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_null_bundle(tmp_path / "x", target="other")
    monkeypatch.chdir(source)
    assert finish(Path()) == tmp_path / "x-null"


FAILURES: dict[str, tuple[type[BaseException], Callable[[pytest.MonkeyPatch], None]]] = {
    "no package": (
        BackendMissingError,
        lambda patch: set_builder(patch, raiser(BackendMissingError("no package"))),
    ),
    "no device": (
        DeviceMissingError,
        lambda patch: set_builder(patch, raiser(DeviceMissingError("no GPU"))),
    ),
    "the builder, at the second bucket": (
        BuildError,
        lambda patch: set_builder(patch, raiser(BuildError("parser"), after=1)),
    ),
    "the disk": (BuildError, lambda patch: set_builder(patch, raiser(OSError(28, "full")))),
    "an interruption": (
        KeyboardInterrupt,
        lambda patch: set_builder(patch, raiser(KeyboardInterrupt())),
    ),
    "a bug": (ZeroDivisionError, lambda patch: set_builder(patch, raiser(ZeroDivisionError()))),
    "the golden": (
        VerificationError,
        lambda patch: patch.setattr(
            finalize, "check_tolerance", fail_with(VerificationError("wrong answer"))
        ),
    ),
    "the manifest": (
        BuildError,
        lambda patch: patch.setattr(Manifest, "save", fail_with(OSError(28, "full"))),
    ),
    "copying": (
        BuildError,
        lambda patch: patch.setattr(finalize, "_link_or_copy", fail_with(OSError(28, "full"))),
    ),
    "syncing": (
        BuildError,
        lambda patch: patch.setattr(replace, "sync_tree", fail_with(OSError(5, "I/O"))),
    ),
}


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("target", ["other", "null"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_build_that_fails_changes_nothing(
    failure: str, target: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_null_bundle(tmp_path / "x", target=target)
    before = content(tmp_path)
    error, prepare = FAILURES[failure]
    prepare(monkeypatch)
    with pytest.raises(error):
        finish(source, output=source if overwrite else None, overwrite=overwrite)
    assert content(tmp_path) == before


@pytest.mark.parametrize("broken", ["no bundle", "damaged", "a file of someone's"])
def test_a_source_that_cannot_be_used_is_left_alone(broken: str, tmp_path: Path) -> None:
    source = write_null_bundle(tmp_path / "x")
    if broken == "no bundle":
        (source / "manifest.json").unlink()
    elif broken == "damaged":
        golden = source / "golden.npz"
        golden.write_bytes(golden.read_bytes()[:-1] + b"?")
    else:
        (source / "notes.txt").write_text("mine")
    before = content(tmp_path)
    with pytest.raises((BundleError, DamagedBundleError, BuildError)):
        finish(source)
    assert content(tmp_path) == before


def test_links_of_the_hubs_cache_become_files(tmp_path: Path) -> None:
    """A hard link to a relative link would point nowhere from the new folder."""
    bundle = write_null_bundle(tmp_path / "x", target="other")
    deep = tmp_path / "deep" / "snapshot"
    deep.mkdir(parents=True)
    shutil.move(bundle / "golden.npz", tmp_path / "deep" / "blob")
    (bundle / "golden.npz").symlink_to(Path("..", "deep", "blob"))
    finalize._link_or_copy(bundle / "golden.npz", deep / "a" / "golden.npz")
    copied = deep / "a" / "golden.npz"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (tmp_path / "deep" / "blob").read_bytes()


def test_targets_without_an_engine_are_refused(tmp_path: Path) -> None:
    source = write_null_bundle(tmp_path / "x")
    with pytest.raises(LotusError, match="needs no engine"):
        finish_on_device(source, target_name="other", output=None, overwrite=False, command="")
