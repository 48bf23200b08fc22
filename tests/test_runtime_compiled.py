"""Compiled networks that are kept: the same answers, bounded, and never wrong in silence."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import LotusEngine, compiled, opening
from runtime.backends import BACKENDS
from runtime.backends.null import BackendSession
from runtime.backends.session import Arrays, Session, Tensors
from runtime.errors import VerificationError
from runtime.files import describe_file
from runtime.manifest import Manifest

KEY = {"bundle": "b", "bucket": "64x64"}
PHOTO = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOTUS_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small bundles are kept too, in every precision."""
    monkeypatch.setattr(compiled, "SMALLEST", 0)
    for name in ("onnxruntime", "openvino"):
        all_kept = dataclasses.replace(BACKENDS[name], keeps=("fp32", "bf16", "int8"))
        monkeypatch.setitem(BACKENDS, name, all_kept)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each session was opened: "kept" from an entry, "keeps" to make one, or "plain"."""
    ways: list[str] = []
    real = opening.open_session

    def open_session(*positional: object, **named: object) -> Session:
        way = "kept" if named["compiled"] else "keeps" if named["keep_in"] else "plain"
        ways.append(way)
        return real(*positional, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "open_session", open_session)
    return ways


@pytest.fixture
def keeping(null_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A null bundle, whose backend has a vendor (NumPy) and keeps a file."""
    changes = {"package": "numpy", "threads": True, "keeps": ("fp32",)}
    monkeypatch.setitem(BACKENDS, "null", dataclasses.replace(BACKENDS["null"], **changes))
    monkeypatch.setattr(compiled, "SMALLEST", 0)
    monkeypatch.setattr(opening, "knows_target", lambda *_: True)
    start = BackendSession._open

    def _open(session: BackendSession) -> Tensors:
        if session.keep_in is not None:
            (session.keep_in / "a").write_bytes(b"12345")
        return start(session)

    monkeypatch.setattr(BackendSession, "_open", _open)
    return null_bundle


def _write(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "a").write_bytes(content) and None


def test_an_entry_is_found_under_its_key_alone(own_cache: Path) -> None:
    assert compiled.find(KEY) is None
    made = compiled.make(KEY, 5, _write(b"12345"))
    assert made is not None
    assert compiled.find(KEY) == made
    assert [(file.path, file.bytes) for file in made.files] == [("a", 5)]
    assert compiled.find({**KEY, "bucket": "64x96"}) is None
    assert [path.name for path in (own_cache / "compiled").iterdir()] == [made.folder.name]


@pytest.mark.parametrize("damage", ["cut", "more", "record", "other"])
def test_what_is_not_whole_goes(damage: str) -> None:
    made = compiled.make(KEY, 5, _write(b"12345"))
    assert made is not None
    if damage == "cut":
        (made.folder / "a").write_bytes(b"123")
    elif damage == "more":
        (made.folder / "b").write_bytes(b"")
    elif damage == "record":
        (made.folder / "record.json").write_text("[")
    else:
        text = (made.folder / "record.json").read_text()
        (made.folder / "record.json").write_text(text.replace("64x64", "64x65"))
    assert compiled.find(KEY) is None
    assert not made.folder.exists()


def test_nothing_is_left_of_an_entry_that_fails(own_cache: Path) -> None:
    def full(folder: Path) -> None:
        (folder / "a").write_bytes(b"123")
        raise OSError("no space left on device")

    assert compiled.make(KEY, 5, full) is None
    assert not [*(own_cache / "compiled").iterdir()]


def test_the_least_recently_used_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [{"bucket": str(number)} for number in range(3)]
    for number, key in enumerate(keys[:2]):
        made = compiled.make(key, 1000, _write(bytes(1000)))
        assert made is not None
        os.utime(made.folder / "record.json", (number, number))
    assert compiled.find(keys[0]) is not None  # used now
    monkeypatch.setattr(compiled, "_LARGEST", 3000)
    assert compiled.make(keys[2], 1000, _write(bytes(1000))) is not None
    assert [compiled.find(key) is not None for key in keys] == [True, False, True]
    assert compiled.make({"bucket": "large"}, 10**6, _write(b"")) is None, "no room at all"


