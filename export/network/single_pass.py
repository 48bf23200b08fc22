"""The network as one module: image (and noise) in, the finished map out. This is what becomes the
ONNX graph.

Its three children are the stages `encoder`, `unet` and `decoder`; every node of the graph is named
after its stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from export.families import Family
from export.network.checkpoint import Checkpoint, Modules
from runtime.tasks import Task


class SinglePass(nn.Module):
    """A checkpoint with prompt, timestep and class vector as constants, and the posterior's mean in
    place of a sample.

    It takes the checkpoint's modules over, so that folds may rewrite them. `noises` [1,C,h,w] are
    mode G's constant noise, one for each size of latent; without them noise is an input.
    """

    def __init__(self, checkpoint: Checkpoint, noises: Sequence[Tensor] = ()) -> None:
        super().__init__()
        modules = checkpoint.hand_over()
        self.encoder = _Encoder(modules)
        self.unet = _UNet(modules, checkpoint.family, noises)
        self.decoder = _Decoder(modules, checkpoint.family, checkpoint.task)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Image [1,3,H,W] in [-1,1], noise [1,C,H/8,W/8] for mode G, to the task's map
        [1,channels,H,W] in its range; normals are not scaled to unit length.
        """
        prediction: Tensor = self.decoder(self.unet(self.encoder(image), noise))
        return prediction


class _Encoder(nn.Module):
    """Image to the posterior's mean, scaled. A small encoder answers that itself, and its scaling
    factor is 1.
    """

    def __init__(self, modules: Modules) -> None:
        super().__init__()
        small = modules.small_encoder
        vae: Any = modules.vae if small is None else small.network
        self.network = vae.encoder
        self.quant = getattr(vae, "quant_conv", None) or nn.Identity()
        self.channels = vae.config.latent_channels
        self.scaling = vae.config.scaling_factor

    def forward(self, image: Tensor) -> Tensor:
        moments = self.quant(self.network(image))
        mean: Tensor = moments[:, : self.channels]  # the other half is the log-variance
        return mean * self.scaling


class _UNet(nn.Module):
    """Latent (and noise) to the predicted latent, at the family's timestep."""

    prompt: Tensor
    task: Tensor | None
    timestep: Tensor

    def __init__(self, modules: Modules, family: Family, noises: Sequence[Tensor]) -> None:
        super().__init__()
        self.network: Any = modules.unet
        self.factor = family.latent_factor
        self.noises = {tuple(noise.shape[2:]): noise for noise in noises}
        self.register_buffer("prompt", modules.prompt)
        self.register_buffer("task", family.class_labels())
        self.register_buffer("timestep", torch.tensor([family.timestep]))

    def embedding(self) -> Tensor:
        """What timestep and class vector together give every residual block, [1,E]."""
        network, like = self.network, self.prompt
        time: Tensor = network.time_embedding(
            network.get_time_embed(sample=like, timestep=self.timestep)
        )
        if self.task is None:
            return time
        classes: Tensor = network.get_class_embed(sample=like, class_labels=self.task)
        return time + classes

    def forward(self, latent: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None and self.noises:
            noise = self.noises[tuple(latent.shape[2:])]
        if noise is not None:
            latent = torch.cat([latent, noise], dim=1)
        count = len(latent)
        prompt = self.prompt if count == 1 else self.prompt.expand(count, -1, -1)
        output: Tensor = self.network(
            latent, self.timestep, prompt, class_labels=self.task, return_dict=False
        )[0]
        return output if self.factor == 1 else output * self.factor


class _Decoder(nn.Module):
    """Predicted latent to the task's map [N,channels,H,W]."""

    def __init__(self, modules: Modules, family: Family, task: Task) -> None:
        super().__init__()
        small = modules.small_decoder
        vae: Any = modules.vae if small is None else small.network
        self.scaling = vae.config.scaling_factor
        self.quant = getattr(vae, "post_quant_conv", None) or nn.Identity()
        self.network = vae.decoder
        self.family, self.task = family, task

    def forward(self, latent: Tensor) -> Tensor:
        return self.family.to_map(self.network(self.quant(latent / self.scaling)), self.task)
