"""What happens before a bundle's first answer: links, damage at rest, and proof by its golden."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_runtime_manifest import edit

import runtime.contents
import runtime.layout
import runtime.machine
import runtime.writing
from runtime import LotusEngine
from runtime.backends import BACKENDS
from runtime.backends.null import BackendSession
from runtime.backends.session import Arrays
from runtime.errors import BundleError, DamagedBundleError, VerificationError
from runtime.files import File
from runtime.layout import plain_folder
from runtime.manifest import describe_file

LONG_AGO = 1_600_000_000  # seconds: a file written just now is not remembered


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOTUS_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def provable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The null backend with a vendor: NumPy, whose version counts."""
    null = dataclasses.replace(BACKENDS["null"], package="numpy", threads=True)
    monkeypatch.setitem(BACKENDS, "null", null)


def settle(bundle: Path) -> None:
    for path in bundle.iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))


def as_the_hub_does(bundle: Path, folder: Path) -> Path:
    """The bundle as the hub's cache lays it out: links to files that are named by their hash."""
    snapshot = folder / "snapshots" / "main"
    for part in (folder / "blobs", snapshot):
        part.mkdir(parents=True)
    for path in bundle.iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, folder / "blobs" / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_bundle_of_links_opens(null_bundle: Path, photo: np.ndarray, tmp_path: Path) -> None:
    snapshot = as_the_hub_does(null_bundle, tmp_path / "hub")
    with LotusEngine(null_bundle) as plain, LotusEngine(snapshot) as linked:
        assert np.array_equal(plain(photo).values, linked(photo).values)
        linked.verify()


def test_a_file_of_links_has_one_record(
    null_bundle: Path,
    photo: np.ndarray,
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each opening makes and removes hard links, which moves a time of the files."""
    snapshot, read = as_the_hub_does(null_bundle, tmp_path / "hub"), list[File]()
    settle(snapshot)
    monkeypatch.setattr(runtime.contents, "check_content", lambda folder, file: read.append(file))
    for _ in range(3):
        with LotusEngine(snapshot) as engine:
            engine(photo)
        time.sleep(0.02)  # longer than a tick of the file system's clock
    assert len(read) == len([*(own_cache / "contents").iterdir()]) == 2


def test_backends_get_plain_files_that_are_no_copies(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (tmp_path / "blob").write_bytes(b"weights")
    (bundle / "graph").write_bytes(b"graph")
    (bundle / "weights").symlink_to(tmp_path / "blob")
    files = [File(path=name, bytes=0, sha256="") for name in ("graph", "weights")]
    with plain_folder(bundle, files) as plain:
        assert plain != bundle
        assert (plain / "graph").read_bytes() == b"graph"
        assert not (plain / "weights").is_symlink()
        assert (plain / "weights").stat().st_ino == (tmp_path / "blob").stat().st_ino
    assert not plain.exists()
    with plain_folder(bundle, files[:1]) as plain:
        assert plain == bundle, "nothing is put together where there are no links"
    (tmp_path / "alias").symlink_to(bundle)
    with plain_folder(tmp_path / "alias", files[:1]) as plain:
        assert plain == tmp_path / "alias", "a link to the whole bundle is no link in it"


def test_links_of_killed_processes_are_swept(tmp_path: Path, own_cache: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    tag = runtime.writing.machine_tag()
    dead = own_cache / f".lotus-edge-{tag}-{int(done.stdout)}-abc"
    alive = own_cache / f".lotus-edge-{tag}-{os.getpid()}-abc"
    foreign = own_cache / f".lotus-edge-{tag[::-1]}x-{int(done.stdout)}-abc"
    for folder in (dead, alive, foreign):
        folder.mkdir(parents=True)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "bundle" / "weights").symlink_to(tmp_path / "blob")
    with plain_folder(tmp_path / "bundle", [File(path="weights", bytes=0, sha256="")]):
        pass
    assert sorted(own_cache.iterdir()) == sorted([alive, foreign])


def test_where_no_disk_takes_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (tmp_path / "blob").write_bytes(b"weights")
    (bundle / "weights").symlink_to(tmp_path / "blob")
    files = [File(path="weights", bytes=0, sha256="")]
    with plain_folder(bundle, files) as plain:  # small: copied
        assert (plain / "weights").read_bytes() == b"weights"
    monkeypatch.setattr(runtime.layout, "_SMALL", 3)
    with pytest.raises(BundleError, match="cp -rL"), plain_folder(bundle, files):
        pass
    assert not list(tmp_path.rglob(".lotus-edge-*"))


def test_damage_at_rest_is_found_before_the_first_answer(
    null_bundle: Path, photo: np.ndarray
) -> None:
    settle(null_bundle)
    with LotusEngine(null_bundle) as engine:
        engine(photo)  # now it is known as good
    graph = null_bundle / "model-64x96.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:100] + bytes(100) + content[200:])
    for _ in range(2):
        with LotusEngine(null_bundle) as engine, pytest.raises(DamagedBundleError, match="SHA-256"):
            engine(photo)
    with LotusEngine(null_bundle, check=False) as engine:
        engine(photo)
    graph.write_bytes(content)
    with LotusEngine(null_bundle) as engine:
        engine(photo)


def test_contents_are_read_once_for_each_state_of_a_file(
    null_bundle: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    check = runtime.contents.check_content

    def noted(folder: Path, file: File) -> None:
        read.append(file.path)
        check(folder, file)

    monkeypatch.setattr(runtime.contents, "check_content", noted)

    def opened() -> set[str]:
        read.clear()
        with LotusEngine(null_bundle) as engine:
            engine(photo)
        return set(read)

    both = {"golden.npz", "model-64x96.onnx"}
    assert opened() == both
    assert opened() == both, "files of this very moment may change again without a trace"
    settle(null_bundle)
    assert opened() == both
    assert opened() == set()
    os.utime(null_bundle / "golden.npz", (LONG_AGO + 1, LONG_AGO + 1))
    assert opened() == {"golden.npz"}
    monkeypatch.setenv("LOTUS_EDGE_CHECK", "0")
    os.utime(null_bundle / "golden.npz", (LONG_AGO + 2, LONG_AGO + 2))
    assert opened() == set()
    monkeypatch.delenv("LOTUS_EDGE_CHECK")
    monkeypatch.setenv("LOTUS_EDGE_CACHE", "off")
    assert opened() == both


def test_contents_that_could_not_be_compared_are_not_taken_for_good(
    null_bundle: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path, file: File) -> None:
        raise MemoryError

    monkeypatch.setattr(runtime.contents, "check_content", fails)
    with LotusEngine(null_bundle) as engine, pytest.raises(MemoryError):
        engine(photo)


def test_a_file_that_is_exchanged_while_it_is_opened(
    null_bundle: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = BackendSession._open

    def exchanges(session: BackendSession) -> dict[str, tuple[int, ...]]:
        graph = session.folder / session.bucket.graph
        other = graph.with_name("other")
        other.write_bytes(graph.read_bytes())
        other.replace(graph)
        return opened(session)

    monkeypatch.setattr(BackendSession, "_open", exchanges)
    with LotusEngine(null_bundle) as engine, pytest.raises(DamagedBundleError, match="was changed"):
        engine(photo)


@pytest.mark.usefixtures("provable")
def test_a_bundle_proves_itself_once_for_each_version(
    null_bundle: Path,
    photo: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs: list[int] = []
    run = BackendSession._run

    def counted(session: BackendSession, runner: None, inputs: Arrays) -> Arrays:
        runs.append(1)
        return run(session, runner, inputs)

    monkeypatch.setattr(BackendSession, "_run", counted)

    def predictions(**settings: bool) -> int:
        runs.clear()
        with LotusEngine(null_bundle, **settings) as engine:
            engine(photo)
        return len(runs)

    assert predictions(prove=False) == 1
    assert predictions() == 2  # golden and photograph
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "first use of null" in lines[0]
    assert f"null {np.__version__}" in lines[0]
    assert predictions() == 1
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(runtime.machine, "_cpu", lambda: "another CPU")
    assert predictions() > 1
    monkeypatch.setattr(np, "__version__", "1.2.3")
    assert predictions() > 1
    assert predictions() == 1
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert predictions() > 1
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("LOTUS_EDGE_PROVE", "0")
    assert predictions() == 1


@pytest.mark.usefixtures("provable")
def test_a_version_that_answers_wrong_is_an_error_every_time(
    null_bundle: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LotusEngine(null_bundle) as engine:
        engine(photo)
    run = BackendSession._run
    monkeypatch.setattr(np, "__version__", "9.9.9")
    monkeypatch.setattr(
        BackendSession,
        "_run",
        lambda *words: {name: out * 0.9 for name, out in run(*words).items()},
    )
    for _ in range(2):
        with (
            LotusEngine(null_bundle) as engine,
            pytest.raises(VerificationError, match=r"null 9\.9\.9: .*answers the golden"),
        ):
            engine(photo)


@pytest.mark.usefixtures("provable")
def test_a_name_cannot_steer_the_terminal(
    null_bundle: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(null_bundle, lambda body: body.update(name="\x1b[2J\nerror: all is fine"))
    with LotusEngine(null_bundle) as engine:
        engine(photo)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said


@pytest.mark.usefixtures("provable")
def test_verify_is_a_proof(
    null_bundle: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    with LotusEngine(null_bundle) as engine:
        engine.verify()
        engine(photo)
    assert "first use" not in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_or_is_nonsense(
    null_bundle: Path, photo: np.ndarray, own_cache: Path
) -> None:
    own_cache.write_text("a file, where a folder should be")
    with LotusEngine(null_bundle) as engine:
        engine(photo)
    own_cache.unlink()
    settle(null_bundle)
    with LotusEngine(null_bundle) as engine:
        engine(photo)
    for record in (path for path in own_cache.rglob("*") if path.is_file()):
        record.write_text('["nonsense"]')
    with LotusEngine(null_bundle) as engine:
        engine(photo)


def bomb(name: str) -> bytes:
    """An archive whose array of this name unpacks to 200 MB."""
    archive, header = io.BytesIO(), io.BytesIO()
    np.save(header, np.zeros((64, 96, 3), np.uint8))
    with (
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open(f"{name}.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(header.getvalue())
        for _ in range(200):
            stream.write(bytes(1_000_000))
    return archive.getvalue()


def big_endian(name: str) -> bytes:
    archive = io.BytesIO()
    np.savez(archive, **{name: np.zeros((1, 64, 96), ">f4")})
    return archive.getvalue()


def packed_otherwise(name: str) -> bytes:
    archive = io.BytesIO()
    array = io.BytesIO()
    np.save(array, np.zeros((64, 96, 3), np.uint8))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_BZIP2) as packed:
        packed.writestr(f"{name}.npy", array.getvalue())
    return archive.getvalue()


def lies(name: str) -> bytes:
    """A header that promises more than there is."""
    archive, array = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros((64, 96, 3), np.uint8))
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(f"{name}.npy", array.getvalue()[:-10])
    return archive.getvalue()


def not_finite(name: str) -> bytes:
    """Signalling NaN, about which NumPy warns."""
    archive = io.BytesIO()
    arrays = {"image_64x96": np.zeros((64, 96, 3), np.uint8)}
    arrays["disparity_64x96"] = np.full((1, 64, 96), 0x7FA00000, np.uint32).view(np.float32)
    np.savez(archive, **arrays)
    return archive.getvalue()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [bomb, big_endian, packed_otherwise, lies, not_finite])
def test_goldens_made_up(null_bundle: Path, make: Callable[[str], bytes]) -> None:
    import resource

    golden = null_bundle / "golden.npz"
    golden.write_bytes(make("image_64x96"))
    file = dataclasses.asdict(describe_file(null_bundle, "golden.npz"))
    edit(null_bundle, lambda body: body["files"].__setitem__(0, file))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with LotusEngine(null_bundle) as engine, pytest.raises(DamagedBundleError, match="golden"):
        engine.verify()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_the_machine_is_described_in_words_that_json_holds() -> None:
    facts = runtime.machine.describe_machine(BACKENDS["null"])
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]
