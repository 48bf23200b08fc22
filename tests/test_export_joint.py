"""Bundles of several tasks: one encoder, several UNets, one decoder; and buckets with a batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import BUCKET, build_bundle, save_checkpoint

from export.bundle.costs import read_costs
from export.errors import CheckpointError
from export.folds import FOLDS, apply_folds
from export.graph.weight_file import WEIGHTS
from export.network.checkpoint import Checkpoint, describe
from export.network.joint import load_together
from export.network.single_pass import SinglePass
from export.plan import make_plan
from export.quantize.int8 import choose_int8
from export.quantize.policy import Policy
from export.settings import BuildSettings
from export.targets import Recipe
from runtime import LotusEngine
from runtime.engine import draw_noise
from runtime.manifest import Manifest
from runtime.tasks import TASKS

RECIPE = Recipe(tolerance=(0.0, 0.0), winograd=True)
SIZE = ((BUCKET, BUCKET),)


@pytest.fixture(scope="module")
def normals(checkpoint_d: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mode G, another UNet and prompt, and the autoencoder of `checkpoint_d`."""
    folder = save_checkpoint(tmp_path_factory.mktemp("joint") / "normals", mode="g", seed=5)
    shutil.rmtree(folder / "vae")
    shutil.copytree(checkpoint_d / "vae", folder / "vae")
    return folder


