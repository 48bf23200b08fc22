"""Runs on data sets: tars, folders and lists, what is missing, kills, comparisons, pickles."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_null_bundle
from evaluation_sets import COUNT, pack
from PIL import Image

from benchmarks import evaluate
from benchmarks.evaluation import report
from benchmarks.evaluation.compare import compare_results
from benchmarks.evaluation.dataset import open_set
from benchmarks.evaluation.journal import Journal
from benchmarks.evaluation.pickles import read_pickle
from benchmarks.evaluation.run import Settings
from benchmarks.evaluation.run import evaluate as measure
from benchmarks.evaluation.sets import SETS
from export.data_sets import DataSetError, spread
from runtime import LotusEngine

BY_KEY = {data.key: data for data in SETS}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two small sets of one layout each: depth of ScanNet and normals of NYUv2."""
    random = np.random.default_rng(1)
    depths = tmp_path / "data" / "scannet" / "scannet_val_sampled_800_1" / "scene0406_02"
    normals = tmp_path / "data" / "dsine_eval" / "nyuv2" / "test"
    for folder in (depths / "color", depths / "depth", normals):
        folder.mkdir(parents=True)
    for number in range(COUNT):
        rgb = random.integers(0, 256, (41, 59, 3), dtype=np.uint8)
        depth = random.integers(1000, 9000, (41, 59)).astype(np.uint16)
        Image.fromarray(rgb).save(depths / "color" / f"{number:06d}.png")
        Image.fromarray(depth).save(depths / "depth" / f"{number:06d}.png")
        Image.fromarray(rgb).save(normals / f"{number:06d}_img.png")
        Image.fromarray(rgb[::-1]).save(normals / f"{number:06d}_normal.png")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time; one test looks at them."""
    if "report_says" not in request.node.name:
        for name in ("write_histogram", "write_sheet"):
            monkeypatch.setattr(report, name, lambda *_: None)


def settings(root: Path, **changes: object) -> Settings:
    return Settings(root=root, output=root.parent / "out", **changes)  # type: ignore[arg-type]


def scannet(root: Path) -> Path:
    return root / "scannet" / "scannet_val_sampled_800_1"


def run(root: Path, *words: str, task: str = "depth") -> int:
    bundle = write_null_bundle(root.parent / f"null-{task}", name=f"null-{task}", task=task)
    output = root.parent / "out"
    return evaluate.main([str(bundle), "--data", str(root), "--output", str(output), *words])


def metrics_of(root: Path, folder: str = "null-depth-fp32-null") -> dict[str, float]:
    (row,) = json.loads((root.parent / "out" / folder / "rows.json").read_text())["rows"]
    return row["metrics"]


def test_a_tar_gives_what_the_folder_gives(root: Path) -> None:
    assert run(root) == 0
    of_folder = metrics_of(root)
    shutil.rmtree(root.parent / "out")
    pack(scannet(root))
    shutil.rmtree(scannet(root))
    assert run(root) == 0
    assert metrics_of(root) == of_folder


@pytest.mark.parametrize("cut", [0.5, 0.999])
def test_a_tar_that_was_copied_in_part_is_refused(
    root: Path, cut: float, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = pack(scannet(root))
    shutil.rmtree(scannet(root))
    whole = tar.read_bytes().rstrip(b"\0")
    tar.write_bytes(whole[: int(len(whole) * cut)])
    assert run(root) == 1
    assert "scannet_val_sampled_800_1.tar" in capsys.readouterr().err


def test_the_first_missing_file_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scannet(root) / "scene0406_02/depth/000003.png").unlink()
    assert run(root) == 1
    error = capsys.readouterr().err
    assert "lacks scene0406_02/depth/000003.png" in error
    assert "unpacked in part" in error


def test_a_list_decides_and_its_missing_files_are_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"scene0406_02/color/{n:06d}.png scene0406_02/depth/{n:06d}.png" for n in (4, 1)]
    path = root / "data_split" / "scannet" / "scannet_val_sampled_list_800_1.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n\n")
    opened = open_set(BY_KEY["scannet-depth"], root)
    assert opened is not None
    assert [item.name[-10:] for item in opened.items] == ["000004.png", "000001.png"]
    path.write_text("\n".join([*lines, lines[0].replace("000004", "000077")]))
    assert run(root) == 1
    assert "lacks scene0406_02/color/000077.png and 1 more of 6 files" in capsys.readouterr().err
    path.write_text("one-word-that-is-no-picture\n")
    assert run(root) == 1
    assert "cannot use the line" in capsys.readouterr().err


def test_a_list_of_normals_has_one_word_a_line(root: Path) -> None:
    lists = root.parent / "lists" / "nyuv2" / "split"
    lists.mkdir(parents=True)
    (lists / "test.txt").write_text("test/000002_img.png\ntest/000000_img.png\n")
    opened = open_set(BY_KEY["nyuv2-normal"], root, root.parent / "lists")
    assert opened is not None
    assert [item.files for item in opened.items] == [
        ("test/000002_normal.png",),
        ("test/000000_normal.png",),
    ]


def test_what_is_not_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "--sets", "kitti") == 1
    assert "kitti/kitti_eigen_split_test.tar" in capsys.readouterr().err
    assert run(root, "--sets", "nowhere") == 1
    assert "known:" in capsys.readouterr().err
    assert run(root, task="matting") == 1
    assert "predicts matting" in capsys.readouterr().err
    assert run(root / "none") == 1
    assert "no such folder" in capsys.readouterr().err
    assert run(root, "--count", "0") == 1
    with pytest.raises(SystemExit):
        evaluate.main([])


def test_a_picture_that_cannot_be_read_is_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = scannet(root) / "scene0406_02/depth/000002.png"
    path.write_bytes(path.read_bytes()[:60])
    assert run(root) == 1
    assert "scene0406_02/depth/000002.png" in capsys.readouterr().err
    Image.fromarray(np.zeros((41, 58), np.uint16)).save(path)
    assert run(root) == 1
    assert "differ in size: 41 x 59, 41 x 58" in capsys.readouterr().err


def test_count_is_spread_over_the_set_and_goes_on(root: Path) -> None:
    assert spread([*range(10)], 3) == [0, 3, 6]
    assert spread([*range(3)], 7) == [0, 1, 2]
    assert run(root, "--count", "2") == 0
    folder = root.parent / "out" / "null-depth-fp32-null"
    assert "2 of 800" in (folder / "report.md").read_text()
    journal = folder / "scannet-depth" / "images.jsonl"
    first = journal.read_bytes()
    assert run(root) == 0
    assert journal.read_bytes().startswith(first)
    assert len(journal.read_bytes().splitlines()) == COUNT


def test_a_changed_file_is_measured_again_and_another_seed_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root) == 0
    before = metrics_of(root)
    path = scannet(root) / "scene0406_02/depth/000002.png"
    Image.fromarray(np.full((41, 59), 5000, np.uint16)).save(path)
    assert run(root) == 0
    assert metrics_of(root) != before
    mark = root.parent / "out/null-depth-fp32-null/scannet-depth/identity.json"
    mark.write_text(mark.read_text().replace('"version": 1', '"version": 0'))
    assert run(root) == 1
    assert "another build, seed or version" in capsys.readouterr().err


def test_a_line_that_a_kill_cut_short_is_measured_again(root: Path) -> None:
    assert run(root) == 0
    whole = metrics_of(root)
    journal = root.parent / "out/null-depth-fp32-null/scannet-depth/images.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:-20])
    assert run(root) == 0
    assert metrics_of(root) == pytest.approx(whole)
    assert len(journal.read_bytes().splitlines()) == COUNT


def test_two_runs_do_not_write_into_one_folder(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first = Journal(tmp_path / "journal", {"a": 1})
    with pytest.raises(DataSetError, match="another run works"):
        Journal(tmp_path / "journal", {"a": 1})
    first.close()
    Journal(tmp_path / "journal", {"a": 1}).close()


def test_a_killed_run_goes_on(root: Path) -> None:
    """Killed after its first pictures: what was measured is not measured again."""
    place = scannet(root) / "scene0406_02"
    for number in range(COUNT, 150):
        for kind in ("color", "depth"):
            shutil.copy(place / kind / "000001.png", place / kind / f"{number:06d}.png")
    bundle = write_null_bundle(root.parent / "null-depth", name="null-depth", task="depth")
    journal = root.parent / "out/null-depth-fp32-null/scannet-depth/images.jsonl"
    command = [sys.executable, "-m", "benchmarks.evaluate", bundle, "--data", root]
    command += ["--output", root.parent / "out"]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ, stderr=subprocess.DEVNULL) as child:
        while not journal.exists() or not journal.stat().st_size:
            assert child.poll() is None
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
    lines = [line for line in journal.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"]
    assert 0 < len(lines) < 150
    assert run(root) == 0
    assert journal.read_bytes().startswith(b"".join(lines))
    assert len(journal.read_bytes().splitlines()) == 150
    resumed = metrics_of(root)
    shutil.rmtree(root.parent / "out")
    assert run(root) == 0
    assert metrics_of(root) == pytest.approx(resumed, rel=1e-12)


def test_two_bundles_are_compared(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundles = []
    for name, seed in (("a", 3), ("b", 4)):
        path = root.parent / name
        write_null_bundle(path, name=name, task=("depth", "normal"), mode="g", noise_seed=seed)
        bundles.append(str(path))
    words = ["--data", str(root), "--output", str(root.parent / "out")]
    assert evaluate.main(["--compare", *bundles, *words]) == 0
    table = capsys.readouterr().out
    assert "A is a-fp32-null, B is b-fp32-null" in table
    assert "| NYUv2, normal | A | B | B - A | 95 % | |" in table
    body = json.loads((root.parent / "out/a-fp32-null-against-b-fp32-null.json").read_text())
    for row in body["rows"]:
        for name, found in row["differences"].items():
            assert found["low"] - 1e-2 <= found["difference"] <= found["high"] + 1e-2, name
    assert evaluate.main(["--compare", bundles[0], bundles[0], *words]) == 0
    assert "+0.0000 to +0.0000" in capsys.readouterr().out


def test_the_interval_is_that_of_a_slow_bootstrap(root: Path) -> None:
    results = []
    for seed in (3, 4):
        bundle = write_null_bundle(
            root.parent / f"g{seed}", name=f"g{seed}", task="normal", mode="g", noise_seed=seed
        )
        with LotusEngine(bundle) as engine:
            results += measure(engine, settings(root)).results
    first, second = results
    # Weighted by pixels: one picture counts half.
    for result in results:
        result.records[0]["pixels"] //= 2
    found = {each.metric: each for each in compare_results(first, second).differences}
    random, draws = np.random.default_rng(5), []
    for _ in range(4000):
        chosen = random.integers(0, COUNT, COUNT)
        means = []
        for result in results:
            picked = [result.records[index] for index in chosen]
            total = sum(record["pixels"] for record in picked)
            means.append(sum(r["pixels"] * r["metrics"]["mean"] for r in picked) / total)
        draws.append(means[1] - means[0])
    low, high = np.percentile(draws, (2.5, 97.5))
    width = high - low
    assert found["mean"].low == pytest.approx(low, abs=0.1 * width)
    assert found["mean"].high == pytest.approx(high, abs=0.1 * width)


def test_seeds_of_mode_g_have_folders_of_their_own(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_null_bundle(root.parent / "g", name="g", task="depth", mode="g")
    words = [str(bundle), "--data", str(root), "--output", str(root.parent / "out")]
    found = []
    for seed in ("1", "2"):
        assert evaluate.main([*words, "--seed", seed]) == 0
        found.append(metrics_of(root, f"g-fp32-null-seed-{seed}"))
    assert found[0] != found[1]
    assert evaluate.main([*words, "--seed", "1", "--ensemble", "2"]) == 0
    merged = metrics_of(root, "g-fp32-null-seed-1-ensemble-2")
    assert merged not in found
    assert (
        "middle of 2 answers"
        in (root.parent / "out/g-fp32-null-seed-1-ensemble-2/report.md").read_text()
    )
    assert run(root, "--ensemble", "2") == 1
    assert "needs a bundle that takes noise" in capsys.readouterr().err
    assert run(root, "--seed", "1") == 1
    assert "mode D" in capsys.readouterr().err


def test_the_report_says_how_the_numbers_came_about(root: Path) -> None:
    bundle = write_null_bundle(root.parent / "d", name="d", task=("depth", "normal"))
    words = [str(bundle), "--data", str(root), "--output", str(root.parent / "out")]
    assert evaluate.main(words) == 0
    folder = root.parent / "out" / "d-fp32-null"
    text = (folder / "report.md").read_text()
    for part in (
        "| ScanNet | 6 of 800 |",
        "| 6.0 |",  # the paper's
        "precision fp32",
        "buckets 64x96, 96x64",
        "6 went in at 41x59 into the bucket 64x96, resized and padded",
        "6 went in at 64x64 (their own size: 41x59) into the bucket",
        "6 of them at a size that is no multiple of 8",
        "the authors' list is not at hand",
        "KITTI (depth): not under the root",
        "time: read",
    ):
        assert part in text, part
    for name in ("scannet-depth", "nyuv2-normal"):
        for picture in ("sheet.png", "histogram.png"):
            with Image.open(folder / name / picture) as image:
                assert image.width > 400
        assert len((folder / name / "images.csv").read_text().splitlines()) == COUNT + 1


def test_a_picture_without_a_pixel_that_counts_is_left_out(root: Path) -> None:
    path = scannet(root) / "scene0406_02/depth/000002.png"
    Image.fromarray(np.zeros((41, 59), np.uint16)).save(path)
    assert run(root) == 0
    (row,) = json.loads((root.parent / "out/null-depth-fp32-null/rows.json").read_text())["rows"]
    assert row["images"] == 6
    assert row["images_that_count"] == 5
    assert row["left_out"] == {"no pixel that counts": 1}
    assert row["metrics"]["abs_rel"] > 0


def test_the_list_of_sets_says_where_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--list"]) == 0
    text = capsys.readouterr().out
    for data in SETS:
        assert f"{data.name}: {data.title}, {data.kind}, {data.count} pictures" in text
        assert data.layout.places[0] in text
        assert data.licence in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_pickles_hold_arrays_alone() -> None:
    values = {"min_y": 3, "normal": np.arange(6.0).reshape(2, 3), "scalar": np.float32(1)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = read_pickle(pickle.dumps(values, protocol), "x.pkl")
        assert np.array_equal(found["normal"], values["normal"])
        assert found["min_y"] == 3
    old = pickle.dumps(values, 2).replace(b"numpy._core", b"numpy.core")
    assert np.array_equal(read_pickle(old, "x.pkl")["normal"], values["normal"])
    for bad in (Evil(), {"normal": Evil()}, {"x": print}, {"x": Path()}):
        with pytest.raises(DataSetError, match="only NumPy arrays are admitted"):
            read_pickle(pickle.dumps(bad), "x.pkl")
    for content in (b"", b"nonsense", pickle.dumps(values)[:-30]):
        with pytest.raises(DataSetError, match=r"x\.pkl"):
            read_pickle(content, "x.pkl")
    with pytest.raises(DataSetError, match="expected a dict"):
        read_pickle(pickle.dumps([1]), "x.pkl")
