"""A small autoencoder, diffusers' AutoencoderTiny, in place of the encoder or the decoder of a checkpoint, or of both.

TAESD's latents are the scaled ones of Stable Diffusion 1 and 2: its encoder answers what `posterior.mean * scaling`
would have been, and its decoder takes what the UNet answers, undivided; its config says `scaling_factor` 1. Images and
maps are [-1,1] on both sides, as with the large one: the class itself goes to TAESD's [0,1] and back.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from export.checkpoint import Checkpoint, Kind, SmallVae, find_folder, load_network
from export.errors import CheckpointError

_RANDOM = "random/taesd"
_TAESD = Kind(
    words="folder of an AutoencoderTiny (config.json and safetensors), a hub id such as madebyollin/taesd",
    files=("config.json", "diffusion_pytorch_model*.safetensors"),
    marker="config.json",
    use="CHECKPOINT --vae ./{folder}",
    others=("tiny/taesd", _RANDOM),
)


def replace_vae(
    checkpoint: Checkpoint,
    encoder: str | None,
    decoder: str | None,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """The checkpoint with the encoder and the decoder of the named small autoencoders; None keeps its own.

    A name is a local folder, a hub id, `tiny/taesd` (embedded) or `random/taesd` (TAESD's size, seeded weights).
    Raises: CheckpointError, also where latents differ in channels or in size.
    """
    small: dict[str | None, SmallVae | None] = {None: None}
    for name in (encoder, decoder):
        if name is not None and name not in small:
            network = _load(name, seed, progress).eval().requires_grad_(False)
            _check(name, network, checkpoint)
            small[name] = SmallVae(id=name, network=network)
    return dataclasses.replace(checkpoint, small_encoder=small[encoder], small_decoder=small[decoder])


def _load(name: str, seed: int, progress: Callable[[str], None]) -> AutoencoderTiny:
    if name == _RANDOM:
        progress(f"drawing the weights of {name} with seed {seed}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoencoderTiny()  # diffusers' defaults are TAESD's
    folder = find_folder(name, _TAESD, progress)
    found = _class_name(folder)
    if found != AutoencoderTiny.__name__:
        raise CheckpointError(
            f"{name!r} is {found or 'no diffusers module'}, and only an AutoencoderTiny (TAESD's class) can stand in "
            f"for an autoencoder. Pass a {_TAESD.words}, or one of {list(_TAESD.others)}"
        )
    progress(f"loading {name}")
    network: AutoencoderTiny = load_network(AutoencoderTiny, folder)
    return network


def _class_name(folder: Path) -> str | None:
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {config}: {error}") from error
    return content.get("_class_name") if isinstance(content, dict) else None


def _check(name: str, network: AutoencoderTiny, checkpoint: Checkpoint) -> None:
    """Refuse latents that are not the checkpoint's. Raises: CheckpointError."""
    config, own = network.config, checkpoint.vae.config
    down = 2 ** (len(config.encoder_block_out_channels) - 1)
    up = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
    facts = {
        "latent channels": (config.latent_channels, own.latent_channels),
        "pixels to a latent's edge in the encoder": (down, checkpoint.downscale),
        "pixels to a latent's edge in the decoder": (up, checkpoint.downscale),
        "channels in": (config.in_channels, own.in_channels),
        "channels out": (config.out_channels, own.out_channels),
        "shift of latents": (config.shift_factor, 0.0),
    }
    wrong = [f"{what} {found}, not {wanted}" for what, (found, wanted) in facts.items() if found != wanted]
    if wrong:
        raise CheckpointError(f"{name!r} does not fit the latents of {checkpoint.id!r}: it has {'; '.join(wrong)}")
