"""A small autoencoder in place of the checkpoint's: the same numbers as diffusers', exact folds, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BUCKET, build_bundle
from diffusers import AutoencoderTiny
from torch import nn

from export.build_engine import main
from export.checkpoint import Checkpoint, SmallVae, load_checkpoint, task_embedding
from export.costs import load_model, stage_of
from export.errors import CheckpointError
from export.folds import FOLDS, apply_folds
from export.folds.subpixel import FORMS, SubpixelUpsample
from export.golden import golden_image
from export.reference import predict_reference
from export.single_pass import SinglePass
from export.small_vae import replace_vae
from runtime import LotusEngine
from runtime.manifest import Manifest, Preprocess

HALVES = (("encoder", "decoder"), ("encoder",), ("decoder",))  # in order: every process names the tests alike
SIZE = (72, 104)  # height and width in pixels; odd maps on the UNet's levels


def new_tiny(seed: int = 1, **changes: object) -> AutoencoderTiny:
    """A narrow TAESD whose every weight and bias has something to do."""
    torch.manual_seed(seed)
    settings: dict[str, object] = {
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "num_encoder_blocks": (1, 1, 1, 1),
        "num_decoder_blocks": (1, 1, 1, 1),
    }
    network = AutoencoderTiny(**(settings | changes))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an AutoencoderTiny."""
    folder = tmp_path_factory.mktemp("small") / "narrow"
    new_tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(checkpoint_d: Path) -> Checkpoint:
    return load_checkpoint(str(checkpoint_d), task="depth")


def replaced(checkpoint: Checkpoint, small: Path, halves: tuple[str, ...]) -> Checkpoint:
    return replace_vae(checkpoint, *(str(small) if half in halves else None for half in ("encoder", "decoder")))


def chain(checkpoint: Checkpoint, image: torch.Tensor, small: AutoencoderTiny, halves: tuple[str, ...]) -> torch.Tensor:
    """Stable Diffusion's own steps with diffusers' classes: encode, scale, predict, unscale, decode."""
    with torch.no_grad():
        if "encoder" in halves:
            latent = small.encode(image).latents * small.config.scaling_factor
        else:
            latent = checkpoint.vae.encode(image).latent_dist.mode() * checkpoint.vae.config.scaling_factor
        prompt = checkpoint.prompt.to(image)
        labels = task_embedding().to(image)
        latent = checkpoint.unet(latent, 999, encoder_hidden_states=prompt, class_labels=labels).sample
        vae = small if "decoder" in halves else checkpoint.vae
        decoded = vae.decode(latent / vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1).mean(dim=1, keepdim=True)


@pytest.mark.parametrize("halves", HALVES, ids="+".join)
@pytest.mark.parametrize("scaling", [1.0, 0.5])
def test_module_and_reference_are_diffusers_own_chain(
    checkpoint: Checkpoint, tmp_path: Path, halves: tuple[str, ...], scaling: float
) -> None:
    network = new_tiny(scaling_factor=scaling).eval()
    network.save_pretrained(tmp_path / "small")
    image = golden_image(*SIZE, seed=0)
    planes = torch.from_numpy(Preprocess().apply(image))
    expected = chain(checkpoint, planes, network, halves)
    assert float(expected.std()) > 1e-3, "a constant would prove nothing"
    whole = replaced(checkpoint, tmp_path / "small", halves)
    with torch.no_grad():
        torch.testing.assert_close(SinglePass(whole)(planes), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(predict_reference(whole, image), expected[0].numpy(), rtol=0, atol=1e-5)
    assert not np.allclose(predict_reference(checkpoint, image), expected[0].numpy(), atol=1e-3)


def test_latents_are_the_scaled_ones_and_ranges_are_those_of_the_large_one() -> None:
    """TAESD itself takes [0,1] and answers [0,1]; diffusers' class maps both, and so needs nothing from us."""
    network = new_tiny().eval()
    assert (network.config.scaling_factor, network.config.shift_factor) == (1.0, 0.0)
    image, latent = 2 * torch.rand(1, 3, 64, 64) - 1, torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.encode(image).latents, network.encoder.layers((image + 1) / 2))
        bounded = 3 * torch.tanh(latent / 3)
        torch.testing.assert_close(network.decode(latent).sample, 2 * network.decoder.layers(bounded) - 1)


def double(checkpoint: Checkpoint) -> SinglePass:
    module = SinglePass(checkpoint).double()
    module.unet.timestep = module.unet.timestep.long()
    return module