@pytest.fixture(scope="module")
def joint(checkpoint_d: Path, normals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depth of mode D and normals of mode G, one picture or three at once."""
    return build_bundle(
        checkpoint_d,
        tmp_path_factory.mktemp("joint") / "bundle",
        beside=(str(normals),),
        task="depth,normal",
        resolutions=SIZE,
        batches=(1, 3),
        ensemble=4,
        seed=7,
    )


def pair(first: Path, second: Path) -> list[Checkpoint]:
    return load_together([describe(str(first), task="depth"), describe(str(second), task="normal")])


def pictures(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(2)
    return [random.integers(0, 256, (BUCKET, BUCKET, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.slow
def test_a_joint_bundle_answers_as_the_single_ones(
    joint: Path, bundle_d: Path, checkpoint_d: Path, normals: Path
) -> None:
    """To the last bit where there is a single bundle: the same operators on the same numbers."""
    (picture,) = pictures(1)
    with LotusEngine(joint) as both, LotusEngine(bundle_d) as single:
        prediction = both(picture, seed=3)
        assert list(prediction) == ["depth", "normal"]
        np.testing.assert_array_equal(prediction["depth"].values, single(picture).values)
    checkpoint = pair(checkpoint_d, normals)[1]
    noise = draw_noise(3, (1, 4, BUCKET // 8, BUCKET // 8))
    reference = checkpoint.family.reference(checkpoint, picture, noise)
    expected = TASKS["normal"].decode(reference)
    np.testing.assert_allclose(prediction["normal"].values, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_autoencoder_is_stored_once_and_each_source_is_named(
    joint: Path, bundle_d: Path, checkpoint_d: Path, normals: Path
) -> None:
    checkpoints = pair(checkpoint_d, normals)
    single, both = ((bundle / WEIGHTS).stat().st_size for bundle in (bundle_d, joint))
    vae, unet = (
        sum(tensor.nbytes for tensor in network.parameters())
        for network in (checkpoints[0].vae, checkpoints[0].unet)
    )
    assert both / single == pytest.approx((vae + 2 * unet) / (vae + unet), rel=0.05)
    manifest = Manifest.load(joint)
    hashes = [checkpoint.sha256() for checkpoint in checkpoints]
    assert [source.checkpoint.sha256 for source in manifest.sources.values()] == hashes
    assert [s.family for s in manifest.sources.values()] == ["lotus-d", "lotus-g"]
    assert (manifest.mode, manifest.tasks) == ("g", ["depth", "normal"])
    assert manifest.requires == ["beside", "buckets.batch", "buckets.noises"]
    assert [str(bucket) for bucket in manifest.buckets] == ["64x64", "3x64x64", "64x64-noises4"]
    nodes = onnx.load(joint / manifest.buckets[0].graph, load_external_data=False).graph.node
    encoded = [node for node in nodes if node.name.startswith("encoder/network.conv_in")]
    assert len([node for node in encoded if node.op_type == "Conv"]) == 1
    for task in ("depth", "normal"):
        assert any(node.name.startswith(f"unet/{task}.network.") for node in nodes)


@pytest.mark.slow
def test_a_batch_answers_as_one_at_a_time(joint: Path) -> None:
    """Five pictures: three at once, two alone; and each with the noise of its own call."""
    images = pictures(5)
    with LotusEngine(joint) as engine:
        together, alone = engine(images, seed=3), [engine(image, seed=3) for image in images]
    for one, other in zip(together, alone, strict=True):
        for task in one:
            np.testing.assert_allclose(one[task].values, other[task].values, rtol=0, atol=1e-4)
    assert float(np.abs(together[0]["depth"].values - together[1]["depth"].values).max()) > 1e-3


@pytest.mark.slow
def test_an_ensemble_in_one_run_answers_as_its_seeds(joint: Path) -> None:
    """One picture, four noises, and the depth of mode D, which takes none."""
    (picture,) = pictures(1)
    with LotusEngine(joint) as engine:
        together = engine(picture, seed=3, ensemble=4)
        members = [engine(picture, seed=3 + number) for number in range(4)]
    with np.load(joint / "golden.npz") as golden:
        assert golden["image_64x64-noises4"].shape == (BUCKET, BUCKET, 3)
        assert golden["noise_64x64-noises4"].shape == (4, 4, BUCKET // 8, BUCKET // 8)
        normals = golden["normal_64x64-noises4"]
        assert normals.shape == (4, 3, BUCKET, BUCKET)
        assert not np.array_equal(normals[0], normals[1])
        np.testing.assert_array_equal(normals[0], golden["normal_64x64"])
    stacked = [np.moveaxis(each["normal"].values, -1, 0) for each in members]
    expected = TASKS["normal"].merge(stacked)
    np.testing.assert_allclose(
        together["normal"].values, TASKS["normal"].decode(expected.map), rtol=0, atol=1e-4
    )
    spread = together["normal"].uncertainty
    assert spread is not None
    assert np.abs(spread - expected.spread[0]).mean() < 0.01
    assert spread.mean() > 0.1
    depth = together["depth"]
    np.testing.assert_allclose(depth.values, members[0]["depth"].values, rtol=0, atol=1e-4)
    assert depth.uncertainty is not None
    assert depth.uncertainty.max() < 1e-4


@pytest.mark.slow
def test_a_picture_with_several_noises_is_encoded_once(joint: Path) -> None:
    manifest = Manifest.load(joint)
    plain, _, several = (read_costs(joint / each.graph) for each in manifest.buckets)
    assert several["encoder"].multiply_adds == plain["encoder"].multiply_adds
    # Of two tasks one takes noise: 1 and 4 maps in place of 2.
    decoder = several["decoder"].multiply_adds / plain["decoder"].multiply_adds
    assert decoder == pytest.approx(5 / 2, rel=0.05)


@pytest.mark.slow
def test_the_golden_of_a_batch_is_of_different_pictures(joint: Path) -> None:
    golden = np.load(joint / "golden.npz")
    assert golden["image_3x64x64"].shape == (3, BUCKET, BUCKET, 3)
    assert golden["noise_3x64x64"].shape == (3, 4, BUCKET // 8, BUCKET // 8)
    assert golden["normal_3x64x64"].shape == (3, 3, BUCKET, BUCKET)
    for name in ("image", "depth", "normal"):
        np.testing.assert_array_equal(golden[f"{name}_3x64x64"][0], golden[f"{name}_64x64"])
        assert not np.array_equal(golden[f"{name}_3x64x64"][0], golden[f"{name}_3x64x64"][1])


@pytest.mark.slow
def test_every_fold_keeps_the_function_of_a_joint_network(
    checkpoint_d: Path, normals: Path
) -> None:
    """In float64, with three pictures at once, and whether latents are decoded together or not."""
    found = []
    for batched in (False, True):
        module = SinglePass(*pair(checkpoint_d, normals), batched=batched).double()
        for unet in module.unets.values():
            unet.timestep = unet.timestep.long()
        generator = torch.Generator().manual_seed(0)
        image = 2 * torch.rand(3, 3, 64, 72, dtype=torch.float64, generator=generator) - 1
        noise = torch.randn(3, 4, 8, 9, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            plain = module(image, noise)
            places = {name: fold(module, RECIPE).places for name, fold in FOLDS.items()}
            folded = module(image, noise)
        assert (places["fold-time-embedding"], places["fold-prompt"]) == (44, 32)
        for one, other in zip(plain, folded, strict=True):
            assert float(one.std()) > 1e-3, "a constant would prove nothing"
            assert float((one - other).abs().max()) < 1e-12
        found.append(folded)
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) < 1e-12


@pytest.mark.slow
def test_int8_has_one_policy_and_a_budget_for_each_task(
    checkpoint_d: Path, normals: Path, tmp_path: Path
) -> None:
    plan = make_plan(
        BuildSettings(
            checkpoint=str(checkpoint_d),
            beside=(str(normals),),
            task="depth,normal",
            resolutions=SIZE,
            precision="int8",
            target="openvino",
            calibration_images=1,
            budget=(10.0, 90.0),
        )
    )
    network = SinglePass(*pair(checkpoint_d, normals))
    apply_folds(network, plan.recipe)
    ranges, spent = choose_int8(network, plan, tmp_path, [])
    policy = Policy.read(tmp_path / "policy.json")
    assert policy.max_errors == {"depth": 10.0, "normal": 90.0}
    assert policy.units == {"depth": "AbsRel", "normal": "degrees"}
    assert spent.error == policy.errors["depth"] > 0
    assert spent.beside["normal"].error == policy.errors["normal"] > 0
    places = {name.split(".")[0] for name in ranges}
    assert places == {"encoder/network", "unet/depth", "unet/normal", "decoder/network"}


def test_autoencoders_that_differ_are_refused(
    checkpoint_d: Path, checkpoint_g: Path, normals: Path, tmp_path: Path
) -> None:
    """By content, whatever they are called; a setting that no pass reads is no difference."""
    with pytest.raises(CheckpointError, match=r"differ in \d+ of \d+ tensors, the first is"):
        pair(checkpoint_d, checkpoint_g)
    copy = tmp_path / "copy"
    shutil.copytree(normals, copy)
    config = copy / "vae" / "config.json"
    body = json.loads(config.read_text())
    config.write_text(json.dumps(body | {"sample_size": 4}))
    first, second = pair(checkpoint_d, copy)
    assert second.vae is first.vae
    config.write_text(json.dumps(body | {"act_fn": "gelu"}))
    with pytest.raises(CheckpointError, match="act_fn silu and gelu"):
        pair(checkpoint_d, copy)


def test_the_reference_of_each_checkpoint_is_its_own(checkpoint_d: Path, normals: Path) -> None:
    """Loaded together or alone: the shared autoencoder changes nothing."""
    (picture,) = pictures(1)
    noise = draw_noise(0, (1, 4, BUCKET // 8, BUCKET // 8))
    together = pair(checkpoint_d, normals)
    alone = [load_together([describe(str(normals), task="normal")])[0]]
    expected = alone[0].family.reference(alone[0], picture, noise)
    np.testing.assert_array_equal(
        together[1].family.reference(together[1], picture, noise), expected
    )
    assert together[1].sha256() == alone[0].sha256()
