"""The PyTorch reference: what Lotus computes, in the order its authors compute it, with the
posterior's mean.

Written from diffusers' own modules, without anything that the exported network shares
(`single_pass.py`, folds), so that a mistake there cannot hide here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray

from export.errors import CheckpointError
from export.network.checkpoint import Checkpoint
from runtime.manifest import Preprocess


def predict_reference(
    checkpoint: Checkpoint, rgb: NDArray[np.uint8], noise: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """RGB uint8 [H,W,3] (and noise [1,C,H/8,W/8] for mode G) to the map [channels,H,W] in the
    task's range.

    Normals are not scaled to unit length. No resizing. Raises: CheckpointError when the weights
    give NaN.
    """
    family, task = checkpoint.family, checkpoint.task
    with torch.inference_mode():
        image = torch.from_numpy(Preprocess().apply(rgb))
        latent = _encode(checkpoint.encoding_vae, image)
        if noise is not None:
            latent = torch.cat([latent, torch.from_numpy(noise)], dim=1)
        predicted = checkpoint.unet(
            latent,
            family.timestep,
            encoder_hidden_states=checkpoint.prompt,
            class_labels=family.class_labels(),
        ).sample
        vae = checkpoint.decoding_vae
        decoded = vae.decode(predicted / vae.config.scaling_factor).sample[0].numpy()
    if not np.isfinite(decoded).all():
        raise CheckpointError(
            f"the weights of {checkpoint.id!r} give NaN or infinite values in PyTorch itself"
        )
    unit = np.clip(decoded / 2 + 0.5, 0, 1)
    if task.channels < len(unit):
        unit = unit.mean(axis=0, keepdims=True, dtype=np.float32)
    values: NDArray[np.float32] = (unit * (task.high - task.low) + task.low).astype(np.float32)
    return values


def _encode(vae: Any, image: torch.Tensor) -> torch.Tensor:
    encoded = vae.encode(image)
    latent = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
    scaled: torch.Tensor = latent * vae.config.scaling_factor
    return scaled
