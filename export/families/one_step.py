"""One step of a diffusion scheduler, as its config says it: a timestep and two coefficients.

A single-step model is a denoiser that is asked once, at the last timestep t. With o the UNet's
output, n what stands beside the image latent, and a the scheduler's cumulative alpha at t:

    v_prediction   x0 = sqrt(a) n - sqrt(1 - a) o            e = sqrt(a) o + sqrt(1 - a) n
    epsilon        x0 = (n - sqrt(1 - a) o) / sqrt(a)        e = o
    sample         x0 = o                                    e = (n - sqrt(a) o) / sqrt(1 - a)

    DDIM           latent = sqrt(p) x0 + sqrt(1 - p) e       p: the alpha before the first step
    LCM            latent = c_out x0 + c_skip n

All of it is linear: latent = noise_factor n + latent_factor o. Nothing here needs PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import CheckpointError

SCHEDULER_FILE = "scheduler/scheduler_config.json"
SD_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
"""What the schedulers of Stable Diffusion's descendants have in common."""
_SIGMA_DATA = 0.5  # of LCM's boundary condition. Source: diffusers' LCMScheduler
_CLIPS = {"DDIMScheduler": True, "DDPMScheduler": True, "LCMScheduler": False}
"""The schedulers that are read, and whether they clip the latent where the config is silent."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """latent = noise_factor * (second half of the UNet's input) + latent_factor * output."""

    timestep: int
    noise_factor: float
    latent_factor: float


def one_step(
    config: Mapping[str, Any],
    *,
    spacing: str = "trailing",
    to_original: bool = False,
    schedulers: tuple[str, ...] = ("DDIMScheduler", "LCMScheduler"),
) -> Step:
    """The only step of a scheduler with this config, whatever spacing the config names.

    `spacing` is "trailing" (from the last timestep) or "leading" (from `steps_offset`).
    `to_original` takes the predicted x0 itself and not the step's sample, which differs from it
    where the first alpha is not set to one. `schedulers` are the classes that the rule is for.

    Raises: CheckpointError, naming the fact in the config that the rule cannot take.
    """
    _check(config, schedulers)
    alphas = _cumulative_alphas(config)
    timestep = _timestep(config, len(alphas), spacing)
    alpha = float(alphas[timestep])
    kind = config.get("prediction_type", "epsilon")
    original, noise = _predicted(kind, alpha)
    if to_original:
        return _step(timestep, original)
    if config["_class_name"] == "LCMScheduler":
        scaled = timestep * config.get("timestep_scaling", 10.0)
        total = scaled**2 + _SIGMA_DATA**2
        skip, out = _SIGMA_DATA**2 / total, scaled / math.sqrt(total)
        return _step(timestep, (out * original[0] + skip, out * original[1]))
    before = 1.0 if config.get("set_alpha_to_one", True) else float(alphas[0])
    if before == 1:
        return _step(timestep, original)
    if noise is None:
        raise _refused("predicts the sample with no noise left to predict (alpha is 1)")
    first, second = math.sqrt(before), math.sqrt(1 - before)
    mixed = [first * x + second * e for x, e in zip(original, noise, strict=True)]
    return _step(timestep, (mixed[0], mixed[1]))


def _step(timestep: int, factors: tuple[float, float]) -> Step:
    return Step(timestep=timestep, noise_factor=factors[0], latent_factor=factors[1])


def _refused(fact: str) -> CheckpointError:
    return CheckpointError(f"{SCHEDULER_FILE}: the scheduler {fact}")


def _check(config: Mapping[str, Any], schedulers: tuple[str, ...]) -> None:
    """Refuse what makes the step anything but linear. Raises: CheckpointError."""
    name = config.get("_class_name")
    if not config:
        raise CheckpointError(
            f"there is no {SCHEDULER_FILE}, from which the step's coefficients are computed: copy "
            "it from the checkpoint"
        )
    if name not in schedulers:
        raise _refused(f"is {name}, and one of {', '.join(schedulers)} is needed")
    if config.get("thresholding", False):
        raise _refused("thresholds the latent (`thresholding`), which is not linear")
    if config.get("clip_sample", _CLIPS[name]):
        raise _refused("clips the latent (`clip_sample`), which is not linear")


def _timestep(config: Mapping[str, Any], count: int, spacing: str) -> int:
    if spacing == "leading":
        return int(config.get("steps_offset", 0))
    if config["_class_name"] == "LCMScheduler":  # the last of its own coarse timesteps
        steps = int(config.get("original_inference_steps", 50))
        return steps * (count // steps) - 1
    return count - 1


def _predicted(kind: str, alpha: float) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """x0 and noise as factors of (n, o); the noise is None where nothing predicts it."""
    signal, rest = math.sqrt(alpha), math.sqrt(1 - alpha)
    if kind == "v_prediction":
        return (signal, -rest), (rest, signal)
    if kind == "sample":
        return (0.0, 1.0), (1 / rest, -signal / rest) if rest else None
    if kind != "epsilon":
        raise _refused(f"has the unknown prediction_type {kind!r}")
    if signal == 0:
        raise _refused(
            "has prediction_type 'epsilon' and no signal at its last timestep "
            "(`rescale_betas_zero_snr`): one step cannot be taken"
        )
    return (1 / signal, -rest / signal), (0.0, 1.0)


def _cumulative_alphas(config: Mapping[str, Any]) -> NDArray[np.float64]:
    """The share of signal at each timestep, float64 [num_train_timesteps]."""
    count = config.get("num_train_timesteps", 1000)
    if not isinstance(count, int) or count < 1:
        raise _refused(f"has num_train_timesteps {count!r}, which must be a positive number")
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    schedule = config.get("beta_schedule", "linear")
    if config["_class_name"] == "LCMScheduler":  # whose defaults are those of Stable Diffusion
        start, end = config.get("beta_start", 0.00085), config.get("beta_end", 0.012)
        schedule = config.get("beta_schedule", "scaled_linear")
    if config.get("trained_betas") is not None:
        betas = np.array(config["trained_betas"], np.float64)
    elif schedule == "linear":
        betas = np.linspace(start, end, count)
    elif schedule == "scaled_linear":
        betas = np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    else:
        raise _refused(f"has the beta_schedule {schedule!r}; known: linear, scaled_linear")
    alphas = np.cumprod(1 - betas)
    if config.get("rescale_betas_zero_snr", False):
        root = np.sqrt(alphas)
        alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return np.asarray(alphas, np.float64)
