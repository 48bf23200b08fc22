"""A small autoencoder in place of the checkpoint's: the same numbers as diffusers', exact folds,
what is refused.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BUCKET, build_bundle, new_tiny_vae
from diffusers import AutoencoderTiny
from torch import nn

from export.build_engine import main
from export.bundle.costs import load_model
from export.bundle.golden import golden_image
from export.families.lotus import LOTUS_D, TIMESTEP
from export.families.lotus_reference import predict_reference
from export.folds import FOLDS, apply_folds
from export.folds.subpixel import FORMS, SubpixelUpsample
from export.graph.stages import stage_of
from export.network.autoencoder import describe_small_vae, replace_vae
from export.network.checkpoint import (
    Checkpoint,
    SmallVae,
    describe,
    load_checkpoint,
)
from export.network.single_pass import SinglePass
from export.targets import Recipe
from runtime import LotusEngine
from runtime.manifest import Manifest, Preprocess

HALVES = (
    ("encoder", "decoder"),
    ("encoder",),
    ("decoder",),
)  # in order: every process names the tests alike
SIZE = (72, 104)  # height and width in pixels; odd maps on the UNet's levels
RECIPE = Recipe(tolerance=(0.0, 0.0))


@pytest.fixture
def checkpoint(checkpoint_d: Path) -> Checkpoint:
    return load_checkpoint(str(checkpoint_d), task="depth")


def replace_named(
    checkpoint: Checkpoint, encoder: str | None, decoder: str | None, seed: int = 0
) -> Checkpoint:
    """A copy of the checkpoint, with small halves by their names."""
    own = describe(checkpoint.id, task=checkpoint.task.name)
    halves = (name and describe_small_vae(name, own) for name in (encoder, decoder))
    return replace_vae(checkpoint.copy(), *halves, seed=seed)


def replaced(checkpoint: Checkpoint, small_vae: Path, halves: tuple[str, ...]) -> Checkpoint:
    return replace_named(
        checkpoint, *(str(small_vae) if half in halves else None for half in ("encoder", "decoder"))
    )


def with_networks(checkpoint: Checkpoint, **halves: SmallVae) -> Checkpoint:
    """A copy of the checkpoint with `small_encoder` or `small_decoder`."""
    modules = dataclasses.replace(checkpoint.copy().modules, **halves)
    return Checkpoint(
        id=checkpoint.id, family=checkpoint.family, task=checkpoint.task, modules=modules
    )


def chain(
    checkpoint: Checkpoint, image: torch.Tensor, small: AutoencoderTiny, halves: tuple[str, ...]
) -> torch.Tensor:
    """Stable Diffusion's own steps with diffusers' classes: encode, scale, predict, unscale,
    decode.
    """
    with torch.no_grad():
        if "encoder" in halves:
            latent = small.encode(image).latents * small.config.scaling_factor
        else:
            latent = (
                checkpoint.vae.encode(image).latent_dist.mode()
                * checkpoint.vae.config.scaling_factor
            )
        prompt = checkpoint.prompt.to(image)
        labels = LOTUS_D.class_labels().to(image)
        latent = checkpoint.unet(
            latent, TIMESTEP, encoder_hidden_states=prompt, class_labels=labels
        ).sample
        vae = small if "decoder" in halves else checkpoint.vae
        decoded = vae.decode(latent / vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1).mean(dim=1, keepdim=True)


@pytest.mark.parametrize("halves", HALVES, ids="+".join)
@pytest.mark.parametrize("scaling", [1.0, 0.5])
def test_module_and_reference_are_diffusers_own_chain(
    checkpoint: Checkpoint, tmp_path: Path, halves: tuple[str, ...], scaling: float
) -> None:
    network = new_tiny_vae(scaling_factor=scaling).eval()
    network.save_pretrained(tmp_path / "small")
    image = golden_image(*SIZE, seed=0)
    planes = torch.from_numpy(Preprocess().apply(image))
    expected = chain(checkpoint, planes, network, halves)
    assert float(expected.std()) > 1e-3, "a constant would prove nothing"
    whole = replaced(checkpoint, tmp_path / "small", halves)
    with torch.no_grad():
        torch.testing.assert_close(SinglePass(whole.copy())(planes)[0], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        predict_reference(whole, image), expected[0].numpy(), rtol=0, atol=1e-5
    )
    assert not np.allclose(predict_reference(checkpoint, image), expected[0].numpy(), atol=1e-3)


def test_latents_are_the_scaled_ones_and_ranges_are_those_of_the_large_one() -> None:
    """TAESD itself takes [0,1] and answers [0,1]; diffusers' class maps both, and so needs nothing
    from us.
    """
    network = new_tiny_vae().eval()
    assert (network.config.scaling_factor, network.config.shift_factor) == (1.0, 0.0)
    image, latent = 2 * torch.rand(1, 3, 64, 64) - 1, torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            network.encode(image).latents, network.encoder.layers((image + 1) / 2)
        )
        bounded = 3 * torch.tanh(latent / 3)
        torch.testing.assert_close(
            network.decode(latent).sample, 2 * network.decoder.layers(bounded) - 1
        )


def double(checkpoint: Checkpoint) -> SinglePass:
    module = SinglePass(checkpoint).double()
    module.unet.timestep = module.unet.timestep.long()
    return module


@pytest.mark.slow
@pytest.mark.parametrize("halves", HALVES, ids="+".join)
@pytest.mark.parametrize("form", FORMS)
def test_folds_keep_the_function(
    checkpoint: Checkpoint, small_vae: Path, halves: tuple[str, ...], form: str
) -> None:
    module = double(replaced(checkpoint, small_vae, halves))
    image = (
        2 * torch.rand(2, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        - 1
    )
    with torch.no_grad():
        (expected,) = module(image)
        places = {
            "fold-quant-conv": "encoder" not in halves,
            "fold-post-quant-conv": "decoder" not in halves,
            "fold-taesd-scaling": len(halves),
            "subpixel": 6,
        }
        for name, fold in FOLDS.items():
            folded = fold(module, dataclasses.replace(RECIPE, upsampling=form))
            assert folded.places == places.get(name, folded.places), name
            assert float((module(image)[0] - expected).abs().max()) < 1e-12, name
    if "decoder" in halves:
        kinds = [type(layer) for layer in module.decoder.network.layers]
        assert kinds.count(SubpixelUpsample) == 3
        assert nn.Upsample not in kinds
        assert all(
            layer.bias is None
            for layer in module.decoder.network.layers
            if isinstance(layer, SubpixelUpsample)
        )


def test_a_scaling_factor_of_its_own_goes_into_the_convolutions_first(
    checkpoint: Checkpoint,
) -> None:
    network = SmallVae(id="scaled", network=new_tiny_vae(scaling_factor=0.5).eval())
    module = double(with_networks(checkpoint, small_encoder=network, small_decoder=network))
    alone = copy.deepcopy(module)
    folded = FOLDS["fold-taesd-scaling"](alone, RECIPE)
    assert folded.places == 1, "the encoder's"
    assert folded.refused == [
        "a scaling or a 1x1 convolution is left between the UNet and the decoder"
    ]
    image = 2 * torch.rand(1, 3, *SIZE, dtype=torch.float64) - 1
    with torch.no_grad():
        (expected,) = module(image)
        names = apply_folds(module, RECIPE)
        assert {"fold-quant-conv", "fold-post-quant-conv", "fold-taesd-scaling"} <= set(names)
        assert float((module(image)[0] - expected).abs().max()) < 1e-12
        assert float((alone(image)[0] - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Upsample(scale_factor=2, mode="bilinear"), "'bilinear'"),
        (nn.Upsample(scale_factor=3), "enlarges 3"),
        (nn.ReLU(), "no convolution follows"),
        (nn.Conv2d(8, 8, 5, padding=2), "(5, 5)"),
        (nn.Conv2d(8, 8, 3, padding=1, stride=2), "strides"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "padded with zeros"),
    ],
)
def test_upsampling_that_does_not_fit_is_left(
    checkpoint: Checkpoint, layer: nn.Module, reason: str
) -> None:
    network = new_tiny_vae().eval()
    layers = network.decoder.layers
    place = next(place for place, found in enumerate(layers) if isinstance(found, nn.Upsample))
    layers[place + (not isinstance(layer, nn.Upsample))] = layer
    odd = SmallVae(id="odd", network=network)
    module = SinglePass(with_networks(checkpoint, small_decoder=odd))
    folded = FOLDS["subpixel"](module, RECIPE)
    assert folded.places == 5
    assert len(folded.refused) == 1
    assert reason in folded.refused[0]


def test_the_ends_fold_refuses_what_is_no_convolution(checkpoint: Checkpoint) -> None:
    network = new_tiny_vae().eval()
    network.encoder.layers.insert(0, nn.ReLU())
    odd = SmallVae(id="odd", network=network)
    module = SinglePass(with_networks(checkpoint, small_encoder=odd))
    folded = FOLDS["fold-taesd-scaling"](module, RECIPE)
    assert folded.places == 0
    assert folded.refused == ["it does not begin and end with a convolution"]


@pytest.mark.slow
def test_bundle_says_what_was_replaced_and_proves_it(
    checkpoint_d: Path,
    bundle_d: Path,
    small_vae: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {"task": "depth", "resolutions": ((BUCKET, BUCKET),)}
    both = build_bundle(
        checkpoint_d,
        tmp_path / "both",
        vae_encoder=str(small_vae),
        vae_decoder=str(small_vae),
        **settings,
    )
    assert "the small autoencoder moves the depth of the golden by" in capsys.readouterr().err
    one = build_bundle(checkpoint_d, tmp_path / "one", vae_encoder=str(small_vae), **settings)
    manifests = {folder.name: Manifest.load(folder) for folder in (both, one, bundle_d)}
    entries = {
        name: (manifest.vae_encoder, manifest.vae_decoder) for name, manifest in manifests.items()
    }
    assert entries["d"] == (None, None)
    encoder, decoder = entries["both"]
    assert encoder is not None
    assert decoder is not None
    assert (encoder.id, decoder.id) == ("narrow", "narrow"), "a folder by its name alone"
    assert encoder.sha256 != decoder.sha256
    assert entries["one"] == (encoder, None)
    assert manifests["both"].name == "lotus-d-vae-narrow-64x64-fp32-onnxruntime"
    assert manifests["one"].name == "lotus-d-encoder-narrow-64x64-fp32-onnxruntime"
    assert len({manifest.checkpoint.sha256 for manifest in manifests.values()}) == 1
    assert {stage_of(node) for node in load_model(both / "model-64x64.onnx").graph} == {
        "encoder",
        "unet",
        "decoder",
    }

    whole = replaced(
        load_checkpoint(str(checkpoint_d), task="depth"), small_vae, ("encoder", "decoder")
    )
    image = golden_image(BUCKET, BUCKET, seed=5)
    with LotusEngine(both) as engine:
        np.testing.assert_allclose(
            engine(image).values, predict_reference(whole, image)[0], rtol=0, atol=1e-4
        )


def test_hash_sees_one_changed_value_of_its_half_only(
    small_vae: Path, checkpoint: Checkpoint
) -> None:
    vae = replaced(checkpoint, small_vae, ("encoder",)).modules.small_encoder
    assert vae is not None
    before = vae.sha256("encoder"), vae.sha256("decoder")
    vae.network.decoder.layers[0].weight[0, 0, 0, 0] += 1
    assert vae.sha256("encoder") == before[0]
    assert vae.sha256("decoder") != before[1]


def test_random_weights_are_of_taesds_size_and_follow_the_seed(checkpoint: Checkpoint) -> None:
    one, same, other = (
        replace_named(checkpoint, "random/taesd", None, seed=seed).modules for seed in (0, 0, 1)
    )
    sums = [modules.small_encoder.sha256("encoder") for modules in (one, same, other)]
    assert sums[0] == sums[1] != sums[2]
    assert one.small_decoder is None
    assert (
        sum(weight.numel() for weight in one.small_encoder.network.encoder.parameters())
        == 1_222_532
    )


@pytest.mark.slow
def test_command_replaces_both_or_one(small_vae: Path, tmp_path: Path) -> None:
    start = ["tiny/disparity-d", "--resolution", "64x64", "--vae", "tiny/taesd", "--output"]
    assert main([*start, str(tmp_path / "both")]) == 0
    assert main([*start, str(tmp_path / "mixed"), "--vae-decoder", str(small_vae)]) == 0
    both, mixed = (Manifest.load(tmp_path / name) for name in ("both", "mixed"))
    assert both.vae_encoder is not None
    assert both.vae_decoder is not None
    assert (both.vae_encoder.id, both.vae_decoder.id) == ("tiny/taesd", "tiny/taesd")
    assert mixed.vae_encoder == both.vae_encoder
    assert mixed.vae_decoder is not None
    assert mixed.vae_decoder.id == "narrow"
    assert mixed.name.startswith("disparity-d-encoder-taesd-decoder-narrow-64x64")
    assert "--vae tiny/taesd" in both.command
    body = json.loads((tmp_path / "both" / "manifest.json").read_text())
    assert set(body["vae_encoder"]) == {"id", "sha256"}
