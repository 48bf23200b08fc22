"""Modules from a diffusers folder, or with random weights. safetensors only, never pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from export.errors import CheckpointError
from export.network.checkpoint import PROMPT_FILE, Modules, check_folder

# diffusers, transformers, safetensors and json each raise their own types for a damaged folder.
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError)


def load_modules(folder: Path, vae_folder: Path) -> Modules:
    """UNet, autoencoder and empty prompt of a diffusers folder. Raises: CheckpointError."""
    return Modules(
        unet=load_network(UNet2DConditionModel, folder / "unet").eval().requires_grad_(False),
        vae=load_network(AutoencoderKL, vae_folder).eval().requires_grad_(False),
        prompt=_load_prompt(folder),
    )


def draw_modules(unet: Mapping[str, Any], vae: Mapping[str, Any], seed: int) -> Modules:
    """The architecture of these configs with PyTorch's default initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = UNet2DConditionModel(**unet), AutoencoderKL(**vae)
        prompt = torch.randn(1, 2, unet["cross_attention_dim"])
    return Modules(
        unet=networks[0].eval().requires_grad_(False),
        vae=networks[1].eval().requires_grad_(False),
        prompt=prompt,
    )


def load_network(network: Any, folder: Path) -> Any:
    """One module's folder as fp32; every tensor must be there. `network` is its diffusers class.

    Raises: CheckpointError.
    """
    check_folder(folder)
    weights = sorted(folder.glob("*.safetensors"))
    variant = "fp16" if all(".fp16." in path.name for path in weights) else None
    try:
        module, report = network.from_pretrained(
            folder,
            variant=variant,
            torch_dtype=torch.float32,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            local_files_only=True,
        )
    except _LOADING_ERRORS as error:
        raise CheckpointError(f"cannot load {folder}: {error}") from error
    if report["missing_keys"]:
        raise CheckpointError(
            f"{folder} lacks {len(report['missing_keys'])} tensors of its architecture, the first "
            f"is {sorted(report['missing_keys'])[0]!r}: the weights are incomplete or of another "
            "model"
        )
    return module


def _load_prompt(folder: Path) -> torch.Tensor:
    """The empty prompt, float32 [1,N,C]: from `prompt_embedding.safetensors`, or from tokenizer
    and text encoder.

    The published pipeline does not pad the empty prompt (`padding="do_not_pad"`): N is 2, start
    and end token, not 77.
    """
    stored = folder / PROMPT_FILE
    if stored.is_file():
        try:
            return load_file(stored)["prompt_embedding"].float()
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"{stored} must hold the tensor 'prompt_embedding': {error}"
            ) from error
    if not ((folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()):
        raise CheckpointError(
            f"{folder} has neither {PROMPT_FILE} nor text_encoder/ and tokenizer/"
        )
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
        ).eval()
    except _LOADING_ERRORS as error:
        raise CheckpointError(f"cannot load the text encoder of {folder}: {error}") from error
    tokens = tokenizer("", padding="do_not_pad", return_tensors="pt")
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    with torch.inference_mode():
        embedding: torch.Tensor = encoder(tokens.input_ids, attention_mask=mask)[0].clone()
    return embedding
