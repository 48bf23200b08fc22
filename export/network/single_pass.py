"""The network as one module: image (and noise) in, the finished maps out. This is what becomes the
ONNX graph.

Its three children are the stages `encoder`, `unet` and `decoder`; every node of the graph is named
after its stage. Several checkpoints that share their autoencoder make one network: the image is
encoded once, each UNet predicts its latent, and one decoder makes a map of each.
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
    """Checkpoints with prompt, timestep and class vector as constants, and the posterior's mean in
    place of a sample.

    It takes the checkpoints' modules over, so that folds may rewrite them; the autoencoder is the
    first one's. `noises` [1,C,h,w] are mode G's constant noise, one for each size of latent;
    without them noise is an input. `batched` decodes the latents of several tasks in one pass, as
    a batch, not in turn.

    The UNet of one task is the child `unet`; of several, task by task, `unet.<task>`.
    """

    def __init__(
        self, *checkpoints: Checkpoint, noises: Sequence[Tensor] = (), batched: bool = False
    ) -> None:
        super().__init__()
        modules = [checkpoint.hand_over() for checkpoint in checkpoints]
        unets = {
            checkpoint.task.name: _UNet(its, checkpoint.family, noises)
            for checkpoint, its in zip(checkpoints, modules, strict=True)
        }
        self.tasks = tuple(unets)
        self.encoder = _Encoder(modules[0])
        self.unet = nn.ModuleDict(unets) if len(unets) > 1 else unets[self.tasks[0]]
        outputs = [(checkpoint.family, checkpoint.task) for checkpoint in checkpoints]
        self.decoder = _Decoder(modules[0], outputs, batched)

    @property
    def unets(self) -> dict[str, _UNet]:
        """Each task's UNet, by what the names of its layers begin with."""
        if isinstance(self.unet, _UNet):
            return {"unet/": self.unet}
        return {f"unet/{task}.": self.unet[task] for task in self.tasks}  # type: ignore[misc]

    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        """Image [N,3,H,W] in [-1,1], noise [N,C,H/8,W/8] for mode G, to each task's map
        [N,channels,H,W] in its range; normals are not scaled to unit length.

        One image with several noises is encoded once, and gives a map for each noise; of a task
        that takes none they are the same.
        """
        encoded = self.encoder(image)
        latents = [unet(encoded, noise) for unet in self.unets.values()]
        maps: tuple[Tensor, ...] = self.decoder(latents)
        if noise is None or len(noise) == len(image):
            return maps
        return tuple(each.expand(len(noise), -1, -1, -1) for each in maps)


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
    """Latent (and noise) to the predicted latent, at the family's timestep.

    `offsets` are what constant noise adds to the predicted latent, by the latter's size.
    """

    prompt: Tensor
    task: Tensor | None
    timestep: Tensor

    def __init__(self, modules: Modules, family: Family, noises: Sequence[Tensor]) -> None:
        super().__init__()
        self.network: Any = modules.unet
        self.factor, self.noise_factor = family.latent_factor, family.noise_factor
        self.takes_noise = family.takes_noise
        self.reads_zeros = family.beside_latent == "zeros"
        self.offsets: dict[tuple[int, ...], Tensor] = {}
        self.noises = {tuple(noise.shape[2:]): noise for noise in noises if self.takes_noise}
        self.register_buffer("prompt", modules.prompt)
        self.register_buffer("task", family.class_labels())
        self.register_buffer("timestep", torch.tensor([family.timestep]))

    @property
    def adds_noise(self) -> bool:
        """Whether noise is added behind the network's last convolution."""
        return self.noise_factor != 0 or bool(self.offsets)

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
        if self.noises:
            noise = self.noises[tuple(latent.shape[2:])].expand(len(latent), -1, -1, -1)
        noise = noise if self.takes_noise else None
        if noise is not None and len(noise) != len(latent):  # one image, several noises
            latent = latent.expand(len(noise), -1, -1, -1)
        count = len(latent)
        second = torch.zeros_like(latent) if self.reads_zeros else noise
        if second is not None:
            latent = torch.cat([latent, second], dim=1)
        prompt = self.prompt if count == 1 else self.prompt.expand(count, -1, -1)
        output: Tensor = self.network(
            latent, self.timestep, prompt, class_labels=self.task, return_dict=False
        )[0]
        output = output if self.factor == 1 else output * self.factor
        if noise is not None and self.noise_factor != 0:
            return output + noise * self.noise_factor
        return output + self.offsets[tuple(output.shape[2:])] if self.offsets else output


class _Decoder(nn.Module):
    """Predicted latents to the tasks' maps [N,channels,H,W]."""

    def __init__(
        self, modules: Modules, outputs: Sequence[tuple[Family, Task]], batched: bool
    ) -> None:
        super().__init__()
        small = modules.small_decoder
        vae: Any = modules.vae if small is None else small.network
        self.scaling = vae.config.scaling_factor
        self.quant = getattr(vae, "post_quant_conv", None) or nn.Identity()
        self.network = vae.decoder
        self.outputs, self.batched = tuple(outputs), batched and len(outputs) > 1

    def forward(
        self, latents: Sequence[Tensor], numbers: Sequence[int] | None = None
    ) -> tuple[Tensor, ...]:
        """The maps of all tasks, or of those with these `numbers`, whose latents are given."""
        outputs = self.outputs if numbers is None else [self.outputs[one] for one in numbers]
        pictures: Sequence[Tensor]
        if self.batched and len(latents) > 1:
            pictures = self._decode(torch.cat(list(latents))).split([len(each) for each in latents])
        else:
            pictures = [self._decode(latent) for latent in latents]
        return tuple(
            family.to_map(picture, task)
            for (family, task), picture in zip(outputs, pictures, strict=True)
        )

    def _decode(self, latent: Tensor) -> Tensor:
        picture: Tensor = self.network(self.quant(latent / self.scaling))
        return picture
