"""A small autoencoder, diffusers' AutoencoderTiny, in place of the encoder or the decoder of a
checkpoint, or of both.

TAESD's latents are the scaled ones of Stable Diffusion 1 and 2: its encoder answers what
`posterior.mean * scaling` would have been, and its decoder takes what the UNet answers, undivided;
its config says `scaling_factor` 1. Images and maps are [-1,1] on both sides, as with the large one:
the class itself goes to TAESD's [0,1] and back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import CheckpointError
from export.network.checkpoint import (
    Checkpoint,
    Description,
    SmallVae,
    public_id,
)
from export.network.hub import CheckpointSource, download, find_folder, read_config
from export.network.parts import check_folder
from export.network.weights import NETWORK
from export.progress import say

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

_CLASS = "AutoencoderTiny"
_RANDOM = "random/taesd"
# diffusers' defaults, which are TAESD's.
_RANDOM_CONFIG: dict[str, Any] = {"_class_name": _CLASS}
_TAESD = CheckpointSource(
    description=(
        "folder of an AutoencoderTiny (config.json and safetensors), a hub id such as "
        "madebyollin/taesd"
    ),
    files=("config.json",),
    parts=(("", NETWORK),),
    marker="config.json",
    usage="CHECKPOINT --vae ./{folder}",
    offline_names=("tiny/taesd", _RANDOM),
    tasks={},
)


@dataclass(frozen=True, kw_only=True)
class SmallVaeDescription:
    """A small autoencoder before it is loaded; `folder` is None for random weights."""

    id: str
    folder: Path | None

    @property
    def public_id(self) -> str:
        """The name without the folders of the building machine."""
        return public_id(self.id)


def describe_small_vae(name: str, checkpoint: Description) -> SmallVaeDescription:
    """Describe a local folder, a hub id (which is downloaded), `tiny/taesd` (embedded) or
    `random/taesd` (TAESD's size, seeded weights).

    Raises: CheckpointError, also where its latents differ from the checkpoint's.
    """
    folder = None
    config: Mapping[str, Any] = _RANDOM_CONFIG
    if name != _RANDOM:
        folder = find_folder(name, _TAESD) or download(name, _TAESD)
        config = read_config(folder)
    if config.get("_class_name") != _CLASS:
        raise CheckpointError(
            f"{name!r} is {config.get('_class_name') or 'no diffusers module'}, and only an "
            f"{_CLASS} (TAESD's class) can stand in for an autoencoder. Pass a "
            f"{_TAESD.description}, or one of {list(_TAESD.offline_names)}"
        )
    _check_latents(name, config, checkpoint)
    if folder is not None:
        check_folder(folder)
    return SmallVaeDescription(id=name, folder=folder)


def replace_vae(
    checkpoint: Checkpoint,
    encoder: SmallVaeDescription | None,
    decoder: SmallVaeDescription | None,
    *,
    seed: int = 0,
) -> Checkpoint:
    """The checkpoint with the encoder and the decoder of small autoencoders; None keeps its own.

    The modules move: the checkpoint that was given forgets them. Raises: CheckpointError.
    """
    if encoder is None and decoder is None:
        return checkpoint
    small: dict[str, SmallVae] = {}
    for description in (encoder, decoder):
        if description is not None and description.id not in small:
            network = _load(description, seed).eval().requires_grad_(False)
            small[description.id] = SmallVae(id=description.id, network=network)
    modules = dataclasses.replace(
        checkpoint.hand_over(),
        small_encoder=None if encoder is None else small[encoder.id],
        small_decoder=None if decoder is None else small[decoder.id],
    )
    return Checkpoint(
        id=checkpoint.id, family=checkpoint.family, task=checkpoint.task, modules=modules
    )


def _load(description: SmallVaeDescription, seed: int) -> AutoencoderTiny:
    import torch
    from diffusers import AutoencoderTiny

    from export.network.modules import load_network

    if description.folder is None:
        say(f"drawing the weights of {description.id} with seed {seed}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoencoderTiny()
    say(f"loading {description.id}")
    network: AutoencoderTiny = load_network(AutoencoderTiny, description.folder)
    return network


def _check_latents(name: str, config: Mapping[str, Any], checkpoint: Description) -> None:
    """Refuse latents that are not the checkpoint's. Raises: CheckpointError."""
    latent, own = checkpoint.latent, checkpoint.vae
    channels = (64, 64, 64, 64)
    down = 2 ** (len(config.get("encoder_block_out_channels", channels)) - 1)
    factor = config.get("upsampling_scaling_factor", 2)
    up = factor ** (len(config.get("decoder_block_out_channels", channels)) - 1)
    facts = {
        "latent channels": (config.get("latent_channels", 4), latent.channels),
        "pixels to a latent's edge in the encoder": (down, latent.downscale),
        "pixels to a latent's edge in the decoder": (up, latent.downscale),
        "channels in": (config.get("in_channels", 3), own.get("in_channels", 3)),
        "channels out": (config.get("out_channels", 3), own.get("out_channels", 3)),
        "shift of latents": (config.get("shift_factor", 0.0), 0.0),
    }
    wrong = [
        f"{fact} {value}, not {wanted}"
        for fact, (value, wanted) in facts.items()
        if value != wanted
    ]
    if wrong:
        raise CheckpointError(
            f"{name!r} does not fit the latents of {checkpoint.id!r}: it has {'; '.join(wrong)}"
        )
