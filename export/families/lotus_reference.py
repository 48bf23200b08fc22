"""The PyTorch reference: what Lotus computes, in the order its authors compute it, with the
posterior's mean.

Written from diffusers' own modules, without anything that the exported network shares
(`single_pass.py`, folds), so that a mistake there cannot hide here.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from export.families.reference_parts import decode, encode, in_range
from export.network.checkpoint import Checkpoint


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
        latent = encode(checkpoint, rgb)
        if noise is not None:
            latent = torch.cat([latent, torch.from_numpy(noise)], dim=1)
        predicted = checkpoint.unet(
            latent,
            family.timestep,
            encoder_hidden_states=checkpoint.prompt,
            class_labels=family.class_labels(),
        ).sample
        decoded = decode(checkpoint, predicted)
    unit = np.clip(decoded / 2 + 0.5, 0, 1)
    if task.channels < len(unit):
        unit = unit.mean(axis=0, keepdims=True, dtype=np.float32)
    return in_range(unit, task)
