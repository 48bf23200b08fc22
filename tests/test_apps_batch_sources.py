"""The sources of `lotus-edge batch`: which pictures a folder, a list or a table has, and their
names; what becomes of those that are not to be had; and the shards that hold the maps of many.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import bucket, picture, write_null_bundle
from PIL import Image

from apps.__main__ import main
from runtime import LotusEngine
from runtime.errors import ImageError

pytest.importorskip("ray", reason="extra `cluster`")
pa = pytest.importorskip("pyarrow", reason="extra `cluster`")

import pyarrow.parquet as pq  # noqa: E402
from pyarrow import fs as arrow  # noqa: E402

from apps.batch.ledger import BAD, DONE, SCHEMA, UNREAD, Ledger  # noqa: E402
from apps.batch.sources import find  # noqa: E402
from apps.batch.store import Store, name_of_uri, without_secrets  # noqa: E402
from apps.batch.worker import Job, Labeller, UnreadError, _judged, part_name  # noqa: E402


def job_for(bundle: Path, output: Path, **changes: Any) -> Job:
    return Job(bundle=str(bundle), backend="null", store=Store(str(output)), **changes)


def encoded(seed: int) -> bytes:
    rgb = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, format="PNG")
    return stream.getvalue()


def names(source: object, output: object = "/nowhere/at/all", **options: Any) -> list[str]:
    return find(str(source), str(output), **options).table["picture"].to_pylist()


def test_a_folder(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a.webp", "c/deep/3.png", "out/results/x.png"):
        picture(tmp_path / name)
    for name in ("notes.txt", "._1.png", "d.heic"):
        (tmp_path / name).touch()
    found = find(str(tmp_path), str(tmp_path / "out"))
    assert found.table["picture"].to_pylist() == ["a.webp", "b/1.JPG", "b/2.png", "c/deep/3.png"]
    row = found.table.to_pylist()[0]
    state = (tmp_path / "a.webp").stat()
    assert (row["size"], row["modified"]) == (state.st_size, state.st_mtime_ns)
    assert found.skipped == {".heic: `pip install pillow-heif`": 1}


def test_results_of_this_project_are_no_source(null_bundle: Path, tmp_path: Path) -> None:
    photo = picture(tmp_path / "d" / "a.png")
    with LotusEngine(null_bundle) as engine:
        engine(photo).save(tmp_path / "d" / "result")
    assert names(tmp_path / "d") == ["a.png"]


def test_a_list(tmp_path: Path) -> None:
    for name in ("lists/a.png", "lists/sub/b.png", "other/a.png"):
        picture(tmp_path / name)
    outside = (tmp_path / "other" / "a.png").as_posix()
    lines = ["a.png", "", "sub/b.png", "a.png", "./a.png", "../other/a.png", outside, "gone.png"]
    (tmp_path / "lists" / "l.txt").write_bytes("\r\n".join(lines).encode())
    found = find(str(tmp_path / "lists" / "l.txt"), "/nowhere")
    listed = {row["picture"]: row for row in found.table.to_pylist()}
    assert list(listed) == ["a.png", "sub/b.png", outside[1:], "gone.png"]
    assert listed["gone.png"]["size"] == -1
    assert os.fsdecode(listed[outside[1:]]["path"]) == outside


def test_names_in_a_list_that_would_be_the_same_are_told_apart(tmp_path: Path) -> None:
    for where in (tmp_path, Path(f"{tmp_path}/{tmp_path}")):
        picture(where / "a.png")
    (tmp_path / "l.txt").write_text(
        f"{tmp_path}/a.png\n.{tmp_path}/a.png\n../up/{tmp_path}/a.png\n"
    )
    assert len(set(names(tmp_path / "l.txt"))) == 3


def test_tables_of_paths(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    table = pa.table({"label": [1, 2], "path": ["a.png", "gone.png"]})
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("label,path\n1,a.png\n2,gone.png\n")
    (tmp_path / "t.jsonl").write_text('{"label":1,"path":"a.png"}\n{"label":2,"path":"gone.png"}\n')
    for name in ("t.parquet", "t.csv", "t.jsonl"):
        assert names(tmp_path / name) == ["a.png", "gone.png"], name


def test_tables_of_pictures(null_bundle: Path, tmp_path: Path) -> None:
    contents = [encoded(seed) for seed in range(5)]
    contents[3] = None  # type: ignore[call-overload]
    column = [{"bytes": content, "path": "x"} for content in contents]
    folder = tmp_path / "set"
    folder.mkdir()
    table = pa.table({"image": column, "id": [f"p{at}" for at in range(5)]})
    pq.write_table(table, folder / "train-0.parquet", row_group_size=2)
    assert names(folder) == [f"train-0.parquet/{at}" for at in range(5)]
    found = find(str(folder), "/nowhere", name="id")
    assert found.table["picture"].to_pylist() == [f"p{at}" for at in range(5)]
    job = job_for(null_bundle, tmp_path / "out", column=found.column)
    done = Labeller(job)(found.table).to_pylist()
    assert [row["status"] for row in done] == [DONE, DONE, DONE, BAD, DONE]
    assert done[3]["note"] == "the table has no picture in this row"
    rgb = np.asarray(Image.open(io.BytesIO(contents[4])))
    with LotusEngine(null_bundle) as engine:
        expected = engine(rgb).values
    assert np.array_equal(np.load(tmp_path / "out/results/p4-disparity.npy"), expected)


def test_tables_in_a_folder_at_a_uri(null_bundle: Path, tmp_path: Path) -> None:
    for folder in ("pictures", "paths"):
        (tmp_path / folder).mkdir()
    inside = pa.table({"image": [encoded(1), encoded(2)]})
    pq.write_table(inside, tmp_path / "pictures" / "t.parquet")
    found = find((tmp_path / "pictures").as_uri(), "/nowhere")
    assert found.table["picture"].to_pylist() == ["t.parquet/0", "t.parquet/1"]
    done = Labeller(job_for(null_bundle, tmp_path, column=found.column))(found.table)
    assert done["status"].to_pylist() == [DONE, DONE]
    pq.write_table(pa.table({"path": ["../a.png"]}), tmp_path / "paths" / "t.parquet")
    (row,) = find((tmp_path / "paths").as_uri(), "/nowhere").table.to_pylist()
    assert row["path"].decode() == (tmp_path / "a.png").as_uri()


def test_no_name_in_an_object_store_leads_out_of_the_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Bucket:
        def get_file_info(self, _: object) -> list[Any]:
            keys = ("../../x.png", "a//../b.png", "c.png")
            return [arrow.FileInfo(f"bucket/d/{key}", arrow.FileType.File, size=1) for key in keys]

    monkeypatch.setattr("apps.batch.sources.open_place", lambda _: (Bucket(), "bucket/d"))
    assert names("file:///bucket/d") == ["x.png", "a/b.png", "c.png"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda t: t / "nothing", "does not exist"),
        (lambda t: (t / "x.bin").write_text("x") and t / "x.bin", "is no folder, list, table"),
        (lambda t: (t / "e").mkdir() or t / "e", "no images found"),
        (lambda t: (t / "e.txt").write_text("\n\n") and t / "e.txt", "no images found"),
        (lambda t: t / "none.txt", "cannot be read"),
        (lambda t: (t / "b.parquet").write_text("no table") and t / "b.parquet", "cannot be read"),
        (lambda t: (t / "n.csv").write_text("n\n1\n") and t / "n.csv", "Name one with --column"),
        (lambda t: "nowhere://bucket/x", "cannot be opened"),
    ],
)
def test_sources_that_are_refused(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        find(str(make(tmp_path)), str(tmp_path / "out"))


def test_what_is_shown_of_a_uri_has_no_secrets() -> None:
    where = "s3://key:secret@bucket/a%20b/c.png?region=x&token=y"
    assert without_secrets(where) == "s3://bucket/a b/c.png"
    assert name_of_uri(where) == "bucket/a b/c.png"
    assert without_secrets("/a@b?c") == "/a@b?c"


# --- pictures that are not to be had


class Here:
    """In place of a cluster: this process does the parts."""

    def __init__(self, job: Job, _: object) -> None:
        self._labeller = Labeller(job)

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def label(self, pictures: Any, size: int) -> Iterator[Any]:
        for at in range(0, len(pictures), size):
            yield self._labeller(pictures.slice(at, size))


class Dead(Here):
    """The processes of this one die before they answer."""

    def label(self, pictures: Any, size: int) -> Iterator[Any]:
        yield SCHEMA.empty_table()


def command(bundle: Path, source: Path, output: Path, *options: str) -> list[str]:
    return ["batch", str(bundle), str(source), "--output", str(output), *options]


def test_what_could_not_be_read_is_tried_again(
    null_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("apps.batch.run._Cluster", Here)
    picture(tmp_path / "a.png")
    content = picture(tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(bytes(len(content)))
    state = (tmp_path / "bad.png").stat()
    (tmp_path / "l.txt").write_text("a.png\nbad.png\ngone.png\n")
    words = command(null_bundle, tmp_path / "l.txt", tmp_path / "o")
    assert main(words) == 1, capfd.readouterr()
    said = capfd.readouterr()
    assert "3 pictures: 1 done, 1 bad, 1 could not be read" in said.out
    assert "not read: 1, cannot be read: No such file or directory" in said.out
    assert "UNREAD gone.png: " in said.err
    table = pq.read_table(tmp_path / "o" / "ledger.parquet")
    assert table["picture"].to_pylist() == ["a.png", "bad.png"]
    picture(tmp_path / "gone.png")
    assert main(words) == 1
    assert "3 pictures: 2 done, 1 bad\n" in capfd.readouterr().out
    # Whole again, and nothing of the file tells so.
    (tmp_path / "bad.png").write_bytes(content)
    os.utime(tmp_path / "bad.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert main(words) == 1
    assert main([*words, "--retry-bad"]) == 0, capfd.readouterr()
    assert "3 pictures: 3 done, 0 bad\n" in capfd.readouterr().out


def test_a_source_that_is_gone_leaves_no_bad_ones(
    null_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("apps.batch.run._Cluster", Here)
    (tmp_path / "l.txt").write_text("".join(f"{at}.png\n" for at in range(150)))
    assert main(command(null_bundle, tmp_path / "l.txt", tmp_path / "o")) == 1
    said = capfd.readouterr()
    assert "150 pictures: 0 done, 0 bad, 150 could not be read" in said.out
    assert said.err.count("UNREAD ") == 20, "a disk has millions of pictures"
    assert len(Ledger(Store(str(tmp_path / "o"))).merge()) == 0
    named = (tmp_path / "o" / "unread.csv").read_text().splitlines()
    assert named[0] == '"picture","reason"'
    assert len(named) == 151
    assert named[-1].startswith('"99.png","cannot be read: No such file')


def test_where_no_process_lives_no_picture_is_bad(
    null_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("apps.batch.run._Cluster", Dead)
    picture(tmp_path / "d" / "a.png")
    picture(tmp_path / "d" / "b.png")
    for part in ("1", "2", "32"):
        words = command(null_bundle, tmp_path / "d", tmp_path / "o", "--part", part)
        assert main(words) == 1
        assert "None is marked bad" in capfd.readouterr().err
    assert len(Ledger(Store(str(tmp_path / "o"))).merge()) == 0


def test_a_new_picture_that_kills_its_process_is_a_bad_one(
    null_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Where others were done before, it is not for lack of memory."""
    monkeypatch.setattr("apps.batch.run._Cluster", Here)
    picture(tmp_path / "d" / "a.png")
    words = command(null_bundle, tmp_path / "d", tmp_path / "o")
    assert main(words) == 0, capfd.readouterr()
    monkeypatch.setattr("apps.batch.run._Cluster", Dead)
    picture(tmp_path / "d" / "b.png")
    for more in ([], ["--retry-bad"]):
        assert main([*words, *more]) == 1
        assert "2 pictures: 1 done, 1 bad" in capfd.readouterr().out


