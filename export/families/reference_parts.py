"""What the authors' computations have in common around their UNets, in PyTorch.

Written from diffusers' own modules, without anything that the exported network shares
(`single_pass.py`, folds, `maps.py`), so that a mistake there cannot hide here.
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
from runtime.tasks import Task


def encode(checkpoint: Checkpoint, rgb: NDArray[np.uint8]) -> torch.Tensor:
    """RGB uint8 [H,W,3] to the scaled mean of the latent, [1,C,h,w]."""
    vae: Any = checkpoint.encoding_vae
    encoded = vae.encode(torch.from_numpy(Preprocess().apply(rgb)))
    latent = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
    scaled: torch.Tensor = latent * vae.config.scaling_factor
    return scaled


def decode(checkpoint: Checkpoint, latent: torch.Tensor) -> NDArray[np.float32]:
    """The predicted latent [1,C,h,w] to the picture [3,H,W].

    Raises: CheckpointError when the weights give NaN.
    """
    vae = checkpoint.decoding_vae
    decoded: NDArray[np.float32] = vae.decode(latent / vae.config.scaling_factor).sample[0].numpy()
    if not np.isfinite(decoded).all():
        raise CheckpointError(
            f"the weights of {checkpoint.id!r} give NaN or infinite values in PyTorch itself"
        )
    return decoded


def clipped_mean(decoded: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """The picture [3,H,W] as a map [channels,H,W]: the mean over channels where the task has one,
    then clipped, then the task's range.
    """
    if task.channels < len(decoded):
        decoded = decoded.mean(axis=0, keepdims=True, dtype=np.float32)
    return in_range((np.clip(decoded, -1, 1) + 1) / 2, task)


def in_range(unit: NDArray[np.floating[Any]], task: Task) -> NDArray[np.float32]:
    """Values in [0,1] in the task's range."""
    values: NDArray[np.float32] = (unit * (task.high - task.low) + task.low).astype(np.float32)
    return values
