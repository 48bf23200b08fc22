"""A small autoencoder that cannot stand in is refused, most often before a weight is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import new_tiny_vae

from export.build_engine import main
from export.errors import CheckpointError
from export.network.autoencoder import describe_small_vae, replace_vae
from export.network.checkpoint import Description, describe, load_checkpoint


@pytest.fixture
def description(checkpoint_d: Path) -> Description:
    return describe(str(checkpoint_d), task="depth")


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
    description: Description, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    new_tiny_vae(**changes).save_pretrained(tmp_path / "odd")
    with pytest.raises(CheckpointError, match=message):
        describe_small_vae(str(tmp_path / "odd"), description)


def test_only_an_autoencoder_tiny_stands_in(
    description: Description, checkpoint_d: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is AutoencoderKL, and only an AutoencoderTiny"):
        describe_small_vae(str(checkpoint_d / "vae"), description)
    with pytest.raises(CheckpointError, match=r"pass one of \['text_encoder', 'unet', 'vae'\]"):
        describe_small_vae(str(checkpoint_d), description)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError):
            describe_small_vae(str(tmp_path), description)


def test_pickled_cut_and_incomplete_weights(
    checkpoint_d: Path, description: Description, small_vae: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    def load() -> None:
        checkpoint = load_checkpoint(str(checkpoint_d), task="depth")
        replace_vae(checkpoint, describe_small_vae(str(tmp_path), description), None)

    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / "config.json").write_text((small_vae / "config.json").read_text())
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Pickled"):
        describe_small_vae(str(tmp_path), description)
    (tmp_path / weights).write_bytes((small_vae / weights).read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot load"):
        load()
    tensors = load_file(small_vae / weights)
    del tensors["decoder.layers.0.bias"]
    save_file(tensors, tmp_path / weights)
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.0\.bias"):
        load()


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./none", "a/b/c", "random/lotus-d", "tiny/none", "plain"]
)
def test_names_that_lead_nowhere(description: Description, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        describe_small_vae(name, description)
    assert "taesd" in str(caught.value)


def test_hub_id_without_network_says_what_to_download(
    description: Description, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        describe_small_vae("madebyollin/taesd", description)
    assert "hf download madebyollin/taesd --local-dir taesd" in str(caught.value)
    assert "build_engine.py CHECKPOINT --vae ./taesd" in str(caught.value)


def test_command_refuses_a_wrong_one_and_a_change_of_a_finished_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tiny/disparity-d", "--vae", "tiny/vae", "--output", str(tmp_path / "x")]) == 1
    assert "error: 'tiny/vae' is AutoencoderKL" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        main(["--from-bundle", "x", "--vae-encoder", "tiny/taesd"])
    assert "--vae-encoder cannot be changed with --from-bundle" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # the default's value too
        main(["--from-bundle", "x", "--precision", "fp32"])
    assert "--precision cannot be changed with --from-bundle" in capsys.readouterr().err


def test_a_dry_run_of_a_finished_graph_is_refused(
    null_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would build, and with --overwrite replace."""
    with pytest.raises(SystemExit):
        main(["--from-bundle", str(null_bundle), "--target", "tensorrt", "--dry-run"])
    assert "--dry-run" in capsys.readouterr().err
