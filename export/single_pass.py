"""The network as one module: image (and noise) in, the finished map out. This is what becomes the ONNX graph.

Its three children are the stages `encoder`, `unet` and `decoder`; every node of the graph is named after its stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.checkpoint import TIMESTEP, Checkpoint, task_embedding
from runtime.tasks import TASKS, Task


class SinglePass(nn.Module):
    """Lotus with prompt, timestep and task as constants and the posterior's mean in place of a sample.

    `noises` [1,C,h,w] are mode G's constant noise, one for each size of latent; without them noise is an input.
    """

    def __init__(self, checkpoint: Checkpoint, noises: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.encoder = _Encoder(checkpoint)
        self.unet = _UNet(checkpoint, noises)
        self.decoder = _Decoder(checkpoint, TASKS[checkpoint.task])

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Image [1,3,H,W] in [-1,1], noise [1,C,H/8,W/8] for mode G, to [1,1,H,W] in [0,1] or normals [1,3,H,W]."""
        return self.decoder(self.unet(self.encoder(image), noise))


class _Encoder(nn.Module):
    """Image to the posterior's mean, scaled. A small encoder answers that itself, and its scaling factor is 1."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        vae = checkpoint.encoding_vae
        self.network = vae.encoder
        self.quant = getattr(vae, "quant_conv", None) or nn.Identity()
        self.channels = vae.config.latent_channels
        self.scaling = vae.config.scaling_factor

    def forward(self, image: Tensor) -> Tensor:
        moments = self.quant(self.network(image))
        return moments[:, : self.channels] * self.scaling  # the other half is the log-variance


class _UNet(nn.Module):
    """Latent (and noise) to the predicted latent, at t = 999."""

    prompt: Tensor
    task: Tensor
    timestep: Tensor

    def __init__(self, checkpoint: Checkpoint, noises: Sequence[Tensor]) -> None:
        super().__init__()
        self.network = checkpoint.unet
        self.noises = {tuple(noise.shape[2:]): noise for noise in noises}
        self.register_buffer("prompt", checkpoint.prompt)
        self.register_buffer("task", task_embedding())
        self.register_buffer("timestep", torch.tensor([TIMESTEP]))

    def embedding(self) -> Tensor:
        """What timestep and task switch together give every residual block, [1,E]."""
        network, like = self.network, self.task
        time = network.time_embedding(network.get_time_embed(sample=like, timestep=self.timestep))
        return time + network.get_class_embed(sample=like, class_labels=self.task)

    def forward(self, latent: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None and self.noises:
            noise = self.noises[tuple(latent.shape[2:])]
        if noise is not None:
            latent = torch.cat([latent, noise], dim=1)
        prompt = self.prompt if len(latent) == 1 else self.prompt.expand(len(latent), -1, -1)
        return self.network(latent, self.timestep, prompt, class_labels=self.task, return_dict=False)[0]


class _Decoder(nn.Module):
    """Predicted latent to the task's map.

    The reference clamps y/2 + 0.5 to [0,1], then takes the mean over channels (or, for normals, maps back to [-1,1]).
    Clamping y to [-1,1] first is the same function and leaves the affine map one channel, or none, to do.
    """

    def __init__(self, checkpoint: Checkpoint, task: Task) -> None:
        super().__init__()
        vae = checkpoint.decoding_vae
        self.scaling = vae.config.scaling_factor
        self.quant = getattr(vae, "post_quant_conv", None) or nn.Identity()
        self.network = vae.decoder
        self.task = task

    def forward(self, latent: Tensor) -> Tensor:
        bounded = self.network(self.quant(latent / self.scaling)).clamp(-1, 1)
        return bounded if self.task.channels == 3 else bounded.mean(dim=1, keepdim=True) / 2 + 0.5
