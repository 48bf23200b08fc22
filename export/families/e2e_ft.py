"""Diffusion-E2E-FT (arXiv 2409.11355): Marigold or Stable Diffusion, fine-tuned end to end for one
step from zeros.

The UNet reads the image latent and zeros in place of noise; the predicted latent is the x0 of one
DDIM step (trailing timesteps) by the checkpoint's own scheduler. Depth is stretched to [0,1] over
each picture. Normals are not clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.families.family import Configs, Family
from export.families.maps import mean_then_clip, stretched
from export.families.one_step import SD_SCHEDULE, Step, one_step
from runtime.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from export.network.checkpoint import Checkpoint


def step(scheduler: Mapping[str, Any]) -> Step:
    """The authors take x0 itself, whichever scheduler the weights were trained with."""
    return one_step(scheduler, to_original=True, schedulers=("DDIMScheduler", "DDPMScheduler"))


def to_map(decoded: Tensor, task: Task) -> Tensor:
    """The decoded picture [N,3,H,W] as the task's map: vectors as they are, and a single channel
    clipped, then stretched to [0,1] over each picture.
    """
    if task.channels == decoded.shape[1]:
        return decoded
    return stretched(mean_then_clip(decoded, task))


def _doubts(configs: Configs) -> list[str]:
    """Several steps, or a scheduler for consistency models: that is Marigold."""
    steps = configs.index.get("default_denoising_steps")
    found = [] if steps in (None, 1) else [f"one step (here default_denoising_steps {steps})"]
    name = configs.scheduler.get("_class_name")
    return [*found, *(["a DDIM scheduler (here LCM)"] if name == "LCMScheduler" else [])]


def _reference(
    checkpoint: Checkpoint, rgb: NDArray[np.uint8], noise: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    from export.families.diffusion_reference import decode_one_step, trailing_scheduler, zeros_for
    from export.families.reference_parts import clipped_mean

    decoded = decode_one_step(
        checkpoint,
        rgb,
        trailing_scheduler({**checkpoint.family.scheduler, "_class_name": "DDIMScheduler"}),
        second=zeros_for(checkpoint, rgb),
        original=True,
    )
    if checkpoint.task.channels == len(decoded):
        return decoded
    depth = clipped_mean(decoded, checkpoint.task)
    low, high = depth.min(), depth.max()
    if low == high:
        return np.zeros_like(depth)
    values: NDArray[np.float32] = (depth - low) / (high - low)
    return values


# Source of the published ids: the README of the published repository.
E2E_FT = Family(
    name="diffusion-e2e-ft",
    about="Diffusion-E2E-FT, fine-tuned end to end for one step from zeros",
    mode="d",
    beside_latent="zeros",
    step=step,
    # Stable Diffusion 2's v-prediction; x0 is taken, so that `set_alpha_to_one` does not matter.
    random_scheduler={
        **SD_SCHEDULE,
        "_class_name": "DDIMScheduler",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    },
    to_map=to_map,
    meanings={
        "depth": "affine-invariant depth: metric depth is a*value + b with unknown a > 0 and b; "
        "the nearest pixel of each picture is 0 and the farthest 1",
        "normal": "surface normal in the camera frame, unit length: x to the left, y up, z "
        "towards the camera; colours are 255 - those of Omnidata and Metric3D",
    },
    known_ids={
        "GonzaloMG/marigold-e2e-ft-depth": "depth",
        "GonzaloMG/stable-diffusion-e2e-ft-depth": "depth",
        "GonzaloMG/marigold-e2e-ft-normals": "normal",
        "GonzaloMG/stable-diffusion-e2e-ft-normals": "normal",
        "random/diffusion-e2e-ft": "depth",
    },
    licence="Apache-2.0 (the tag of the published depth weights; see the card for normals)",
    doubts=_doubts,
    reference=_reference,
)
