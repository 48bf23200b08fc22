"""The networks of the tiny Lotus, and the diffusers folder that they are stored in.

The layout is Stable Diffusion 2's, with small widths. Everything in a released Lotus checkpoint
that an exporter or a loader meets is here too, except the text encoder: the folder holds the
constant that it would have given.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin, UNet2DConditionModel
from safetensors.torch import load_file, save_file

PROMPT_CHANNELS = 32
TIMESTEP = 999
MODES = {"d": 4, "g": 8}
"""Channels that the UNet takes: the image latent alone, or with as many of noise behind it."""
_SWITCH = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
PREDICT, RECONSTRUCT = torch.cat([_SWITCH.sin(), _SWITCH.cos()], dim=1)
"""Lotus's task embeddings [4]: the dense map, and the image itself (the paper's detail
preserver).
"""


@dataclass(kw_only=True)
class TinyLotus:
    """A checkpoint in memory. Images and maps are float32 [N, 3, H, W] in [-1, 1], latents
    [N, 4, H/8, W/8].
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    prompt: torch.Tensor  # [1, 2, C]

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled posterior means, fp32."""
        return self.vae.encode(images).latent_dist.mode().float() * self.vae.config.scaling_factor

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images or maps of scaled latents, not clamped."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample

    def predict_latents(
        self, latents: torch.Tensor, noise: torch.Tensor | None = None, task: torch.Tensor = PREDICT
    ) -> torch.Tensor:
        """The one pass of the UNet: `noise` for mode G only, `task` [4] or [N, 4] of PREDICT and
        RECONSTRUCT.
        """
        if noise is not None:
            latents = torch.cat([latents, noise], dim=1)
        count = len(latents)
        task = task.to(latents).expand(count, 4)
        return self.unet(
            latents, TIMESTEP, self.prompt.expand(count, -1, -1), class_labels=task
        ).sample

    def __call__(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Maps in [0, 1] of images: Lotus's whole path, before the mean over channels that depth
        and disparity take.
        """
        decoded = self.decode(self.predict_latents(self.encode(images), noise))
        return (decoded / 2 + 0.5).clamp(0, 1)


def new_vae(seed: int) -> AutoencoderKL:
    """An untrained autoencoder, 0.86 M parameters.

    Its posterior starts narrow (deviation 0.05): from a deviation of 1, two of the four channels
    collapsed, and colour with them.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=256,
    )
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -6  # log-variance
    return vae


def new_unet(seed: int, mode: str, tasks: int = 1) -> UNet2DConditionModel:
    """An untrained UNet, 4.7 M parameters; `mode` is a key of MODES, `tasks` the number of maps
    that it predicts.

    No attention on the widest maps, where it would take half of the time.
    """
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=MODES[mode],
        out_channels=4 * tasks,
        down_block_types=(
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 96, 96),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=[2, 4, 4, 4],  # heads, as in SD2's config: diffusers kept the misnomer
        cross_attention_dim=PROMPT_CHANNELS,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=4,
    )


def new_prompt() -> torch.Tensor:
    """The constant that stands for the encoded empty prompt, [1, 2, C], exact in fp16: its start
    and its end.
    """
    values = np.random.default_rng(np.random.Philox(77)).standard_normal((1, 2, PROMPT_CHANNELS))
    return torch.from_numpy(values.astype(np.float16).astype(np.float32))


def save_checkpoint(model: TinyLotus, folder: Path) -> None:
    """Write the diffusers folder, weights in fp16. The autoencoder, which all checkpoints share,
    goes beside it.
    """
    save_network(model.unet, folder / "unet")
    save_network(model.vae, folder.parent / "vae")
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    save_file(
        {"prompt_embedding": model.prompt.half().contiguous()},
        folder / "prompt_embedding.safetensors",
    )
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def save_network(network: ModelMixin, folder: Path) -> None:
    """Write a network's config and its weights in fp16, contiguous, as safetensors."""
    copy.deepcopy(network).half().to(memory_format=torch.contiguous_format).save_pretrained(folder)
    config = folder / "config.json"
    # Without the folder that it was once loaded from.
    kept = {
        key: value
        for key, value in json.loads(config.read_text()).items()
        if key != "_name_or_path"
    }
    config.write_text(json.dumps(kept, indent=2) + "\n")


def load_checkpoint(folder: Path) -> TinyLotus:
    """Read a diffusers folder into fp32 networks, ready for inference."""
    return TinyLotus(
        vae=AutoencoderKL.from_pretrained(folder.parent, subfolder="vae").float().eval(),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float().eval(),
        prompt=load_file(folder / "prompt_embedding.safetensors")["prompt_embedding"].float(),
    )
