"""Marigold (arXiv 2312.02145, 2505.09358): a denoiser that is asked once, at its last timestep.

The UNet reads the image latent and noise, and one step of the checkpoint's own scheduler (DDIM or
LCM, trailing timesteps) makes the predicted latent of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.families.family import Family
from export.families.maps import mean_then_clip
from export.families.one_step import SD_SCHEDULE, one_step

if TYPE_CHECKING:
    from export.network.checkpoint import Checkpoint


def _reference(
    checkpoint: Checkpoint, rgb: NDArray[np.uint8], noise: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    from export.families.diffusion_reference import decode_one_step, trailing_scheduler
    from export.families.reference_parts import clipped_mean

    scheduler = trailing_scheduler(checkpoint.family.scheduler)
    decoded = decode_one_step(checkpoint, rgb, scheduler, second=noise)
    return clipped_mean(decoded, checkpoint.task)


# Source of the published ids: the model zoo of the published repository, and diffusers' guide.
MARIGOLD = Family(
    name="marigold",
    about="Marigold, one step from noise",
    mode="g",
    beside_latent="noise",
    step=one_step,
    # Of the kind of v1-1: no signal at the last timestep, and (diffusers' default) a sample of x0.
    random_scheduler={
        **SD_SCHEDULE,
        "_class_name": "DDIMScheduler",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    },
    to_map=mean_then_clip,
    meanings={
        "normal": "surface normal in the camera frame, unit length: x to the right, y up, z "
        "towards the camera"
    },
    known_ids={
        "prs-eth/marigold-v1-0": "depth",
        "prs-eth/marigold-lcm-v1-0": "depth",
        "prs-eth/marigold-depth-v1-0": "depth",
        "prs-eth/marigold-depth-v1-1": "depth",
        "prs-eth/marigold-depth-lcm-v1-0": "depth",
        "prs-eth/marigold-normals-v0-1": "normal",
        "prs-eth/marigold-normals-lcm-v0-1": "normal",
        "prs-eth/marigold-normals-v1-1": "normal",
        "random/marigold": "depth",
    },
    licence="OpenRAIL++-M (that of the published v1-1; the card of each id says its own)",
    remark="one step from one noise: the authors of Marigold take several steps and the median of "
    "an ensemble, and this is coarser than what they publish",
    reference=_reference,
)