def test_what_never_fits_takes_no_others_place() -> None:
    assert compiled.make(KEY, 1, _write(b"1")) is not None
    assert compiled.make({"bucket": "huge"}, compiled._LARGEST + 1, _write(b"")) is None
    assert compiled.find(KEY) is not None


def test_a_rest_without_a_record_is_replaced(own_cache: Path) -> None:
    made = compiled.make(KEY, 1, _write(b"1"))
    assert made is not None
    (made.folder / "record.json").unlink()
    assert compiled.find(KEY) is None
    assert compiled.make(KEY, 1, _write(b"2")) is not None
    assert [path.name for path in (own_cache / "compiled").iterdir()] == [made.folder.name]


def test_an_entry_that_cannot_be_touched_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that is read-only, or another user's."""
    made = compiled.make(KEY, 1, _write(b"1"))

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "utime", refuse)
    assert compiled.find(KEY) == made


def test_a_disk_that_is_nearly_full_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert compiled.make(KEY, 2, _write(b"1")) is None


@pytest.mark.parametrize("variable", ["LOTUS_EDGE_COMPILED", "LOTUS_EDGE_CACHE"])
def test_it_can_be_switched_off(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.make(KEY, 1, _write(b"1")) is not None
    monkeypatch.setenv(variable, {"LOTUS_EDGE_COMPILED": "0"}.get(variable, "off"))
    assert compiled.find(KEY) is None
    assert compiled.make(KEY, 1, _write(b"1")) is None


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_small_bundles_are_opened_plainly(
    bundle_d: Path, backend: str, opened: list[str], own_cache: Path
) -> None:
    pytest.importorskip(backend)
    with LotusEngine(bundle_d, backend) as engine:
        engine(PHOTO)
    assert opened == ["plain"]
    assert not (own_cache / "compiled").exists()


def test_it_is_known_which_buckets_are_kept(keeping: Path) -> None:
    manifest = Manifest.load(keeping)
    bucket, other = manifest.buckets
    start = opening.Opening(folder=keeping, manifest=manifest, backend="null")
    is_kept = start.room(None).is_kept
    assert not is_kept(bucket)
    with LotusEngine(keeping) as engine:
        engine(PHOTO)
    assert (is_kept(bucket), is_kept(other)) == (True, False)
    assert not dataclasses.replace(start, keep=False).room(None).is_kept(bucket)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.usefixtures("small")
def test_what_is_kept_answers_the_same(
    bundle_d: Path, backend: str, opened: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Bit by bit, and it proves itself once."""
    pytest.importorskip(backend)
    with LotusEngine(bundle_d, backend, keep=False) as engine:
        expected = engine(PHOTO).values
    capfd.readouterr()
    for ways in (["keeps", "kept"], ["kept"]):
        opened.clear()
        with LotusEngine(bundle_d, backend) as engine:
            assert np.array_equal(engine(PHOTO).values, expected)
        assert opened == ways
        said = capfd.readouterr().err
        assert ("running its golden sample" in said) == (len(ways) == 2)
        assert ("keeping" in said) == (len(ways) == 2)
    with LotusEngine(bundle_d, backend) as engine:
        engine.verify()
        assert np.array_equal(engine(PHOTO).values, expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.usefixtures("small")
def test_a_damaged_entry_is_made_anew(
    bundle_d: Path, backend: str, opened: list[str], own_cache: Path
) -> None:
    """One weight is another one: the file opens all the same, and would answer another map."""
    pytest.importorskip(backend)
    with LotusEngine(bundle_d, backend) as engine:
        expected = engine(PHOTO).values
    (entry,) = (own_cache / "compiled").iterdir()
    largest = max(entry.iterdir(), key=lambda path: path.stat().st_size)
    largest.chmod(0o600)
    with largest.open("r+b") as stream:
        stream.seek(largest.stat().st_size // 2)
        stream.write(b"\x42" * 64)
    opened.clear()
    for _ in range(2):
        with LotusEngine(bundle_d, backend) as engine:
            assert np.array_equal(engine(PHOTO).values, expected)
    assert opened == ["kept", "plain", "keeps", "kept"]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_each_entry_proves_itself(
    bundle_d: Path, opened: list[str], own_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proved = set()
    for _ in range(2):
        with LotusEngine(bundle_d, "onnxruntime") as engine:
            engine(PHOTO)
        (entry,) = (own_cache / "compiled").iterdir()
        # Some versions of ONNX Runtime write the same bytes again, which are proved.
        known = (entry / "record.json").read_bytes() in proved
        assert ("running its golden sample" in capfd.readouterr().err) != known
        proved.add((entry / "record.json").read_bytes())
        shutil.rmtree(entry)
    assert opened == ["keeps", "kept"] * 2


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_an_entry_that_fails_its_golden_goes(
    bundle_d: Path, opened: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = opening.prove

    def prove(session: Session) -> None:
        if session.compiled is not None:
            raise VerificationError("another map")
        real(session)

    monkeypatch.setattr(opening, "prove", prove)
    with LotusEngine(bundle_d, "onnxruntime") as engine:
        engine(PHOTO)
    assert opened == ["keeps", "kept", "plain"]
    assert not [*(own_cache / "compiled").iterdir()]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_nothing_is_kept_of_a_damaged_bundle(
    bundle_d: Path, tmp_path: Path, own_cache: Path
) -> None:
    """Nor where the bundle is opened unchecked: others that check would take the entry."""
    bundle = shutil.copytree(bundle_d, tmp_path / "damaged")
    with (bundle / "model.onnx.data").open("r+b") as stream:
        stream.write(b"\x42" * 64)
    with LotusEngine(bundle, "onnxruntime", check=False, prove=False) as engine:
        engine(PHOTO)
    assert not [*(own_cache / "compiled").iterdir()]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_deadline_makes_no_entry(bundle_d: Path, opened: list[str]) -> None:
    with LotusEngine(bundle_d, "onnxruntime", deadline=60) as engine:
        engine(PHOTO)
    assert opened == ["plain"]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_cache_that_cannot_be_written_is_no_error(
    bundle_d: Path, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOTUS_EDGE_CACHE", str(tmp_path / "file"))
    with LotusEngine(bundle_d, "onnxruntime") as engine:
        engine(PHOTO)
    assert opened == ["plain"]


@pytest.mark.parametrize("call", ["predict", "verify"])
def test_an_entry_that_goes_while_its_golden_runs(
    keeping: Path, call: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes room. What was opened from it is open all the same."""
    with LotusEngine(keeping, prove=False) as engine:
        engine(PHOTO)
    for owner, name in ((opening, "prove"), (BackendSession, "_run")):
        real = getattr(owner, name)

        def goes(*words: object, real: Callable[..., object] = real) -> object:
            shutil.rmtree(own_cache / "compiled", ignore_errors=True)
            return real(*words)

        monkeypatch.setattr(owner, name, goes)
    with LotusEngine(keeping) as engine:
        assert engine.verify() if call == "verify" else engine(PHOTO)


def test_an_entry_that_is_made_anew_meanwhile_proves_itself(
    keeping: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The proof is for what was opened, not for what lies there now."""
    real = opening.prove

    def prove(session: Session) -> None:
        (entry,) = (own_cache / "compiled").iterdir()
        (entry / "a").write_bytes(b"other")
        record = json.loads((entry / "record.json").read_text())
        record["files"] = [dataclasses.asdict(describe_file(entry, "a"))]
        (entry / "record.json").write_text(json.dumps(record))
        real(session)

    monkeypatch.setattr(opening, "prove", prove)
    for new in (True, True, False):
        with LotusEngine(keeping) as engine:
            engine(PHOTO)
        assert ("running its golden sample" in capfd.readouterr().err) == new


@pytest.mark.parametrize("wrong", [np.nan, None])
def test_an_entry_that_gives_no_usable_answer_goes(
    keeping: Path,
    wrong: float | None,
    opened: list[str],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NaN, or a map of another shape: the bundle itself answers."""
    run = BackendSession._run

    def odd(session: BackendSession, *words: object) -> Arrays:
        answers = run(session, *words)
        if session.compiled is None:
            return answers
        return {
            name: each[:, :, 1:] if wrong is None else each * wrong
            for name, each in answers.items()
        }

    monkeypatch.setattr(BackendSession, "_run", odd)
    with LotusEngine(keeping) as engine:
        engine(PHOTO)
    assert opened == ["keeps", "kept", "plain"]
    assert not [*(own_cache / "compiled").iterdir()]
