"""GenPercept (arXiv 2403.06090): a UNet of Stable Diffusion 2.1 that reads the image latent alone,
at t = 1, and answers the negative of the clean latent.

Its scheduler has no signal left at any timestep (beta is 1): the x0 of a v-prediction is -o.
The UNet is published alone; autoencoder and text encoder are those of Stable Diffusion 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.families.family import Configs, Family
from export.families.maps import mean_then_clip
from export.families.one_step import Step, one_step

if TYPE_CHECKING:
    from export.network.checkpoint import Checkpoint

# Source: the authors' repository, hf_configs/scheduler_beta_1.0_1.0. It goes with their weights
# whatever scheduler lies beside them.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 1.0,
    "beta_end": 1.0,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def step(scheduler: Mapping[str, Any]) -> Step:
    """The authors' own scheduler, and not that of the parts of Stable Diffusion."""
    return one_step(SCHEDULER, spacing="leading", to_original=True)


def _doubts(configs: Configs) -> list[str]:
    """A plain Stable Diffusion has the same networks."""
    start = configs.scheduler.get("beta_start")
    return [] if start == 1 else [f"a scheduler with beta_start 1 (here {start!r})"]


def _reference(
    checkpoint: Checkpoint, rgb: NDArray[np.uint8], noise: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    from diffusers import DDIMScheduler

    from export.families.diffusion_reference import decode_one_step
    from export.families.reference_parts import clipped_mean

    scheduler = DDIMScheduler.from_config(SCHEDULER)
    decoded = decode_one_step(checkpoint, rgb, scheduler, original=True)
    return clipped_mean(decoded, checkpoint.task)


# Source of the published ids: the README of the published repository.
GENPERCEPT = Family(
    name="genpercept",
    about="GenPercept, a UNet of Stable Diffusion 2.1 that reads the image latent alone",
    mode="d",
    step=step,
    random_scheduler=SCHEDULER,
    to_map=mean_then_clip,
    known_ids={
        "guangkaixu/genpercept-depth": "depth",
        "guangkaixu/genpercept-disparity": "disparity",
        "guangkaixu/genpercept-normal": "normal",
        "guangkaixu/genpercept-matting": "matting",
        "guangkaixu/genpercept-dis": "segmentation",
        "random/genpercept": "depth",
    },
    meanings={
        "normal": "surface normal in the camera frame, unit length, in the axes of the training "
        "data, which the authors do not state"
    },
    unet_alone=True,
    doubts=_doubts,
    licence="BSD-2-Clause for academic, non-commercial use (the authors' README)",
    reference=_reference,
)
