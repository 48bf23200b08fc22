"""Int8: what a build asks for (calibration images, limits), and the policy that it writes or takes
over.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import BUCKET, build_bundle
from PIL import Image

from export.build_engine import main
from export.errors import BuildError
from export.plan import make_plan
from export.quantize.calibration import Calibration
from export.quantize.int8 import _take_over
from export.quantize.layers import RESIDUAL, Layer, Range
from export.quantize.policy import VERSION, LayerChoice, Policy, Step
from export.settings import BuildSettings
from runtime.manifest import Bucket, Manifest
from runtime.prediction import Prediction

RANGE = Range(low=-1.0, high=1.0)


def decided(group: str) -> LayerChoice:
    """What a policy says of a layer that is its own group."""
    return LayerChoice(
        name=group, group=group, multiply_adds=1, int8=True, method="mse", low=-1.0, high=1.0
    )


def test_residuals_that_a_policy_was_not_asked_about_are_kept(tmp_path: Path) -> None:
    """The policy of a target that rounds none, taken over for one that does; the search keeps
    residuals first too.
    """
    groups = ("a", f"a/{RESIDUAL}", "b")
    layers = [Layer(name=name, group=name, multiply_adds=1) for name in groups]
    path, ranges = tmp_path / "policy.json", dict.fromkeys(groups, RANGE)
    for asked, kept in ((("a", "b"), [f"a/{RESIDUAL}", "b"]), (groups, ["b"])):
        Policy(high_precision=["b"], layers=[decided(group) for group in asked]).write(path)
        choice = _take_over(path, lambda ranges: {"depth": 0.25 * len(ranges)}, layers, ranges)
        assert choice.high_precision == kept
        share = 1 - len(kept) / len(groups)
        assert choice.final == Step(
            high_precision=len(kept),
            int8_share=pytest.approx(share),
            errors={"depth": 0.25 * (3 - len(kept))},
        )


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"kept": null}',
        '{"kept": 3}',
        '{"version": 2, "high_precision": null}',
        '{"version": 2, "kept": []}',
        '{"version": 2, "high_precision": [], "layers": [{"group": "a"}]}',
        '{"version": "new", "high_precision": []}',
    ],
)
def test_what_is_no_policy_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(BuildError, match=r"policy\.json is not a policy.*--precision int8"):
        _take_over(path, lambda ranges: 0.0, [], {})


def test_groups_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"kept": ["up_blocks.0"]}')
    layers = [Layer(name="a", group="a", multiply_adds=1)]
    with pytest.raises(BuildError, match=r"up_blocks\.0.*blocks.*single layers"):
        _take_over(path, lambda ranges: 0.0, layers, {})


def test_calibration_leaves_out_results_of_predictions(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "room.jpg")
    Prediction({"depth": np.zeros((4, 4), np.float32)}).save(tmp_path / "room")
    assert len(Calibration(count=9, folder=tmp_path)) == 1


def test_calibration_reads_a_folder(tmp_path: Path, photo: np.ndarray, checkpoint_d: Path) -> None:
    plan = make_plan(BuildSettings(checkpoint=str(checkpoint_d), task="depth"))
    bucket = Bucket(height=32, width=64, graph="")
    for number in range(3):
        Image.fromarray(np.roll(photo, number, axis=0)).save(tmp_path / f"{number}.png")
    calibration = Calibration(count=2, folder=tmp_path)
    assert [one.shape for (one,) in calibration.feeds(plan, bucket)] == [(1, 3, 32, 64)] * 2
    more = np.full((32, 64, 3), 255, np.uint8)
    *_, (last,) = calibration.feeds(plan, bucket, [more])
    np.testing.assert_allclose(last, 1)
    digest = calibration.sha256(bucket)
    assert digest != Calibration(count=3, folder=tmp_path).sha256(bucket)
    assert digest == calibration.sha256(bucket)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--calibration", "nowhere"], "nowhere"),
        (["--calibration-images", "0"], "at least one"),
        (["--policy", "nowhere.json"], "policy"),
        (["--budget", "-1"], "budget"),
    ],
)
def test_bad_requests_are_refused(
    words: list[str],
    message: str,
    checkpoint_d: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(checkpoint_d), "--task", "depth", "--resolution", "64x64", "--precision", "int8"]
    assert main([*command, "--output", str(tmp_path / "bundle"), *words]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_golden_lies_within_the_ranges(checkpoint_d: Path, tmp_path: Path) -> None:
    """A black image shows no range; a golden beyond the ranges would fail, or its bound would have
    to prove nothing.
    """
    Image.new("RGB", (BUCKET, BUCKET)).save(tmp_path / "black.png")
    settings = {
        "task": "depth",
        "resolutions": ((BUCKET, BUCKET),),
        "precision": "int8",
        "budget": (10.0,),
    }
    bundle = build_bundle(checkpoint_d, tmp_path / "bundle", calibration=tmp_path, **settings)
    manifest = Manifest.load(bundle)
    assert manifest.quantisation is not None
    assert manifest.quantisation.images == 1
    assert manifest.golden.measured[0].mean_abs_error < 0.015  # 0.021 without it


@pytest.mark.slow
def test_policy_of_another_bundle_is_taken_over(
    bundle_int8: Path, checkpoint_d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = Policy.read(bundle_int8 / "policy.json")
    kept = [policy.layers[3].group]
    Policy(high_precision=kept).write(tmp_path / "policy.json")
    settings = {
        "task": "depth",
        "resolutions": ((BUCKET, BUCKET),),
        "precision": "int8",
        "calibration_images": 1,
    }
    bundle = build_bundle(
        checkpoint_d, tmp_path / "bundle", policy=tmp_path / "policy.json", **settings
    )
    assert "the policy was taken as it is: depth beyond the limit" in capsys.readouterr().err
    written = json.loads((bundle / "policy.json").read_text())
    assert written["version"] == VERSION
    assert written["high_precision"] == kept
    assert {row["group"] for row in written["layers"] if not row["int8"]} == set(kept)
    Policy(high_precision=["encoder/nothing"]).write(tmp_path / "policy.json")
    with pytest.raises(BuildError, match="encoder/nothing"):
        build_bundle(checkpoint_d, tmp_path / "other", policy=tmp_path / "policy.json", **settings)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Also where the next release adds fields of its own."""
    policy = Policy(
        high_precision=["b"],
        max_errors={"depth": 0.01},
        errors={"depth": 0.008},
        units={"depth": "AbsRel"},
        multiply_adds=7,
        images=8,
        calibration_sha256="0" * 64,
        alone={"a": {"depth": 0.001}, "b": {"depth": 0.02}},
        steps=[Step(high_precision=1, int8_share=0.5, errors={"depth": 0.008})],
        layers=[decided("a"), dataclasses.replace(decided("b"), int8=False)],
    )
    path = tmp_path / "policy.json"
    policy.write(path)
    assert Policy.read(path) == policy
    assert policy.groups == {"a", "b"}
    body = json.loads(path.read_text())
    for entry in (body, body["steps"][0], body["layers"][0]):
        entry["later"] = 1
    path.write_text(json.dumps(body))
    assert Policy.read(path) == policy