def test_too_little_memory_is_no_fault_of_a_picture(
    null_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(LotusEngine, "__call__", no_memory)
    picture(tmp_path / "d" / "a.png")
    found = find(str(tmp_path / "d"), "/nowhere").table
    (row,) = Labeller(job_for(null_bundle, tmp_path / "o"))(found).to_pylist()
    assert (row["status"], row["note"][:17]) == (UNREAD, "not enough memory")
    assert not (tmp_path / "o" / "ledger").exists()


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (OSError(5, "Input/output error"), UnreadError),  # of the disk
        (OSError(22, "Invalid argument"), ImageError),  # of a decoder, sent to before the file
        (OSError("image file is truncated"), ImageError),  # Pillow's own words
        (None, ImageError),
    ],
)
def test_whose_fault_it_is(tmp_path: Path, cause: Exception | None, kind: type[Exception]) -> None:
    path = picture(tmp_path / "a.png")
    error = ImageError("cannot be decoded")
    error.__cause__ = cause
    assert type(_judged(error, path)) is kind
    path.unlink()
    assert type(_judged(error, path)) is UnreadError


# --- shards


def test_a_shard_has_the_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = [bucket(), bucket(2)]
    bundle = write_null_bundle(tmp_path / "n", task=("depth", "normal"), buckets=buckets)
    for seed in range(3):
        picture(tmp_path / "d" / f"{seed}.png", seed)
    found = find(str(tmp_path / "d"), "/nowhere").table
    job = job_for(bundle, tmp_path / "out", shards=True, options={"resize": None})
    write, options = pq.write_table, list[dict[str, Any]]()
    monkeypatch.setattr(pq, "write_table", lambda *a, **o: options.append(o) or write(*a, **o))
    done = Labeller(job)(found)
    (shard,) = set(done["result"].to_pylist())
    # A page has one map, since a page of two could be larger than Parquet allows.
    assert options[0].items() >= {"use_dictionary": False, "write_batch_size": 1}.items()
    table = pq.read_table(tmp_path / "out" / shard)
    assert table["picture"].to_pylist() == ["0.png", "1.png", "2.png"]
    with LotusEngine(bundle) as engine:
        for row in table.to_pylist():
            expected = engine(tmp_path / "d" / row["picture"], resize=None)
            for task in ("depth", "normal"):
                values = np.load(io.BytesIO(row[task]))
                assert np.array_equal(values, expected[task].values)
    assert b"depth" in table.schema.metadata


