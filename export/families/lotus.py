"""Lotus (arXiv 2409.18124): the UNet predicts the clean latent directly, at t = 999.

Mode D (regression) reads the image latent alone, mode G (generation) noise beside it. A class
vector switches between the annotation and a reconstruction of the image; here it always asks for
the annotation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.families.family import Family
from export.families.maps import in_range
from runtime.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from export.network.checkpoint import Checkpoint

TIMESTEP = 999
ANNOTATION = (1.0, 0.0)  # the class switch; (0, 1) asks for a reconstruction of the image


def to_map(decoded: Tensor, task: Task) -> Tensor:
    """The decoded picture [N,3,H,W] as the task's map [N,channels,H,W].

    The reference clamps y/2 + 0.5 to [0,1], then takes the mean over channels where the task has
    one. Clamping y to [-1,1] first is the same function, and leaves the change of range to one
    channel; where the task's range is [-1,1] there is none.
    """
    bounded = decoded.clamp(-1, 1)
    if task.channels < bounded.shape[1]:
        bounded = bounded.mean(dim=1, keepdim=True)
    return in_range(bounded, task)


def _reference(
    checkpoint: Checkpoint, rgb: NDArray[np.uint8], noise: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    from export.families.lotus_reference import predict_reference

    return predict_reference(checkpoint, rgb, noise)


# Source of the published ids: the model zoo of the published repository.
LOTUS_D = Family(
    name="lotus-d",
    about="Lotus, regression: the UNet reads the image latent alone",
    mode="d",
    timestep=TIMESTEP,
    class_switch=ANNOTATION,
    beside_latent=None,
    to_map=to_map,
    known_ids={
        "jingheya/lotus-depth-d-v1-0": "depth",
        "jingheya/lotus-depth-d-v2-0-disparity": "disparity",
        "jingheya/lotus-normal-d-v1-0": "normal",
        "jingheya/lotus-normal-d-v1-1": "normal",
        "tiny/disparity-d": "disparity",
        "tiny/depth-d": "depth",
        "tiny/normal-d": "normal",
        "random/lotus-d": "disparity",
    },
    licence="Apache-2.0 (the tag of the published weights)",
    reference=_reference,
)
LOTUS_G = Family(
    name="lotus-g",
    about="Lotus, generation: the UNet reads noise beside the image latent",
    mode="g",
    timestep=TIMESTEP,
    class_switch=ANNOTATION,
    beside_latent="noise",
    to_map=to_map,
    known_ids={
        "jingheya/lotus-depth-g-v1-0": "depth",
        "jingheya/lotus-depth-g-v2-0-disparity": "disparity",
        "jingheya/lotus-depth-g-v2-1-disparity": "disparity",
        "jingheya/lotus-normal-g-v1-0": "normal",
        "jingheya/lotus-normal-g-v1-1": "normal",
        "tiny/disparity-g": "disparity",
        "tiny/depth-g": "depth",
        "tiny/normal-g": "normal",
        "random/lotus-g": "disparity",
    },
    licence="Apache-2.0 (the tag of the published weights)",
    reference=_reference,
)
