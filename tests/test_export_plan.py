"""A plan: decided and checked before a weight is loaded, and what its recipes may say."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import ROOT, new_tiny_vae, picture, write_null_bundle
from diffusers.models.upsampling import Upsample2D

from export import pipeline
from export.errors import BuildError, CheckpointError
from export.folds import apply_folds, subpixel
from export.graph import attention, group_norm
from export.graph.half import HALVES
from export.network import autoencoder, joint
from export.network import checkpoint as checkpoints
from export.network.checkpoint import load_checkpoint
from export.network.parts import PROMPT_FILE, find_parts, is_whole
from export.network.single_pass import SinglePass
from export.plan import Plan, make_plan
from export.quantize.layers import OUTPUT, RESIDUAL
from export.quantize.policy import VERSION, Policy
from export.settings import BuildSettings
from export.targets import TARGETS, Recipe, Target
from export.targets.target import PRECISIONS
from runtime.errors import LotusError

RECIPES = {
    f"{target.name}-{precision}": recipe
    for target in TARGETS.values()
    for precision, recipe in target.recipes.items()
}
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "onnxscript", "openvino"}


@pytest.fixture
def plan() -> Plan:
    return make_plan(BuildSettings(checkpoint="tiny/disparity-d"))


def dry_run(folder: Path, *words: str) -> tuple[list[str], set[str]]:
    """What a child process prints for these words in `folder`, and the modules that it loaded."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from export.build_engine import main\n"
        f"assert main({[*words, '--dry-run']!r}) == 0\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing is being done"
    *lines, modules = done.stdout.splitlines()
    return lines, set(modules.split())


@pytest.mark.parametrize("target", TARGETS)
def test_a_dry_run_prints_the_plan_and_loads_and_writes_nothing(
    target: str, tmp_path: Path
) -> None:
    words = ["tiny/disparity-d", "--resolution", "64x96,128x128", "--target", target]
    lines, modules = dry_run(tmp_path, *words, "--precision", "int8", "--vae", "tiny/taesd")
    assert not modules & HEAVY
    assert list(tmp_path.iterdir()) == []
    rows = {line[:13].strip(): line[13:] for line in lines}
    assert rows["checkpoint"] == "tiny/disparity-d (lotus-d)"
    assert rows["encoder"] == rows["decoder"] == "tiny/taesd"
    assert rows["sizes"] == "64x96, 128x128"
    opset = TARGETS[target].recipe("int8").opset or TARGETS[target].opset
    assert rows["target"].startswith(f"{target}, ONNX opset {opset}")
    assert "int8" in rows["precision"]
    name = f"disparity-d-vae-taesd-64x96-128x128-int8-{target}"
    assert rows["output"] == str(Path("engines") / name)
    assert {"task", "licence", "tolerance", "disk", "memory"} <= set(rows)


def test_a_dry_run_says_what_is_built_instead(tmp_path: Path) -> None:
    lines, _ = dry_run(tmp_path, "tiny/depth-g", "--precision", "fp16", "--fixed-noise")
    rows = {line[:13].strip(): line[13:] for line in lines}
    assert rows["precision"] == "fp32: float32 in the graph (asked for fp16)"
    assert rows["inputs"] == "image", "the noise is part of the graph"
    assert rows["int8"] == rows["calibration"] == rows["engine"] == "-"


