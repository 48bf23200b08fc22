"""Small random checkpoints of other families than Lotus, for `benchmarks.replay` and the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.families.one_step import SD_SCHEDULE

SCHEDULERS: dict[str, dict[str, Any]] = {
    "v1-0": {
        **SD_SCHEDULE,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
    },
    "v1-1": {
        **SD_SCHEDULE,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": True,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    },
    "v1-1, another last alpha": {
        **SD_SCHEDULE,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    },
    "epsilon": {
        **SD_SCHEDULE,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        # A signal that one step can still find: with 0.0047 of it the step is 15 times the noise.
        "beta_start": 0.0001,
        "beta_end": 0.002,
    },
    "sample": {**SD_SCHEDULE, "prediction_type": "sample", "set_alpha_to_one": False},
    "lcm": {**SD_SCHEDULE, "prediction_type": "v_prediction", "_class": "LCMScheduler"},
    "e2e": {
        **SD_SCHEDULE,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": True,
        "timestep_spacing": "trailing",
    },
    "genpercept": {
        **SD_SCHEDULE,
        "beta_start": 1.0,
        "beta_end": 1.0,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
    },
    "e2e, another last alpha": {
        **SD_SCHEDULE,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "timestep_spacing": "trailing",
    },
}


def random_vae(widths: list[int], groups: int) -> Any:
    """An AutoencoderKL of these widths with random weights, and as many groups a norm."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=0.18215,
        norm_num_groups=groups,
    )


def save_family(
    folder: Path,
    scheduler: str | None,
    *,
    channels: int = 8,
    index: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """A diffusers folder: UNet without class embedding, autoencoder, stored prompt, scheduler of
    that name in SCHEDULERS.
    """
    import torch
    from diffusers import DDIMScheduler, LCMScheduler, UNet2DConditionModel
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=[32, 64],
        layers_per_block=1,
        attention_head_dim=[1, 2],
        cross_attention_dim=32,
        use_linear_projection=True,
        norm_num_groups=8,
    )
    vae = random_vae([16, 16, 32, 32], groups=4)
    for parameter in (*unet.parameters(), *vae.parameters()):
        parameter.data += 0.02 * torch.randn_like(parameter)
    # The decoder of random weights answers next to nothing: louder, until maps use their range.
    vae.decoder.conv_out.weight.data *= 3
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    save_file({"prompt_embedding": torch.randn(1, 2, 32)}, folder / "prompt_embedding.safetensors")
    if scheduler is not None:
        settings = dict(SCHEDULERS[scheduler])
        kind: Any = LCMScheduler if settings.pop("_class", "") else DDIMScheduler
        kind(**settings).save_pretrained(folder / "scheduler")
    if index is not None:
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder
