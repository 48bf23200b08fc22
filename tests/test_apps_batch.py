"""`lotus-edge batch`: every picture once, whatever dies meanwhile, and the ledger says so."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, picture, write_null_bundle
from PIL import Image

from apps.__main__ import main
from apps.batch.command import LOOPBACK
from runtime import LotusEngine
from runtime.errors import OutputError

os.environ.update(LOOPBACK)  # as the command, before Ray is imported
ray = pytest.importorskip("ray", reason="extra `cluster`")
pa = pytest.importorskip("pyarrow", reason="extra `cluster`")
psutil = pytest.importorskip("psutil", reason="extra `cluster`")  # Ray brings it along

import pyarrow.parquet as pq  # noqa: E402

from apps.batch.ledger import BAD, DONE, FATAL, Ledger, missing, rows, table_bytes  # noqa: E402
from apps.batch.run import BatchError, Pool, _Cluster  # noqa: E402
from apps.batch.sources import find  # noqa: E402
from apps.batch.store import Store  # noqa: E402
from apps.batch.summary import summarize  # noqa: E402
from apps.batch.worker import Job, Labeller, part_name  # noqa: E402


def command(bundle: Path, source: object, output: object, *options: object) -> list[str]:
    words = ["batch", bundle, source, "--output", output, "--cpus", 1, "--engines", 2, *options]
    return [str(word) for word in words]


# --- the worker, without Ray


def job_for(bundle: Path, output: Path, **changes: Any) -> Job:
    return Job(bundle=str(bundle), backend="null", store=Store(str(output)), **changes)


def test_a_part_is_done_once_and_equals_the_engine(null_bundle: Path, tmp_path: Path) -> None:
    picture(tmp_path / "d" / "a.png", 1)
    picture(tmp_path / "d" / "b" / "a.png", 2, (90, 40))
    (tmp_path / "d" / "c.png").write_bytes(b"no picture")
    found = find(str(tmp_path / "d"), "/nowhere").table
    labeller = Labeller(job_for(null_bundle, tmp_path / "out"))
    done = labeller(found)
    status = dict(zip(done["picture"].to_pylist(), done["status"].to_pylist(), strict=True))
    assert status == {"a.png": DONE, "b/a.png": DONE, "c.png": BAD}
    by_name = {row["picture"]: row for row in done.to_pylist()}
    assert by_name["c.png"]["note"].startswith("is not a picture of a known format")
    with LotusEngine(null_bundle) as engine:
        for row in (by_name["a.png"], by_name["b/a.png"]):
            stem = tmp_path / "out" / row["result"]
            expected = engine(tmp_path / "d" / row["picture"]).values
            assert np.array_equal(np.load(f"{stem}-disparity.npy"), expected)
            assert (row["height"], row["width"]) == expected.shape
    part = tmp_path / "out" / "ledger" / f"{part_name(found)}.parquet"
    assert pq.read_table(part).equals(done)
    result = tmp_path / "out" / "results" / "a.png-disparity.npy"
    before = result.stat().st_mtime_ns
    assert labeller(found).equals(done)  # a second attempt finds that it was done
    assert result.stat().st_mtime_ns == before


def test_what_ends_the_work_is_answered(null_bundle: Path, tmp_path: Path) -> None:
    photo = picture(tmp_path / "d" / "a.png").parent
    found = find(str(photo), "/nowhere").table
    (null_bundle / "golden.npz").unlink()
    (row,) = Labeller(job_for(null_bundle, tmp_path / "out"))(found).to_pylist()
    assert row["status"] == FATAL
    assert "is missing" in row["note"]
    assert not (tmp_path / "out" / "ledger").exists()


# --- the ledger


def ledger_row(name: str, finished: float, result: str, **changes: Any) -> dict[str, Any]:
    return {
        "picture": name,
        "size": 1,
        "modified": 2,
        "status": DONE,
        "note": "",
        "result": result,
        "seconds": 1.0,
        "worker": "w",
        "finished": finished,
        **changes,
    }


def test_parts_are_merged_and_the_newest_row_counts(tmp_path: Path) -> None:
    """A picture that is in two shards, since a worker that was thought dead was not, or since it
    changed, is in one afterwards."""
    store = Store(str(tmp_path))
    one, two, three = (f"shards/{at:020x}.parquet" for at in (1, 2, 3))
    first = [ledger_row("a", 1, one), ledger_row("b", 1, one)]
    second = [ledger_row("b", 2, two, size=9), ledger_row("c", 2, two)]
    for at, name, part in ((1, one, first), (2, two, second)):
        shard = pa.table({"picture": [row["picture"] for row in part]})
        store.write({f"ledger/{at:020x}.parquet": table_bytes(rows(part))})
        store.write({name: table_bytes(shard), f"begun/{at:020x}": b"1"})
    store.write({three: b"of a worker that died before it said so"})
    mine = ["begun/notes", "ledger/mine.parquet", "shards/mine.parquet"]
    store.write(dict.fromkeys(mine, b"of somebody else"))
    merged = Ledger(store).merge()
    assert merged["picture"].to_pylist() == ["a", "b", "c"]
    assert merged["size"].to_pylist() == [1, 9, 1]
    assert [*store.names("begun"), *store.names("ledger")] == mine[:2]
    assert store.names("shards") == [one, two, mine[2]]
    assert pq.read_table(tmp_path / one)["picture"].to_pylist() == ["a"]
    assert pq.read_table(tmp_path / two)["picture"].to_pylist() == ["b", "c"]
    assert Ledger(store).merge().equals(merged)
    pictures = pa.table({"picture": ["a", "b", "d"], "size": [1, 1, 1], "modified": [2, 2, 2]})
    assert missing(pictures, merged)["picture"].to_pylist() == ["b", "d"]  # b was changed


def test_a_store_belongs_to_one_work(tmp_path: Path) -> None:
    ledger = Ledger(Store(str(tmp_path / "o")))
    with (
        ledger.of({"bundle": "1"}),
        pytest.raises(OutputError, match="another run"),
        Ledger(Store(str(tmp_path / "o"))).of({"bundle": "1"}),
    ):
        pass
    with ledger.of({"bundle": "1"}):
        pass
    with (
        pytest.raises(OutputError, match="another bundle: '1', now '2'"),
        ledger.of({"bundle": "2"}),
    ):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with (
        pytest.raises(OutputError, match=r"letter\.txt"),
        Ledger(Store(str(tmp_path / "mine"))).of({}),
    ):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    (tmp_path / "yours" / "shards").mkdir(parents=True)
    (tmp_path / "yours" / "shards" / f"{1:020x}.parquet").touch()
    with (
        pytest.raises(OutputError, match="is not empty, shards"),
        Ledger(Store(str(tmp_path / "yours"))).of({}),
    ):
        pass
    with (
        pytest.raises(OutputError, match="cannot"),
        Ledger(Store(str(tmp_path / "mine/letter.txt"))).of({}),
    ):
        pass


def test_a_store_of_an_older_version_and_one_that_was_just_begun(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write({"run.lock": b"", ".lotus-00aa-1-00bbcc.partial": b"{"})  # killed at once
    with Ledger(store).of({"bundle": "1"}):
        pass
    with Ledger(store).of({"bundle": "1", "column": "image", "name": None}):
        pass
    with (
        pytest.raises(OutputError, match="another column: 'image', now 'photo'"),
        Ledger(store).of({"bundle": "1", "column": "photo", "name": None}),
    ):
        pass


def test_the_summary_names_stragglers() -> None:
    table = [ledger_row(f"{at}", at, "r", seconds=0.1, worker="fast") for at in range(6)]
    table += [ledger_row(f"s{at}", 10 + at, "r", seconds=2.0, worker="slow") for at in range(2)]
    table += [ledger_row(f"m{at}", 20 + at, "r", seconds=0.2, worker="mid") for at in range(2)]
    table += [ledger_row("bad", 30, None, status=BAD, seconds=0.0, worker="")]  # type: ignore[arg-type]
    before = rows(table[:1])
    summary = summarize(rows(table), before, 5.0, {"gone": "no such file"})
    assert (summary["pictures"], summary["done"], summary["bad"]) == (12, 10, 1)
    run = summary["this_run"]
    assert run["pictures"] == 10
    assert run["pictures_per_second"] == 2.0
    assert {name: each["straggler"] for name, each in run["engines"].items()} == {
        "fast": False,
        "mid": False,
        "slow": True,
    }
    assert next(iter(run["slowest"])).startswith("s")


# --- with Ray


def check_complete(bundle: Path, source: Path, output: Path, bad: set[str]) -> list[dict[str, Any]]:
    """Every picture has one row and its files, which are whole and right, and nothing else lies
    there."""
    table = pq.read_table(output / "ledger.parquet").to_pylist()
    listed = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.*"))
    assert [row["picture"] for row in table] == listed
    assert {row["picture"] for row in table if row["status"] == BAD} == bad
    with (output / "bad.csv").open() as stream:
        assert {row["picture"] for row in csv.DictReader(stream)} == bad
    assert [*(output / "ledger").iterdir()] == []
    results = {path.relative_to(output / "results").as_posix() for path in output.rglob("*.*g*")}
    endings = ("-disparity.npy", "-disparity-16bit.png", "-disparity.png")
    stems = [name for name in listed if name not in bad]
    files = {path.relative_to(output / "results").as_posix() for path in files_below(output)}
    assert files == {f"{stem}{ending}" for stem in stems for ending in endings}
    assert results <= files | {"../bad.csv"}
    with LotusEngine(bundle) as engine:
        for stem in stems[::7]:
            values = np.load(output / "results" / f"{stem}-disparity.npy")
            assert np.array_equal(values, engine(source / stem).values)
    for stem in stems:
        np.load(output / "results" / f"{stem}-disparity.npy")
        Image.open(output / "results" / f"{stem}-disparity.png").load()
    return table


def files_below(output: Path) -> list[Path]:
    return [path for path in (output / "results").rglob("*") if path.is_file()]


def parts(output: Path) -> list[dict[str, Any]]:
    """The rows that are written so far."""
    found: list[dict[str, Any]] = []
    for path in [*output.glob("ledger/*.parquet"), *output.glob("ledger.parquet")]:
        found += pq.read_table(path).to_pylist()
    return found


def wait_for(count: int, output: Path, process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    until = time.monotonic() + 120
    while len(done := parts(output)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.02)
    return done


def listeners(process: int) -> set[str]:
    """The addresses at which a process and those below it wait for connections."""
    family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    found: set[str] = set()
    for each in family:
        with contextlib.suppress(psutil.Error):  # it has ended
            sockets = each.net_connections("tcp")
            found |= {socket.laddr.ip for socket in sockets if socket.status == "LISTEN"}
    return found


def test_a_cluster_that_asks_for_a_token(
    monkeypatch: pytest.MonkeyPatch, null_bundle: Path
) -> None:
    def init(**_: object) -> None:
        raise ray.exceptions.AuthenticationError("no token")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(BatchError, match="no Ray at far:6379: no token"),
        _Cluster(job_for(null_bundle, null_bundle), Pool(address="far:6379")),
    ):
        pass


def test_shards_bad_pictures_and_a_second_run(
    null_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed in range(12):
        picture(tmp_path / "d" / f"{seed:02}.png", seed)
    (tmp_path / "d" / "99.png").write_bytes(b"no picture")
    again = command(null_bundle, tmp_path / "d", tmp_path / "o", "--format", "parquet", "--part", 4)
    assert main(again) == 1, capfd.readouterr()
    said = capfd.readouterr()
    assert "13 pictures: 12 done, 1 bad" in said.out
    assert "BAD 99.png: " in said.err
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert (summary["done"], summary["bad"], summary["this_run"]["pictures"]) == (12, 1, 13)
    shards = sorted((tmp_path / "o" / "shards").iterdir())
    held = [name for path in shards for name in pq.read_table(path)["picture"].to_pylist()]
    assert sorted(held) == [f"{seed:02}.png" for seed in range(12)]
    assert main(again) == 1  # nothing is missing: no Ray is started, nothing is written anew
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["this_run"]["pictures"] == 0
    assert "0 to do" in capfd.readouterr().err
    other = write_null_bundle(tmp_path / "other", task="depth")
    assert main(command(other, tmp_path / "d", tmp_path / "o", "--format", "parquet")) == 1
    assert "was begun with another bundle" in capfd.readouterr().err


@pytest.mark.slow
def test_500_pictures_a_killed_engine_and_an_interrupted_run(tmp_path: Path) -> None:
    bundle, source, output = write_null_bundle(tmp_path / "n"), tmp_path / "d", tmp_path / "o"
    for at in range(500):
        picture(source / f"{at % 10}" / f"{at}.png", at, (160, 240))
    for name in ("0/0.png", "5/255.png"):
        (source / name).write_bytes(b"no picture")
    words = [sys.executable, "-m", "apps", *command(bundle, source, output, "--part", 10)]
    env = {name: value for name, value in os.environ.items() if name not in LOOPBACK}
    with subprocess.Popen(
        words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        done = wait_for(100, output, run)
        # No other machine reaches the processes.
        assert listeners(run.pid) <= {"127.0.0.1", "::ffff:127.0.0.1"}
        assert {row["worker"].rpartition(":")[0] for row in done} == {"127.0.0.1"}
        victim = int(done[-1]["worker"].rpartition(":")[2])
        os.kill(victim, signal.SIGKILL)
        done = wait_for(200, output, run)
        assert victim in {int(row["worker"].rpartition(":")[2]) for row in done}
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "Traceback" not in said
    assert "interrupted" in said
    half = len(parts(output))
    assert 200 <= half < 500
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stderr
    assert f"{half} are done already" in again.stderr
    table = check_complete(bundle, source, output, {"0/0.png", "5/255.png"})
    assert len({row["worker"] for row in table}) >= 4  # two, one in the place of the killed, two


class Poisoned(Labeller):
    """Dies of one picture, whenever it comes."""

    def _predict(self, paths: Any) -> Any:
        if any(path.name == "13.png" for path in paths):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._predict(paths)


@pytest.mark.slow
def test_a_picture_that_kills_its_process_is_a_bad_one(
    null_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(30):
        picture(tmp_path / "d" / f"{seed:02}.png", seed)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # it is nowhere installed
    monkeypatch.setattr("apps.batch.run.Labeller", Poisoned)
    assert main(command(null_bundle, tmp_path / "d", tmp_path / "o", "--part", 10)) == 1
    table = check_complete(null_bundle, tmp_path / "d", tmp_path / "o", {"13.png"})
    assert "the process that predicted it died" in table[13]["note"]


@pytest.mark.parametrize(
    ("engines", "cpus", "nodes", "expected"),
    [
        (None, 2, [4, 3], (3, {"num_cpus": 2})),
        (None, 8, [2], (1, {"num_cpus": 2})),  # what is there, rather than wait for ever
        (2, 1, [2], (2, {"num_cpus": 1})),
        (3, 2, [4], "do not fit: Ray has room for 2"),
    ],
)
def test_how_many_engines(
    monkeypatch: pytest.MonkeyPatch,
    null_bundle: Path,
    engines: int | None,
    cpus: int,
    nodes: list[int],
    expected: object,
) -> None:
    alive = [{"Alive": True, "Resources": {"CPU": float(each)}} for each in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 64}}])
    pool = _Cluster(job_for(null_bundle, null_bundle), Pool(engines=engines, cpus=cpus))
    if isinstance(expected, str):
        with pytest.raises(BatchError, match=expected):
            pool._resources()
    else:
        assert pool._resources() == expected
