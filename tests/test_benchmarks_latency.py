"""The latency command end to end on the embedded network, and the report that is made from its
rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, bucket, pictures, write_null_bundle
from PIL import Image

from benchmarks import baselines, ceilings, latency, parity, plots, report, rows, tables
from benchmarks.baselines import BASELINES, Baseline, Work, bundle_paths, opened


@pytest.mark.slow
def test_baselines_race_and_absent_ones_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    words = "latency --dirty --checkpoint tiny/disparity-d --resolution 128x128 --rounds 2"
    words += " --batch 2 --together 3"
    words += " --what pytorch onnxruntime plain-onnxruntime onnxruntime-cuda --bundles"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(tmp_path / "engines")])
    monkeypatch.setattr(ceilings, "EDGE", 256)
    assert latency.main() == 0
    saved = json.loads((tmp_path / "latency-disparity-d-128x128-batch-2.json").read_text())["rows"]
    assert set(saved[0]["gflops"]) == {"float32", "bfloat16", "int8"}
    assert all(rate > 0 for rate in saved[0]["gflops"].values())
    by_name = {row["what"]: row for row in saved[1:]}
    assert "not_measured" in by_name["onnxruntime-cuda"]
    for name in ("pytorch", "onnxruntime", "plain-onnxruntime"):
        row = by_name[name]
        assert 0 < row["min_s"] <= row["p50_s"] <= row["p90_s"] <= row["p99_s"]
        assert row["peak_gb"] > 0.05
        assert row["first_s"] >= row["load_s"] > 0
        assert row["per_second"] == pytest.approx(2 / row["p50_s"])
    assert by_name["pytorch"]["max_abs_error"] == 0
    assert set(by_name["pytorch"]["stages_s"]) == {"encoder", "unet", "decoder"}
    assert 0 < by_name["onnxruntime"]["max_abs_error"] < 1e-4
    assert 0 < by_name["plain-onnxruntime"]["max_abs_error"] < 1e-4
    assert by_name["onnxruntime"]["ratio"] == pytest.approx(
        by_name["pytorch"]["p50_s"] / by_name["onnxruntime"]["p50_s"]
    )
    assert (
        by_name["onnxruntime"]["multiply_adds"]
        < 0.95 * by_name["plain-onnxruntime"]["multiply_adds"]
    )
    assert "rows: latency-disparity-d-128x128-batch-2.json" in capsys.readouterr().out


def test_pytorch_is_not_waited_for_in_a_type_that_the_cpu_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"float32": 100.0, "bfloat16": 2.0}
    names = ["pytorch-bf16", "pytorch-compile-bf16"]
    raced = latency._race(names, argparse.Namespace(rounds=2), tmp_path, rates)
    reasons = {row["what"]: row["not_measured"] for row in raced}
    assert reasons == dict.fromkeys(names, "this CPU has no instructions for bfloat16")
    assert "pytorch-bf16" in capsys.readouterr().err


@pytest.mark.slow
def test_folded_and_plain_bundles_answer_as_pytorch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Normals of mode G; the race above compares the disparity of mode D."""
    checkpoint = "tiny/normal-g"
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    image = str(ROOT / "tiny" / "samples" / "room.png")
    words = ["parity", "--dirty", image, "--checkpoint", checkpoint, "--size", "128"]
    words += ["--what", "onnxruntime", "plain-onnxruntime", "--bundles", str(tmp_path / "engines")]
    monkeypatch.setattr(sys, "argv", words)
    assert parity.main() == 0
    saved = json.loads((tmp_path / f"parity-{checkpoint[5:]}.json").read_text())["rows"]
    compared = [(row["what"], row["against"]) for row in saved]
    names = ("onnxruntime", "plain-onnxruntime")
    assert compared == [(names[0], "pytorch"), (names[1], "pytorch"), names]
    assert all(0 < row["max_abs"] < 2e-4 for row in saved)


