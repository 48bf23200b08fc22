"""The common part of the authors' computations that take a scheduler's step, in PyTorch.

Written from diffusers' own modules and scheduler classes, without anything that the exported
network shares (`single_pass.py`, folds, `one_step.py`), so that a mistake there cannot hide here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, LCMScheduler
from numpy.typing import NDArray

from export.families.reference_parts import decode, encode
from export.network.checkpoint import Checkpoint


def trailing_scheduler(config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler of a config, with trailing timesteps."""
    is_lcm = config.get("_class_name") == "LCMScheduler"
    scheduler: Any = LCMScheduler if is_lcm else DDIMScheduler
    return scheduler.from_config(dict(config), timestep_spacing="trailing")


def decode_one_step(
    checkpoint: Checkpoint,
    rgb: NDArray[np.uint8],
    scheduler: Any,
    *,
    second: NDArray[np.float32] | None = None,
    original: bool = False,
) -> NDArray[np.float32]:
    """RGB uint8 [H,W,3] to the decoded picture [3,H,W] after one step of `scheduler`.

    `second` [1,C,h,w] is the noisy latent, which the UNet reads beside the image latent; None:
    the image latent is taken for it, and the UNet reads that alone. `original` takes the step's
    predicted x0 in place of its sample.

    Raises: CheckpointError when the weights give NaN.
    """
    with torch.inference_mode():
        latent = encode(checkpoint, rgb)
        noisy = latent if second is None else torch.from_numpy(second)
        read = latent if second is None else torch.cat([latent, noisy], dim=1)
        scheduler.set_timesteps(1)
        (timestep,) = scheduler.timesteps
        output = checkpoint.unet(read, timestep, encoder_hidden_states=checkpoint.prompt).sample
        step = scheduler.step(output, timestep, noisy)
        predicted = step.pred_original_sample if original else step.prev_sample
        return decode(checkpoint, predicted)


def zeros_for(checkpoint: Checkpoint, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Zeros of the shape of an image's latent, float32 [1,C,h,w]."""
    config = checkpoint.vae.config
    downscale = 2 ** (len(config.block_out_channels) - 1)
    height, width = rgb.shape[0] // downscale, rgb.shape[1] // downscale
    return np.zeros((1, config.latent_channels, height, width), np.float32)
