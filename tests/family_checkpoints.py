"""What diffusers' own pipelines make of small random checkpoints of other families than Lotus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.random_checkpoints import SCHEDULERS, random_vae, save_family

if TYPE_CHECKING:
    from export.network.checkpoint import Checkpoint

__all__ = ["SCHEDULERS", "ask_pipeline", "random_vae", "save_family"]


def ask_pipeline(
    checkpoint: Checkpoint, rgb: np.ndarray, latents: np.ndarray, *, spacing: str = "trailing"
) -> np.ndarray:
    """diffusers' Marigold pipeline of the checkpoint's task: one step, no ensemble, native size;
    RGB uint8 [H,W,3] to float32 [H,W] or [H,W,3].
    """
    import torch
    from diffusers import (
        DDIMScheduler,
        LCMScheduler,
        MarigoldDepthPipeline,
        MarigoldNormalsPipeline,
    )

    config = dict(checkpoint.family.scheduler)
    kind: Any = LCMScheduler if config["_class_name"] == "LCMScheduler" else DDIMScheduler
    normals = checkpoint.task.name == "normal"
    pipeline: Any = MarigoldNormalsPipeline if normals else MarigoldDepthPipeline
    pipe = pipeline(
        unet=checkpoint.unet,
        vae=checkpoint.vae,
        scheduler=kind.from_config(config, timestep_spacing=spacing),
        text_encoder=None,
        tokenizer=None,
        prediction_type="normals" if normals else "depth",
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.empty_text_embedding = checkpoint.prompt
    image = torch.from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    with torch.no_grad():
        answer = pipe(
            image,
            num_inference_steps=1,
            ensemble_size=1,
            processing_resolution=0,
            match_input_resolution=True,
            latents=torch.from_numpy(latents),
        ).prediction
    return np.asarray(answer[0] if normals else answer[0, :, :, 0], np.float32)