def test_a_joint_bundle_and_one_for_each_task_answer_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("joint", "apart"):
        one = Baseline(meaning=name, backend="null", batched=True, apart=name == "apart")
        monkeypatch.setitem(BASELINES, name, one)
    work = Work(checkpoint="tiny/a,tiny/b", resolution="64x96", batch=2, task="depth,normal")
    assert work.name == "a+b-64x96-batch-2"
    joint, apart = (bundle_paths(name, work, tmp_path) for name in ("joint", "apart"))
    assert list(joint.values()) == [[("tiny/a", "depth"), ("tiny/b", "normal")]]
    assert list(apart.values()) == [[("tiny/a", "depth")], [("tiny/b", "normal")]]
    assert all("batch=2" in path.name for path in (*joint, *apart))
    for path, parts in (joint | apart).items():
        tasks = tuple(task for _, task in parts)
        write_null_bundle(path, task=tasks, buckets=[bucket(2)])
    images = np.stack(pictures(2))
    with opened("joint", work, [*joint], {}) as predict:
        together = predict(images)
    with opened("apart", work, [*apart], {}) as predict:
        np.testing.assert_array_equal(together, predict(images))
    assert together.shape == (2, 64, 96, 4)


def test_one_bundle_of_several_sizes_serves_each(
    tmp_path: Path, bundle_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The multiply-adds are those of the size that is raced, not those of the first."""
    sizes, name = ("64x64", "128x128"), "openvino-bf16"
    counts, said = [], []
    for size in sizes:
        work = Work(checkpoint="tiny/x", resolution=size, sizes=",".join(sizes))
        ((bundle, part),) = bundle_paths(name, work, tmp_path).items()
        if not bundle.exists():
            said = baselines._build_words(BASELINES[name], work, part)
            bundle.symlink_to(bundle_bf16)
        assert baselines.built(name, work, tmp_path) == [bundle]
        counts.append(latency._work_of([bundle], size)["multiply_adds"])
        edge = int(size.split("x")[0])
        with opened(name, work, [bundle], {}) as predict:
            assert predict(np.zeros((1, edge, edge, 3), np.uint8)).shape == (1, edge, edge)
    assert counts[1] > 3.9 * counts[0]
    assert said[said.index("--resolution") + 1] == "64x64,128x128"
    assert len([*tmp_path.iterdir()]) == 1
    words = ["latency", "--sizes", ",".join(sizes), "--resolution", "64x192", "--dirty"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        latency.main()


def test_the_process_of_a_bundle_carries_no_torch() -> None:
    """It would count among the bundle's memory."""
    code = (
        "import sys; import benchmarks.latency_worker, runtime; "
        "print({'torch', 'diffusers', 'onnx'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        ).stdout
        == "set()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_committed_tables_are_what_their_rows_say() -> None:
    assert report.stale_documents() == []


def test_a_stale_table_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = sorted((ROOT / "benchmarks" / "results").glob("accuracy-*.json"))
    shutil.copy(sources[0], tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"above\n<!-- rows: {sources[0].stem} -->\n| old |\n<!-- end -->\nbelow\n")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "DOCUMENTS", (page, tmp_path / "not-there.md"))
    monkeypatch.setattr(sys, "argv", ["report", "--check"])
    assert report.main() == 1
    assert "| old |" in page.read_text(), "a check writes nothing"
    monkeypatch.setattr(sys, "argv", ["report"])
    assert report.main() == 0
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("<!-- end -->\nbelow\n")
    assert "in-style" in text
    assert "| old |" not in text
    monkeypatch.setattr(sys, "argv", ["report", "--check"])
    assert report.main() == 0


def test_precisions_stand_beside_fp32() -> None:
    bodies = []
    for precision, value in (("fp32", 0.1), ("int8", 0.102)):
        group = {
            "bundle": f"d-256x256-{precision}-x",
            "name": "in-style (100 images)",
            "metrics": {"abs_rel": value},
        }
        bodies.append({"rows": [group | {"name": "in-style/0"}, group]})
    assert tables.precisions_table(bodies)[2:] == ["| d | abs_rel | 0.1000 | 0.1020 (+2.00%) |"]


def test_one_table_of_several_latencies_names_their_sizes() -> None:
    about = {"first_s": 2.0, "peak_gb": 1.0}
    machine = {"machine": {"cores": "2", "cpu": "x"}, "commit": "c", "date": "d", "command": "run"}
    ceiling = {"what": "ceiling", "gflops": {"float32": 1.0, "bfloat16": 2.0}}
    sizes = [("128x128", 1), ("256x256", 4)]
    bodies = [
        machine | {"rows": [ceiling, _row("a", resolution=size, batch=batch, **about)]}
        for size, batch in sizes
    ]
    lines = tables.latency_table(bodies)
    assert lines[2].startswith("| a, 128x128 | 1.00 s |")
    assert lines[3].startswith("| a, 256x256, for 4 images | 1.00 s |")
    assert tables.latency_table(bodies[:1])[2].startswith("| a | 1.00 s | 2.00x of 2.0 s |")


def test_a_table_of_sizes_has_a_line_for_each() -> None:
    about = {"machine": {"cores": "2", "cpu": "x"}, "commit": "c", "date": "d", "command": "run"}
    bodies = [
        about | {"rows": [_row("pytorch", resolution=size), *rows]}
        for size, rows in (
            ("128x128", [_row("a", resolution="128x128", p50_s=0.5)]),
            ("256x256", [{"what": "a", "resolution": "256x256", "not_measured": "no"}]),
        )
    ]
    assert tables.sizes_table(bodies) == [
        "| | pytorch | a |",
        "|---|---|---|",
        "| 128x128 | 1.00 s | 0.50 s, 2.00x of 1.0 s |",
        "| 256x256 | 1.00 s |  |",
        "",
        "2 cores (x), commit c, d. `run`",
    ]
    other = [_row("pytorch", resolution="64x64"), _row("b", resolution="64x64")]
    lines = tables.sizes_table([*bodies, about | {"rows": other}])
    assert lines[:2] == ["| | pytorch |", "|---|---|"]  # of three sizes a and b have one each
    assert lines[4] == "| 64x64 | 1.00 s |"


def test_a_table_of_joint_bundles_tells_their_sizes_apart() -> None:
    about = {"machine": {"cores": "2", "cpu": "x"}, "commit": "c", "date": "d", "command": "run"}
    more = {"first_s": 2.0, "peak_gb": 1.0, "bundle_gb": 0.5}
    bodies = [
        about | {"rows": [_row("two", resolution=size, **more), _row("one", p50_s=0.9, **more)]}
        for size in ("128x128", "256x256")
    ]
    bodies[0]["rows"][1]["resolution"] = "128x128"
    lines = tables.together_table(bodies)[2:6]
    assert [line.split(" | ")[0] for line in lines] == [
        f"| {what}, {size}" for size in ("128x128", "256x256") for what in ("two", "one")
    ]
    assert tables.together_table(bodies[:1])[3].startswith("| one | 0.90 s | 0.900 | 2.0 s |")


def test_a_table_of_families_has_a_line_for_each_checkpoint_of_one_size() -> None:
    about = {"machine": {"cores": "2", "cpu": "x"}, "commit": "c", "date": "d"}
    bodies = [
        about
        | {
            "command": f"run {name}",
            "rows": [_row("pytorch", checkpoint=name), _row("a", checkpoint=name, p50_s=seconds)],
        }
        for name, seconds in (("random/x", 0.5), ("random/y", 0.25))
    ]
    assert tables.families_table(bodies) == [
        "| | pytorch | a |",
        "|---|---|---|",
        "| random/x, 256x256 | 1.00 s | 0.50 s, 2.00x of 1.0 s |",
        "| random/y, 256x256 | 1.00 s | 0.25 s, 2.00x of 0.5 s |",
        "",
        "2 cores (x), commit c, d. `run random/x`",
    ]


def test_machines_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A table says which instructions the machine has, and plots mix no two machines. The plot of
    sizes shows the rows of their table alone.
    """
    document = tmp_path / "sizes.md"
    names = "latency-x-128x128, latency-x-256x256"
    document.write_text(f"<!-- rows: sizes, {names} -->\n<!-- end -->\n")
    monkeypatch.setattr(report, "DOCUMENTS", (document, tmp_path / "none.md"))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    drawn: dict[str, int] = {}

    def draw(bodies: object, path: Path) -> Path:
        assert isinstance(bodies, (list, dict))
        drawn[path.name] = len(bodies["rows"] if isinstance(bodies, dict) else bodies)
        return path

    monkeypatch.setattr(report, "plot_latency", draw)
    monkeypatch.setattr(report, "plot_scaling", draw)
    about = {"commit": "c", "date": "d", "command": "run"}
    rates = {"float32": 1.0, "bfloat16": 2.0, "int8": 3.0}
    for isa, label, sizes in (
        ("avx2 avx512_vnni", "", ("128x128", "256x256")),
        ("avx2", "-avx2", ("256x256",)),
    ):
        machine = {"cores": "2", "cpu": "x", "isa": isa, "arch": "x86_64"}
        for size in sizes:
            measured = [
                _row(what, resolution=size, first_s=2.0, peak_gb=1.0)
                for what in ("pytorch", "a", "b", "c")
            ]
            body = about | {"machine": machine}
            body |= {"rows": [{"what": "ceiling", "gflops": rates}, *measured]}
            (tmp_path / f"latency-x-{size}{label}.json").write_text(json.dumps(body))
    report._plot()
    assert drawn == {
        "latency-x-128x128.png": 4,
        "latency-x-256x256.png": 4,
        "latency-x-256x256-avx2.png": 4,
        "scaling-avx512_vnni.png": 2,
    }
    assert tables.latency_table([body])[-1] == (
        "2 cores (x: avx2), commit c, d; one large product ran at 1 GFLOP/s in fp32, 2 in bf16, "
        "3 in int8. `run`"
    )


def test_of_a_baseline_in_two_files_the_last_row_counts() -> None:
    about = {"first_s": 2.0, "peak_gb": 1.0}
    machine = {"machine": {"cores": "2", "cpu": "x"}, "commit": "c", "date": "d", "command": "run"}
    ceiling = {"what": "ceiling", "gflops": {"float32": 1.0, "bfloat16": 2.0}}
    bodies = [
        machine
        | {
            "rows": [
                ceiling,
                *(_row(what, p50_s=seconds, **about) for what in ("pytorch", "a", "a")),
            ]
        }
        for seconds in (3.0, 4.0)
    ]
    lines = tables.latency_table(bodies)
    assert [line.split("|")[1:3] for line in lines[2:4]] == [
        [" pytorch ", " 3.00 s "],
        [" a ", " 4.00 s "],
    ]
    assert lines[4] == ""


def _row(what: str, **more: object) -> dict[str, object]:
    about = {
        "what": what,
        "meaning": what,
        "checkpoint": "tiny/x",
        "resolution": "256x256",
        "batch": 1,
    }
    return about | {"p50_s": 1.0, "ratio": 2.0, "max_abs_error": 1e-5} | more


def test_plots_are_pictures_of_their_rows(tmp_path: Path) -> None:
    """Made-up rows: each plot is a picture, and changes when its rows do."""
    sizes = [
        {"rows": [{"what": "ceiling"}, _row("a", resolution=f"{edge}x{edge}")]}
        for edge in (128, 256)
    ]
    batches = [{"rows": [_row("a", batch=count, p50_s=0.8 * count)]} for count in (1, 4)]
    stages = [
        {
            "rows": [
                {"bundle": "b", "stage": stage, "seconds": 1.0}
                for stage in ("encoder", "unet", "decoder")
            ]
        }
    ]
    steps = [
        {"bundle": "b", "budget": 0.01, "int8_share": share, "distance": 0.02 * share}
        for share in (0.5, 1.0)
    ]
    drawn = {
        plots.plot_latency: {"rows": [_row("a"), _row("b", p50_s=0.5)]},
        plots.plot_scaling: sizes + batches,
        plots.plot_stages: stages,
        plots.plot_policies: [{"rows": steps}],
    }
    for number, (plot, bodies) in enumerate(drawn.items()):
        path = plot(bodies, tmp_path / f"{number}.png")
        with Image.open(path) as picture:
            assert picture.width > 400
            first = np.array(picture.convert("L"))
        assert first.std() > 5
        _scaled(bodies)
        with Image.open(plot(bodies, tmp_path / "other.png")) as picture:
            assert not np.array_equal(first, np.array(picture.convert("L"))), plot.__name__


def _scaled(bodies: object) -> None:
    """Triple every measured number, in place."""
    for body in bodies if isinstance(bodies, list) else [bodies]:
        for place, row in enumerate(body["rows"]):
            for key in {"p50_s", "seconds", "distance"} & set(row):
                row[key] *= 3 + place
