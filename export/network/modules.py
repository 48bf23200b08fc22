"""Modules from a diffusers folder, or with random weights. safetensors only, never pickle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from export.errors import CheckpointError
from export.network.checkpoint import Modules
from export.network.hub import read_config
from export.network.parts import PROMPT_FILE, Parts, check_folder, has_prompt
from export.network.weights import NETWORK, TEXT_ENCODER, find_weights
from export.progress import say
from runtime.there import is_file

# diffusers, transformers, safetensors and json each raise their own types for a damaged folder.
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError)
# Autoencoders saved by early releases of diffusers name their attention so.
_NEW_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(r"(?<=\.)(?:query|key|value|proj_attn)(?=\.(?:weight|bias)$)")


def load_modules(parts: Parts) -> Modules:
    """UNet, autoencoder and empty prompt of a checkpoint's folders. Raises: CheckpointError."""
    prompt = _load_prompt(parts.rest)
    unet = load_network(UNet2DConditionModel, parts.unet, shape=parts.shape)
    return Modules(
        unet=unet.eval().requires_grad_(False),
        vae=load_network(AutoencoderKL, parts.vae).eval().requires_grad_(False),
        prompt=prompt,
    )


def draw_modules(
    unet: Mapping[str, Any], vae: Mapping[str, Any], seed: int, *, unet_seed: int | None = None
) -> Modules:
    """The architecture of these configs with PyTorch's default initialisation.

    With `unet_seed` the UNet alone is another: autoencoder and prompt are those of `seed`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, autoencoder = UNet2DConditionModel(**unet), AutoencoderKL(**vae)
        prompt = torch.randn(1, 2, unet["cross_attention_dim"])
        if unet_seed is not None:  # the first was drawn for those that come behind it
            del network
            torch.manual_seed(unet_seed)
            network = UNet2DConditionModel(**unet)
    return Modules(
        unet=network.eval().requires_grad_(False),
        vae=autoencoder.eval().requires_grad_(False),
        prompt=prompt,
    )


def load_network(network: Any, folder: Path, *, shape: Path | None = None) -> Any:
    """One module's folder as fp32; every tensor must be there. `network` is its diffusers class,
    `shape` the folder of its config where that is another.

    Raises: CheckpointError.
    """
    shape = folder if shape is None else shape
    if shape == folder:
        check_folder(folder)
    tensors = _load_tensors(folder, NETWORK)
    try:
        with torch.device("meta"):  # the weights come next: no memory and no time for random ones
            module = network.from_config(read_config(shape))
        report = module.load_state_dict(tensors, strict=False, assign=True)
    except _LOADING_ERRORS as error:
        raise CheckpointError(f"cannot load {folder}: {_first_lines(error)}") from error
    _check_report(folder, report.missing_keys, report.unexpected_keys)
    return module


def _load_tensors(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """The weights of a module's folder by name, floating ones as fp32 in memory of their own.

    Raises: CheckpointError, also for NaN and infinite values.
    """
    weights = find_weights(folder, stem)
    if weights.remark is not None:
        say(weights.remark)
    tensors: dict[str, torch.Tensor] = {}
    for path in weights.files:
        try:
            content = load_file(path)
        except _LOADING_ERRORS as error:
            raise CheckpointError(f"cannot load {path}: {error}") from error
        for name, value in content.items():
            if not value.isfinite().all():
                raise CheckpointError(
                    f"{path} holds NaN or infinite values, in {name!r}: the training diverged, or "
                    "the values were too large for half precision"
                )
            kind = torch.float32 if value.is_floating_point() else value.dtype
            new_name = _OLD_ATTENTION.sub(lambda found: _NEW_NAMES[found[0]], name)
            tensors[new_name] = value.to(kind, copy=True)
    return tensors


def _check_report(folder: Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse weights that lack a tensor, and name what is not used. Raises: CheckpointError."""
    lacking, unused = sorted(missing), sorted(unexpected)
    if lacking:
        raise CheckpointError(
            f"{folder} lacks {len(lacking)} tensors of its architecture, the first is "
            f"{lacking[0]!r}: the weights are incomplete or of another model"
        )
    if unused:
        say(
            f"{folder} holds {len(unused)} tensors that its config has no place for, the first is "
            f"{unused[0]!r}: they are not used"
        )


def _first_lines(error: BaseException) -> str:
    """An error without the hundreds of lines that PyTorch writes of tensors of another shape."""
    lines = str(error).splitlines()
    return "\n".join([*lines[:3], *(["..."] if len(lines) > 3 else [])])


def _load_prompt(folder: Path) -> torch.Tensor:
    """The empty prompt, float32 [1,N,C]: from `prompt_embedding.safetensors`, or from tokenizer
    and text encoder.

    The published pipeline does not pad the empty prompt (`padding="do_not_pad"`): N is 2, start
    and end token, not 77.
    """
    stored = folder / PROMPT_FILE
    if is_file(stored):
        try:
            return load_file(stored)["prompt_embedding"].float()
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"{stored} must hold the tensor 'prompt_embedding': {error}"
            ) from error
    if not has_prompt(folder):
        raise CheckpointError(
            f"{folder} has neither {PROMPT_FILE} nor text_encoder/ and tokenizer/"
        )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tensors = _load_tensors(folder / "text_encoder", TEXT_ENCODER)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        config = CLIPTextConfig.from_pretrained(folder / "text_encoder", local_files_only=True)
        encoder, report = CLIPTextModel.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
        )
    except _LOADING_ERRORS as error:
        raise CheckpointError(
            f"cannot load the text encoder of {folder}: {_first_lines(error)}"
        ) from error
    _check_report(folder / "text_encoder", report["missing_keys"], report["unexpected_keys"])
    encoder.eval()
    tokens = tokenizer("", padding="do_not_pad", return_tensors="pt")
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    with torch.inference_mode():
        embedding: torch.Tensor = encoder(tokens.input_ids, attention_mask=mask)[0].clone()
    return embedding
