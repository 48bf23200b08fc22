"""The sources of `lotus-edge batch`: which pictures a folder, a list or a table has, and their
names.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from runtime import LotusEngine
from runtime.errors import ImageError

pytest.importorskip("ray", reason="extra `cluster`")
pa = pytest.importorskip("pyarrow", reason="extra `cluster`")

import pyarrow.parquet as pq  # noqa: E402

from apps.batch.ledger import BAD, DONE  # noqa: E402
from apps.batch.sources import find  # noqa: E402
from apps.batch.store import Store, name_of_uri, without_secrets  # noqa: E402
from apps.batch.worker import Job, Labeller  # noqa: E402


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
    store = Store(str(tmp_path / "out"))
    job = Job(bundle=str(null_bundle), backend="null", store=store, column=found.column)
    done = Labeller(job)(found.table).to_pylist()
    assert [row["status"] for row in done] == [DONE, DONE, DONE, BAD, DONE]
    assert done[3]["note"] == "the table has no picture in this row"
    rgb = np.asarray(Image.open(io.BytesIO(contents[4])))
    with LotusEngine(null_bundle) as engine:
        expected = engine(rgb).values
    assert np.array_equal(np.load(tmp_path / "out/results/p4-disparity.npy"), expected)


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