def test_a_shard_is_full_by_bytes(
    null_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.batch.shards.SHARD_BYTES", 4000)  # a map has 2400, and a head
    monkeypatch.setattr("apps.batch.worker.LARGEST", 9999)
    for seed in range(5):
        picture(tmp_path / "d" / f"{seed}.png", seed)
    picture(tmp_path / "d" / "large.png", 5, (50, 51))
    found = find(str(tmp_path / "d"), "/nowhere").table
    store = Store(str(tmp_path / "out"))
    done = Labeller(job_for(null_bundle, tmp_path / "out", shards=True))(found).to_pylist()
    shards = [f"shards/{part_name(found)}-{at}.parquet" for at in range(3)]
    assert [row["result"] for row in done] == [shards[at] for at in (0, 0, 1, 1, 2)] + [None]
    assert (done[5]["status"], done[5]["note"][:23]) == (BAD, "its map has 10,200 byte")
    store.write({f"shards/{part_name(found)}-3.parquet": b"of a worker that died"})
    for _ in range(2):
        Ledger(store).merge()
        assert store.names("shards") == shards
        held = [pq.read_table(tmp_path / "out" / each)["picture"].to_pylist() for each in shards]
        assert held == [["0.png", "1.png"], ["2.png", "3.png"], ["4.png"]]