def test_a_policy_of_version_1_is_read(tmp_path: Path) -> None:
    """As it was written before it had a number, and as a person cut it down."""
    layer = {"name": "a", "group": "a", "multiply_adds": 5, "int8": True}
    body = {
        "policy": "policy.json",
        "kept": ["b"],
        "budget": 0.01,
        "distance": 0.008,
        "multiply_adds": 5,
        "images": 8,
        "calibration_sha256": "0" * 64,
        "alone": {"a": 0.001, "b": 0.02},
        "steps": [{"kept": 1, "int8_share": 0.5, "distance": 0.008}],
        "layers": [layer | {"range": {"method": "mse", "low": -0.25, "high": 3.5}}],
    }
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(body))
    policy = Policy.read(path)
    assert policy == Policy(
        high_precision=["b"],
        max_errors={"": 0.01},
        errors={"": 0.008},
        multiply_adds=5,
        images=8,
        calibration_sha256="0" * 64,
        alone={"a": {"": 0.001}, "b": {"": 0.02}},
        steps=[Step(high_precision=1, int8_share=0.5, errors={"": 0.008})],
        layers=[LayerChoice(**layer, method="mse", low=-0.25, high=3.5)],
    )
    assert policy.version == VERSION
    path.write_text('{"kept": ["b"], "layers": [{"group": "a"}, {"group": "b"}]}')
    assert [(layer.group, layer.int8) for layer in Policy.read(path).layers] == [
        ("a", True),
        ("b", False),
    ]


def test_a_newer_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"version": VERSION + 1, "high_precision": []}))
    message = rf"policy of version {VERSION + 1}; this release reads up to {VERSION}\..*--policy"
    with pytest.raises(BuildError, match=message):
        Policy.read(path)
