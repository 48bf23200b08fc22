"""Loading: what is a Lotus, which mode and task it has, and what its empty prompt is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import save_checkpoint

from export.errors import CheckpointError
from export.families import LOTUS_D, known_ids
from export.network.checkpoint import load_checkpoint
from runtime.tasks import TASKS


@pytest.fixture
def copy(checkpoint_d: Path, tmp_path: Path) -> Path:
    """A writable copy of the mode D checkpoint (depth)."""
    return Path(shutil.copytree(checkpoint_d, tmp_path / "copy"))


def load(path: Path) -> None:
    load_checkpoint(str(path), task="depth")


def test_mode_follows_from_the_input_channels(checkpoint_d: Path, checkpoint_g: Path) -> None:
    assert load_checkpoint(str(checkpoint_d), task="depth").family.mode == "d"
    assert load_checkpoint(str(checkpoint_g), task="depth").family.mode == "g"


def test_task_embedding_is_the_papers() -> None:
    expected = [torch.sin(torch.tensor(1.0)), 0, torch.cos(torch.tensor(1.0)), 1]
    assert torch.allclose(LOTUS_D.class_labels(), torch.tensor([expected]))


def test_prompt_is_what_the_text_encoder_says_about_the_unpadded_empty_prompt(
    checkpoint_d: Path,
) -> None:
    """The published pipeline tokenizes with `padding="do_not_pad"`: start and end token, nothing
    else.
    """
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(checkpoint_d / "text_encoder").eval()
    with torch.no_grad():
        expected = encoder(torch.tensor([[4, 5]]))[0]
    prompt = load_checkpoint(str(checkpoint_d), task="depth").prompt
    assert prompt.shape == (1, 2, 32)
    assert torch.allclose(prompt, expected, atol=1e-6)


def test_weights_hash_is_stable_and_sees_one_changed_value(copy: Path) -> None:
    first = load_checkpoint(str(copy), task="depth")
    assert first.sha256() == load_checkpoint(str(copy), task="depth").sha256()
    before = first.sha256()
    next(first.unet.parameters()).data.view(-1)[0] += 1
    assert first.sha256() != before


def test_fp16_variant_is_read_as_fp32(copy: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(copy / "unet").half()
    shutil.rmtree(copy / "unet")
    unet.save_pretrained(copy / "unet", variant="fp16")
    assert [path.name for path in (copy / "unet").glob("*.safetensors")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    loaded = load_checkpoint(str(copy), task="depth").unet
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_sharded_weights_are_read(copy: Path) -> None:
    from diffusers import UNet2DConditionModel

    whole = UNet2DConditionModel.from_pretrained(copy / "unet")
    shutil.rmtree(copy / "unet")
    whole.save_pretrained(copy / "unet", max_shard_size="2MB")
    assert len(list((copy / "unet").glob("*.safetensors"))) > 1
    loaded = load_checkpoint(str(copy), task="depth").unet
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), loaded.parameters(), strict=True)
    )


def test_task_must_be_named_unless_the_id_implies_it(checkpoint_d: Path) -> None:
    with pytest.raises(CheckpointError, match="pass --task"):
        load_checkpoint(str(checkpoint_d))
    with pytest.raises(CheckpointError, match="known to predict normal"):
        load_checkpoint("jingheya/lotus-normal-d-v1-1", task="depth")
    assert {task for _, task in known_ids().values()} <= set(TASKS)


def test_hub_id_without_network_says_what_to_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint("jingheya/lotus-depth-d-v2-0-disparity")
    message = str(caught.value)
    assert (
        "hf download jingheya/lotus-depth-d-v2-0-disparity --local-dir lotus-depth-d-v2-0-disparity"
        in message
    )
    assert "build_engine.py ./lotus-depth-d-v2-0-disparity --task disparity" in message


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./none", "a/b/c", "random/lotus-x", "tiny/none", "plain"]
)
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(CheckpointError):
        load_checkpoint(name, task="depth")


def test_pickled_weights_are_not_read(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Pickled"):
        load(copy)


def test_missing_parts(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(CheckpointError, match="text_encoder/ and tokenizer/"):
        load(copy)
    shutil.rmtree(copy / "vae")
    with pytest.raises(CheckpointError, match=r"vae needs config\.json"):
        load(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights(copy: Path, part: str) -> None:
    weights = next((copy / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot load"):
        load(copy)


def test_weights_that_lack_a_tensor(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["decoder.conv_out.bias"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"decoder\.conv_out\.bias"):
        load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"in_channels": 9},
            r"no checkpoint of a known family.*channels into the UNet 4 \(here 9\)",
        ),
        ({"class_embed_type": None}, r"class embedding 'projection' \(here None\)"),
        ({"projection_class_embeddings_input_dim": 6}, r"width of the class vector 4 \(here 6\)"),
    ],
)
def test_a_network_that_is_no_lotus(copy: Path, change: dict[str, object], message: str) -> None:
    from diffusers import UNet2DConditionModel

    config = json.loads((copy / "unet" / "config.json").read_text()) | change
    shutil.rmtree(copy / "unet")
    UNet2DConditionModel.from_config(config).save_pretrained(copy / "unet")
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load(copy)


def test_nan_in_the_weights_is_the_checkpoints_fault(tmp_path: Path) -> None:
    import numpy as np

    from export.families.lotus_reference import predict_reference

    checkpoint = load_checkpoint(str(save_checkpoint(tmp_path / "nan")), task="depth")
    next(checkpoint.unet.parameters()).data.view(-1)[0] = float("nan")
    with pytest.raises(CheckpointError, match="in PyTorch itself"):
        predict_reference(checkpoint, np.zeros((64, 64, 3), np.uint8))