@pytest.mark.parametrize("halves", HALVES, ids="+".join)
@pytest.mark.parametrize("form", FORMS)
def test_folds_keep_the_function(checkpoint: Checkpoint, small: Path, halves: tuple[str, ...], form: str) -> None:
    module = double(replaced(checkpoint, small, halves))
    image = 2 * torch.rand(2, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        expected = module(image)
        own = {"latent-in": "encoder" not in halves, "latent-out": "decoder" not in halves}
        places = {"small-ranges": len(halves), "subpixel": 6} | own
        for name, fold in FOLDS.items():
            folded = fold(module, form) if name == "subpixel" else fold(module)
            assert folded.places == places.get(name, folded.places), name
            assert float((module(image) - expected).abs().max()) < 1e-12, name
    if "decoder" in halves:
        kinds = [type(layer) for layer in module.decoder.network.layers]
        assert kinds.count(SubpixelUpsample) == 3
        assert nn.Upsample not in kinds
        assert all(layer.bias is None for layer in module.decoder.network.layers if isinstance(layer, SubpixelUpsample))


def test_a_scaling_factor_of_its_own_goes_into_the_convolutions_first(checkpoint: Checkpoint) -> None:
    network = SmallVae(id="scaled", network=new_tiny(scaling_factor=0.5).eval())
    module = double(dataclasses.replace(checkpoint, small_encoder=network, small_decoder=network))
    alone = copy.deepcopy(module)
    folded = FOLDS["small-ranges"](alone)
    assert folded.places == 1, "the encoder's"
    assert folded.refused == ["a scaling or a 1x1 convolution is left between the UNet and the decoder"]
    image = 2 * torch.rand(1, 3, *SIZE, dtype=torch.float64) - 1
    with torch.no_grad():
        expected = module(image)
        names = apply_folds(module, lambda line: None)
        assert {"latent-in", "latent-out", "small-ranges"} <= set(names)
        assert float((module(image) - expected).abs().max()) < 1e-12
        assert float((alone(image) - expected).abs().max()) < 1e-12


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
def test_upsampling_that_does_not_fit_is_left(checkpoint: Checkpoint, layer: nn.Module, reason: str) -> None:
    network = new_tiny().eval()
    layers = network.decoder.layers
    place = next(place for place, found in enumerate(layers) if isinstance(found, nn.Upsample))
    layers[place + (not isinstance(layer, nn.Upsample))] = layer
    module = SinglePass(dataclasses.replace(checkpoint, small_decoder=SmallVae(id="odd", network=network)))
    folded = FOLDS["subpixel"](module)
    assert folded.places == 5
    assert len(folded.refused) == 1
    assert reason in folded.refused[0]


def test_the_ends_fold_refuses_what_is_no_convolution(checkpoint: Checkpoint) -> None:
    network = new_tiny().eval()
    network.encoder.layers.insert(0, nn.ReLU())
    module = SinglePass(dataclasses.replace(checkpoint, small_encoder=SmallVae(id="odd", network=network)))
    folded = FOLDS["small-ranges"](module)
    assert folded.places == 0
    assert folded.refused == ["it does not begin and end with a convolution"]


@pytest.mark.slow
def test_bundle_says_what_was_replaced_and_proves_it(
    checkpoint_d: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"task": "depth", "resolutions": ((BUCKET, BUCKET),)}
    both = build_bundle(checkpoint_d, tmp_path / "both", vae_encoder=str(small), vae_decoder=str(small), **settings)
    assert "the small autoencoder moves the depth of the golden by" in capsys.readouterr().err
    one = build_bundle(checkpoint_d, tmp_path / "one", vae_encoder=str(small), **settings)
    capsys.readouterr()
    own = build_bundle(checkpoint_d, tmp_path / "own", **settings)
    assert "moves" not in capsys.readouterr().err
    manifests = {folder.name: Manifest.load(folder) for folder in (both, one, own)}
    entries = {name: (manifest.vae_encoder, manifest.vae_decoder) for name, manifest in manifests.items()}
    assert entries["own"] == (None, None)
    encoder, decoder = entries["both"]
    assert encoder is not None
    assert decoder is not None
    assert (encoder.id, decoder.id) == ("narrow", "narrow"), "a folder by its name alone"
    assert encoder.sha256 != decoder.sha256
    assert entries["one"] == (encoder, None)
    assert manifests["both"].name == "lotus-d-vae-narrow-64x64-fp32-onnxruntime"
    assert manifests["one"].name == "lotus-d-encoder-narrow-64x64-fp32-onnxruntime"
    assert len({manifest.checkpoint.sha256 for manifest in manifests.values()}) == 1
    assert {stage_of(node) for node in load_model(both / "model-64x64.onnx").graph} == {"encoder", "unet", "decoder"}

    whole = replaced(load_checkpoint(str(checkpoint_d), task="depth"), small, ("encoder", "decoder"))
    image = golden_image(BUCKET, BUCKET, seed=5)
    with LotusEngine(both) as engine:
        np.testing.assert_allclose(engine(image).values, predict_reference(whole, image)[0], rtol=0, atol=1e-4)


def test_hash_sees_one_changed_value_of_its_half_only(small: Path, checkpoint: Checkpoint) -> None:
    vae = replaced(checkpoint, small, {"encoder"}).small_encoder
    assert vae is not None
    before = vae.sha256("encoder"), vae.sha256("decoder")
    vae.network.decoder.layers[0].weight[0, 0, 0, 0] += 1
    assert vae.sha256("encoder") == before[0]
    assert vae.sha256("decoder") != before[1]


def test_random_weights_are_of_taesds_size_and_follow_the_seed(checkpoint: Checkpoint) -> None:
    one, same, other = (replace_vae(checkpoint, "random/taesd", None, seed=seed) for seed in (0, 0, 1))
    sums = [loaded.small_encoder.sha256("encoder") for loaded in (one, same, other)]
    assert sums[0] == sums[1] != sums[2]
    assert one.small_decoder is None
    assert sum(weight.numel() for weight in one.small_encoder.network.encoder.parameters()) == 1_222_532


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 16}, "latent channels 16, not 4"),
        (
            {"encoder_block_out_channels": (8,) * 3, "num_encoder_blocks": (1,) * 3},
            "edge in the encoder 4, not 8",
        ),
        ({"upsampling_scaling_factor": 1}, "edge in the decoder 1, not 8"),
        ({"out_channels": 1}, "channels out 1, not 3"),
        ({"shift_factor": 0.1}, "shift of latents 0.1, not 0"),
    ],
)
def test_latents_that_do_not_fit(
    checkpoint: Checkpoint, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    new_tiny(**changes).save_pretrained(tmp_path / "odd")
    with pytest.raises(CheckpointError, match=message):
        replace_vae(checkpoint, None, str(tmp_path / "odd"))


def test_only_an_autoencoder_tiny_stands_in(checkpoint: Checkpoint, checkpoint_d: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is AutoencoderKL, and only an AutoencoderTiny"):
        replace_vae(checkpoint, str(checkpoint_d / "vae"), None)
    with pytest.raises(CheckpointError, match="is no diffusers module"):
        replace_vae(checkpoint, str(checkpoint_d), None)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError):
            replace_vae(checkpoint, str(tmp_path), None)


def test_pickled_cut_and_incomplete_weights(checkpoint: Checkpoint, small: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Pickled"):
        replace_vae(checkpoint, str(tmp_path), None)
    (tmp_path / weights).write_bytes((small / weights).read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot load"):
        replace_vae(checkpoint, str(tmp_path), None)
    tensors = load_file(small / weights)
    del tensors["decoder.layers.0.bias"]
    save_file(tensors, tmp_path / weights)
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.0\.bias"):
        replace_vae(checkpoint, str(tmp_path), None)


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "a/b/c", "random/lotus-d", "tiny/none", "plain"])
def test_names_that_lead_nowhere(checkpoint: Checkpoint, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        replace_vae(checkpoint, name, None)
    assert "taesd" in str(caught.value)


def test_hub_id_without_network_says_what_to_download(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        replace_vae(checkpoint, "madebyollin/taesd", None)
    assert "hf download madebyollin/taesd --local-dir taesd" in str(caught.value)
    assert "build_engine.py CHECKPOINT --vae ./taesd" in str(caught.value)


@pytest.mark.slow
def test_command_replaces_both_or_one(small: Path, tmp_path: Path) -> None:
    start = ["tiny/disparity-d", "--resolution", "64x64", "--vae", "tiny/taesd", "--output"]
    assert main([*start, str(tmp_path / "both")]) == 0
    assert main([*start, str(tmp_path / "mixed"), "--vae-decoder", str(small)]) == 0
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


def test_command_refuses_a_wrong_one_and_a_change_of_a_finished_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tiny/disparity-d", "--vae", "tiny/vae", "--output", str(tmp_path / "x")]) == 1
    assert "error: 'tiny/vae' is AutoencoderKL" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        main(["--from-bundle", "x", "--vae-encoder", "tiny/taesd"])
    assert "--vae-encoder cannot be changed with --from-bundle" in capsys.readouterr().err
