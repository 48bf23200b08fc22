"""Contenders beside our own bundles: the same pictures, the same alignment."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import bucket, write_null_bundle

from benchmarks import baselines, build_variant, nncf_peer, subjects, tables
from benchmarks.baselines import Work, built
from export import build_engine
from export.errors import BuildError
from export.plan import make_plan
from export.settings import BuildSettings
from export.targets import TARGETS
from runtime.manifest import Manifest


def test_nncf_calibrates_with_what_our_own_int8_does(tmp_path: Path) -> None:
    """Pictures, and noises in mode G."""
    settings = BuildSettings(
        checkpoint="tiny/disparity-g",
        resolutions=((64, 96),),
        target="openvino",
        precision="int8",
        calibration_images=3,
    )
    plan = make_plan(settings)
    ours = [*plan.calibration.feeds(plan, plan.buckets[0])]
    bundle = write_null_bundle(tmp_path / "null", mode="g", buckets=[bucket(1)])
    manifest = dataclasses.replace(Manifest.load(bundle), noise_seed=plan.noise_seed)
    theirs = [*nncf_peer.feeds(manifest, 3)]
    assert len(ours) == len(theirs) == 3
    for (image, noise), feed in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(image.numpy(), feed["image"])
        np.testing.assert_array_equal(noise.numpy(), feed["noise"])


def test_without_nncf_the_row_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(BuildError, match=r"extra `peers`"):
        built("nncf", Work(checkpoint="tiny/disparity-d", resolution="64x64"), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_variant_is_built_by_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Work(checkpoint="tiny/a,tiny/b", resolution="64x64", task="depth,normal")
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(baselines, "subprocess", SimpleNamespace(run=run, DEVNULL=None))
    (variant,) = built("openvino-one-decode", work, tmp_path)
    (usual,) = built("openvino", work, tmp_path)
    assert variant != usual
    words = asked[0][asked[0].index("benchmarks.build_variant") + 1 :]
    assert words[1:-1] == asked[1][asked[1].index("export/build_engine.py") + 1 : -1]
    tried: list[list[str]] = []
    monkeypatch.setattr(build_variant, "TARGETS", dict(TARGETS))
    monkeypatch.setattr(build_engine, "main", lambda words: tried.append(words) or 0)
    monkeypatch.setattr(sys, "argv", ["build_variant", *words])
    assert build_variant.main() == 0
    assert tried == [words[1:]]
    recipes = build_variant.TARGETS["openvino"].recipes.values()
    assert all(recipe.decodes_batched for recipe in recipes)
    monkeypatch.setattr(sys, "argv", ["build_variant", '{"colour": 1}', *words])
    assert build_variant.main() == 2
    assert "colour" in capsys.readouterr().err


def test_contenders_stand_beside_the_first() -> None:
    bodies = [
        {
            "machine": {"cores": "2", "cpu": "x"},
            "commit": "c",
            "date": "d",
            "command": "run",
            "rows": [
                {
                    "name": "in-style (40 images)",
                    "images": 40,
                    "checkpoint": checkpoint,
                    "meaning": meaning,
                    "metrics": {"abs_rel": value},
                }
            ],
        }
        for meaning, checkpoint, value in (
            ("exact", "tiny/a", 0.1),
            ("exact", "tiny/b", 0.2),
            ("other", "tiny/b", 0.3),
            ("other", "tiny/a", 0.11),
        )
    ]
    assert tables.contenders_table(bodies)[:4] == [
        "| in style, 40 images | a, abs_rel | b, abs_rel |",
        "|---|---|---|",
        "| exact | 0.1000 | 0.2000 |",
        "| other | 0.1100 (+10.00%) | 0.3000 (+50.00%) |",
    ]


@pytest.mark.slow
def test_what_nncf_makes_predicts_close_to_the_plain_bundle(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="the extra `peers`")
    work = Work(checkpoint="tiny/disparity-d", resolution="64x64", trained=True)
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[:, 16:48, 16:48] = 200
    with subjects.open_baseline("openvino", work, tmp_path) as plain:
        exact = plain.predict(image[0], None, 1).values
    with subjects.open_baseline("nncf-best", work, tmp_path) as peer:
        found = peer.predict(image[0], None, 1).values
    assert 0 < np.abs(found - exact).mean() < 0.1


@pytest.mark.parametrize("name", ["openvino-int8", "onnxruntime-int8-apart", "openvino-bf16"])
def test_a_joint_bundle_is_asked_for_in_words_that_a_build_takes(name: str, tmp_path: Path) -> None:
    """One budget for each task of a bundle."""
    checkpoint, task = "tiny/disparity-d,tiny/normal-d", "disparity,normal"
    work = Work(checkpoint=checkpoint, resolution="64x64", task=task)
    for bundle, part in baselines.bundle_paths(name, work, tmp_path).items():
        words = baselines._build_words(baselines.BASELINES[name], work, part)
        assert build_engine.main([*words, "--output", str(bundle), "--dry-run"]) == 0