def test_an_engine_that_is_left_to_the_device_takes_nothing_here(tmp_path: Path) -> None:
    words = ["tiny/disparity-d", "--resolution", "64x64,64x96", "--target", "tensorrt"]
    settings = BuildSettings(
        checkpoint=words[0], target="tensorrt", resolutions=((64, 64), (64, 96))
    )
    with_engine, without = (
        make_plan(settings),
        make_plan(dataclasses.replace(settings, engine=False)),
    )
    assert with_engine.copies == 3 * without.copies
    assert with_engine.memory_bytes > without.memory_bytes
    lines, _ = dry_run(tmp_path, *words, "--no-engine")
    assert "engine       left to the device" in lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "toaster"}, r"unknown target 'toaster'; known: \["),
        ({"target": "openvino", "precision": "fp16"}, "no precision 'fp16'; it has"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"calibration_images": 0}, "at least one image"),
        ({"calibration": Path("nowhere")}, "no folder nowhere"),
        ({"calibration": Path("empty")}, "holds no images"),
        ({"budget": (0.0,)}, "positive number"),
        ({"budget": (math.nan,)}, "positive number"),
        ({"budget": (math.inf,)}, "positive number"),
        ({"budget": (1.0, 1.0)}, "2 numbers for 1 tasks"),
        ({"beside": ("tiny/disparity-g",)}, "predict disparity, disparity"),
        (
            {"beside": ("tiny/normal-d",), "budget": (1.0,)},
            "disparity in AbsRel, normal in degrees",
        ),
        ({"beside": ("random/lotus-d",), "task": "disparity"}, "for 2 checkpoints"),
        ({"batches": (0,)}, "1 to 64 pictures"),
        ({"batches": (2, 2)}, "a size is named twice"),
        ({"ensemble": 8}, "mode D takes no noise"),
        ({"ensemble": 0}, "1 to 64 noises"),
        ({"policy": Path("nowhere.json")}, "no policy nowhere.json"),
        ({"policy": Path("newer.json")}, f"policy of version {VERSION + 1}"),
        ({"policy": Path("broken.json")}, "is not a policy"),
        ({"output": Path("empty")}, "exists; pass --overwrite"),
        ({"output": Path("full"), "overwrite": True}, "is not a whole bundle"),
        ({"checkpoint": "tiny/none", "task": "depth"}, "no embedded checkpoint"),
        ({"checkpoint": "random/none", "task": "depth"}, "unknown 'random/none'"),
        ({"checkpoint": "./nowhere", "task": "depth"}, "no such folder: './nowhere'"),
        ({"checkpoint": "./nowhere"}, "no such folder: './nowhere'"),
        ({"checkpoint": "empty", "task": "depth"}, "'empty' is an empty folder"),
        ({"checkpoint": "sdxl", "task": "depth"}, "no checkpoint of a known family"),
        ({"checkpoint": "sizeless", "task": "depth"}, "names no size of training"),
        ({"checkpoint": "sizeless"}, "pass --task"),
        ({"task": "depth"}, "known to predict disparity"),
        ({"checkpoint": "sizeless", "task": "albedo"}, "unknown task 'albedo'"),
        ({"fixed_noise": True}, "no noise to fix"),
        ({"vae": "tiny/vae"}, "only an AutoencoderTiny"),
        ({"vae_encoder": "tiny/none"}, "no embedded checkpoint"),
        ({"vae_decoder": "wide"}, "latent channels 16, not 4"),
        ({"vae": "cut"}, r"needs diffusion_pytorch_model\.safetensors"),
        ({"resolutions": ((64, 65),)}, "nearest is 64x64"),
        ({"resolutions": ((64, 64), (64, 64))}, "named twice"),
        ({"resolutions": ((64, 64 * 257),)}, "64x16448 is too large"),
        ({"resolutions": ((8192, 8192),), "batches": (2,)}, "2x8192x8192 is too large"),
        ({"resolutions": ((64, 64),), "batches": tuple(range(1, 66))}, "1 to 64 pictures"),
        (
            {"resolutions": ((64, 64), (64, 128)), "batches": tuple(range(1, 34))},
            "at most 64 buckets, found 66",
        ),
        ({"base": "tiny/disparity-d"}, "'tiny/disparity-d' is a whole checkpoint"),
        (
            {"checkpoint": "random/lotus-d", "task": "depth", "base": "tiny/disparity-d"},
            "'random/lotus-d' is a whole checkpoint",
        ),
        ({"checkpoint": "odd-size", "task": "depth"}, "sample_size of the UNet is '64'"),
        ({"checkpoint": "odd-vae", "task": "depth"}, "'odd-vae' cannot be understood"),
        ({"budget": (0.01,)}, "--budget would change nothing: fp32 for onnxruntime"),
        ({"policy": Path("good.json"), "precision": "bf16"}, "--policy would change nothing"),
        (
            {"budget": (0.01,), "target": "tensorrt-rtx", "precision": "int8"},
            "--budget would change nothing: int8 for tensorrt-rtx",
        ),
        ({"calibration": Path("photos")}, "--calibration would change nothing"),
        ({"output": Path("x" * 300)}, "cannot be used: .*too long"),
        ({"engine": False}, "--no-engine would change nothing: fp32 for onnxruntime"),
    ],
)
def test_every_refusal_comes_before_a_weight_is_loaded(
    changes: dict[str, object],
    message: str,
    checkpoint_d: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_what_is_refused(tmp_path, checkpoint_d)
    before = sorted(tmp_path.rglob("*"))

    def fail(*_: object, **__: object) -> None:
        pytest.fail("a weight is loaded, or a reference runs")

    for module, name in ((checkpoints, "load"), (joint, "load"), (autoencoder, "_load")):
        monkeypatch.setattr(module, name, fail)
    request = {"checkpoint": "tiny/disparity-d"} | changes
    with pytest.raises(LotusError, match=message):
        pipeline.build(BuildSettings(**request))
    assert sorted(tmp_path.rglob("*")) == before


def write_what_is_refused(folder: Path, checkpoint: Path) -> None:
    """Files and folders that a request may name, and that do not do."""
    names = ("empty", "full", "sdxl", "sizeless", "odd-size", "odd-vae", "cut", "photos")
    for name in names:
        (folder / name).mkdir()
    picture(folder / "photos" / "a.png")
    Policy(high_precision=[], layers=[]).write(folder / "good.json")
    (folder / "full" / "letter.txt").write_text("mine")
    (folder / "newer.json").write_text(json.dumps({"version": VERSION + 1, "high_precision": []}))
    (folder / "broken.json").write_text("{")
    for name, changed, change in (
        ("sdxl", "unet", {"in_channels": 9}),
        ("sizeless", "unet", {"sample_size": None}),
        ("odd-size", "unet", {"sample_size": "64"}),
        ("odd-vae", "vae", {"block_out_channels": 512}),
    ):
        for part in ("unet", "vae"):
            (folder / name / part).mkdir()
            for source in (checkpoint / part).iterdir():
                (folder / name / part / source.name).symlink_to(source)
        config = folder / name / changed / "config.json"
        body = json.loads(config.read_text())
        config.unlink()
        config.write_text(json.dumps(body | change))
    new_tiny_vae(latent_channels=16).save_pretrained(folder / "wide")
    new_tiny_vae().save_config(folder / "cut")


def test_what_is_not_refused_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The guard of the test above does watch the build."""

    def loaded(*_: object, **__: object) -> None:
        raise BuildError("loaded")

    monkeypatch.setattr(pipeline, "load_together", loaded)
    with pytest.raises(BuildError, match="loaded"):
        pipeline.build(BuildSettings(checkpoint="tiny/disparity-d", output=tmp_path / "bundle"))


def test_a_plan_and_what_it_holds_are_frozen(plan: Plan) -> None:
    for value in (plan, *plan.checkpoints, plan.target, plan.recipe, plan.calibration, *plan.tasks):
        for field in dataclasses.fields(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, None)


def test_a_place_without_a_name_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--output . --overwrite`, in the folder of an old bundle."""
    old = write_null_bundle(tmp_path / "old")
    monkeypatch.chdir(old)
    settings = BuildSettings(checkpoint="tiny/disparity-d", output=Path(), overwrite=True)
    planned = make_plan(settings)
    assert planned.output == old
    assert planned.search_cache == tmp_path / ".old.search"


def test_the_name_of_a_bundle_of_many_sizes_has_an_end() -> None:
    sizes = tuple((64, 64 + 8 * number) for number in range(40))
    planned = make_plan(BuildSettings(checkpoint="tiny/disparity-d", resolutions=sizes))
    assert planned.name.endswith("-64x104-and-34-more-fp32-onnxruntime")


def test_one_whole_checkpoint_of_several_needs_no_base(tmp_path: Path, checkpoint_d: Path) -> None:
    """The other one is a UNet alone, which takes the rest from the base."""
    alone = tmp_path / "alone"
    shutil.copytree(checkpoint_d / "unet", alone / "unet")
    planned = make_plan(
        BuildSettings(
            checkpoint=str(checkpoint_d),
            beside=(str(alone),),
            task="depth,normal",
            family="lotus-d",
            base=str(checkpoint_d),
        )
    )
    assert [each.base for each in planned.checkpoints] == [None, str(checkpoint_d)]


def test_a_base_gives_what_is_missing_and_no_more(tmp_path: Path, checkpoint_d: Path) -> None:
    """A folder without a prompt keeps its own autoencoder; a UNet beside one is a UNet alone."""
    folder, base = tmp_path / "series" / "one", "tiny/disparity-d"
    shutil.copytree(checkpoint_d / "unet", folder / "unet")
    shutil.copytree(checkpoint_d / "vae", tmp_path / "series" / "vae")
    assert not is_whole(str(folder))
    parts = find_parts(str(folder), base)
    assert parts.vae == tmp_path / "series" / "vae"
    assert parts.rest == ROOT / "tiny" / "checkpoints" / "disparity-d"
    shutil.copyfile(parts.rest / PROMPT_FILE, folder / PROMPT_FILE)
    assert is_whole(str(folder))
    alone = find_parts(str(folder / "unet"), base)
    assert (alone.vae, alone.rest) == (parts.rest.parent / "vae", parts.rest)  # tiny's series
    assert is_whole("jingheya/lotus-depth-d-v2-0-disparity")
    assert not is_whole("guangkaixu/genpercept-depth")
    with pytest.raises(BuildError, match="each checkpoint is a whole one"):
        make_plan(BuildSettings(checkpoint=base, beside=("tiny/normal-d",), base=base))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_scenes_to_calibrate_with_are_missed_before_the_work(
    precision: str, monkeypatch: pytest.MonkeyPatch, checkpoint_d: Path
) -> None:
    """fp32 needs none."""
    monkeypatch.setitem(sys.modules, "tiny", None)
    request = {"checkpoint": str(checkpoint_d), "task": "depth", "target": "tensorrt"}
    make_plan(BuildSettings(**request))
    with pytest.raises(CheckpointError, match="rendered scenes are a package of their own"):
        make_plan(BuildSettings(**request, precision=precision))


def test_weights_in_bf16_need_half_of_the_disk() -> None:
    plans = [
        make_plan(
            BuildSettings(checkpoint="tiny/disparity-d", target="openvino", precision=precision)
        )
        for precision in ("fp32", "bf16")
    ]
    assert plans[0].disk_need(1000) == 1000
    assert plans[1].disk_need(1000) == 500


def test_what_a_request_leaves_open_is_decided(plan: Plan) -> None:
    assert [str(bucket) for bucket in plan.buckets] == ["256x256"]
    assert plan.output == Path("engines") / "disparity-d-256x256-fp32-onnxruntime"
    assert plan.opset == plan.traced_opset == TARGETS["onnxruntime"].opset
    assert plan.budgets == {"disparity": plan.tasks[0].max_error}
    assert plan.tolerance == plan.recipe.tolerance
    older = make_plan(BuildSettings(checkpoint="tiny/disparity-d", opset=20))
    assert older.tolerance[0] > plan.tolerance[0]
    assert older.opset == older.traced_opset == 20


@pytest.mark.parametrize(("asked", "opset"), [(None, 21), (20, 20), (23, 23)])
def test_int8_of_onnxruntime_is_of_an_older_opset(asked: int | None, opset: int) -> None:
    """Version 1.23 has no kernel for QuantizeLinear of opset 23."""
    plan = make_plan(BuildSettings(checkpoint="tiny/disparity-d", precision="int8", opset=asked))
    assert (plan.traced_opset, plan.opset) == (asked or 23, opset)


def test_hash_and_reference_cannot_come_after_the_folds(checkpoint_d: Path) -> None:
    checkpoint = load_checkpoint(str(checkpoint_d), task="depth")
    image = np.zeros((64, 64, 3), np.uint8)
    reference = checkpoint.family.reference
    before, wanted = checkpoint.sha256(), reference(checkpoint, image, None)
    apply_folds(SinglePass(checkpoint.copy()), RECIPES["onnxruntime-fp32"])
    assert checkpoint.sha256() == before, "the copy was rewritten, not this one"
    np.testing.assert_array_equal(reference(checkpoint, image, None), wanted)

    SinglePass(checkpoint)
    late: list[Callable[[], object]] = [
        checkpoint.sha256,
        lambda: reference(checkpoint, image, None),
        lambda: SinglePass(checkpoint),
        checkpoint.copy,
        checkpoint.with_own_vae,
        *(
            lambda name=name: getattr(checkpoint, name)
            for name in ("unet", "vae", "prompt", "encoding_vae", "decoding_vae")
        ),
    ]
    for ask in late:
        with pytest.raises(RuntimeError, match=r"lotus-d' were handed over.*before that"):
            ask()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipes_name_forms_that_exist(recipe: Recipe) -> None:
    assert recipe.group_norm in group_norm.FORMS
    assert recipe.attention in attention.FORMS
    assert recipe.upsampling in subpixel.FORMS
    assert recipe.half is None or recipe.half in HALVES
    largest, mean = recipe.tolerance
    assert largest >= mean > 0
    if recipe.int8 is not None:
        assert set(recipe.int8.extra_tensors) <= {OUTPUT, RESIDUAL}
        assert recipe.quantizes_layers or not recipe.int8.zero_points


def test_a_form_that_does_not_exist_is_an_error() -> None:
    graph = ir.Graph([], [], nodes=[])
    for write in (group_norm.spell_out_group_norm, attention.write_attention):
        with pytest.raises(ValueError, match=r"forms .*, not 'rowz'"):
            write(graph, "rowz")
    plain = Upsample2D(4, use_conv=True)
    with pytest.raises(ValueError, match=r"forms .*, not 'rowz'"):
        subpixel.SubpixelUpsample(plain, plain.conv, "rowz")


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_targets_build_what_can_be_asked_for_or_say_so(target: Target) -> None:
    assert set(target.recipes) <= set(PRECISIONS)
    assert set(target.fallback_precision.values()) <= set(target.recipes)
    assert not set(target.fallback_precision) & set(target.recipes)
    assert (target.build is None) == (target.engine_suffix is None)
