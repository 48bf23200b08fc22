"""What a family is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.families.one_step import Step
from runtime.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from export.network.checkpoint import Checkpoint

    Reference = Callable[
        [Checkpoint, NDArray[np.uint8], NDArray[np.float32] | None], NDArray[np.float32]
    ]


@dataclass(frozen=True, kw_only=True)
class Configs:
    """What the files of a checkpoint say, as JSON objects; an empty one where there is no file.

    `unet`, `vae` and `scheduler` are those of the modules, `index` is model_index.json, `names`
    are the files and folders beside it.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()


def no_doubts(configs: Configs) -> list[str]:
    """Whatever has the right networks is of the family."""
    return []


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the single pass of one kind of checkpoint computes around its networks.

    `about` says in a line what it is, for people who have to choose.
    `mode` is "d" (the same answer for the same image) or "g" (takes noise).
    `timestep` is the constant one of the UNet's call.
    `class_switch` is what the UNet's class embedding reads, by its sines and cosines; None where
    the UNet has no such embedding.
    `beside_latent` is what stands beside the image latent in the UNet's input: "noise", "zeros" or
    None.
    The predicted latent is `latent_factor` times the UNet's output, and `noise_factor` times what
    stands beside the image latent.
    `step` computes timestep and factors from the config of the checkpoint's scheduler (see
    `derived`); None where they are constants. `scheduler` is that config.
    `random_scheduler` is the one of `random/NAME`, the family at full size with random weights.
    `to_map` turns the decoded picture [N,3,H,W] into the task's map [N,channels,H,W].
    `meanings` are words for the meaning of tasks, where a family's maps differ from others'.
    `known_ids` gives the task of published and embedded checkpoints by their id.
    `unet_alone` says that these are a UNet, and the rest comes from elsewhere.
    `doubts` says, in words, what speaks against the family beside the shapes of its networks; it
    is not asked where the family was named.
    `licence` is that of the published weights, in words. `remark` is what a user should know.
    `reference` is the authors' computation in PyTorch: checkpoint, RGB uint8 [H,W,3] and noise
    [1,C,h,w] (or None) to the map [channels,H,W].
    """

    name: str
    about: str
    mode: str
    timestep: int = -1
    class_switch: tuple[float, ...] | None = None
    beside_latent: str | None = None
    latent_factor: float = 1.0
    noise_factor: float = 0.0
    step: Callable[[Mapping[str, Any]], Step] | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    random_scheduler: Mapping[str, Any] = field(default_factory=dict)
    to_map: Callable[[Tensor, Task], Tensor]
    meanings: Mapping[str, str] = field(default_factory=dict)
    known_ids: Mapping[str, str]
    unet_alone: bool = False
    doubts: Callable[[Configs], list[str]] = no_doubts
    licence: str
    remark: str | None = None
    reference: Reference

    @property
    def takes_noise(self) -> bool:
        """Whether the answer depends on noise."""
        return self.beside_latent == "noise"

    def derived(self, scheduler: Mapping[str, Any]) -> Family:
        """The family with the timestep and the factors of a checkpoint's own scheduler.

        Raises: CheckpointError where the family has no rule for it.
        """
        if self.step is None:
            return self
        step = self.step(scheduler)
        return dataclasses.replace(
            self,
            timestep=step.timestep,
            latent_factor=step.latent_factor,
            noise_factor=step.noise_factor if self.takes_noise else 0.0,
            scheduler=dict(scheduler),
        )

    def class_labels(self) -> Tensor | None:
        """`class_labels` for the UNet, float32 [1,2n]: sines, then cosines of the switch."""
        if self.class_switch is None:
            return None
        import torch

        switch = torch.tensor([self.class_switch])
        return torch.cat([switch.sin(), switch.cos()], dim=-1)

    def mismatches(self, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> list[str]:
        """What the configs lack to be of this family, in words; nothing where they fit."""
        here = {"in_channels": 4, "out_channels": 4, **unet}
        return [
            f"{_IN_WORDS[key]} {right!r} (here {here.get(key)!r})"
            for key, right in self.unet_config(vae.get("latent_channels", 4)).items()
            if here.get(key) != right
        ]

    def unet_config(self, channels: int) -> dict[str, Any]:
        """What the config of the family's UNet says of its ends, for latents of these channels."""
        switch = self.class_switch
        return {
            "in_channels": channels if self.beside_latent is None else 2 * channels,
            "out_channels": channels,
            "class_embed_type": None if switch is None else "projection",
            "projection_class_embeddings_input_dim": None if switch is None else 2 * len(switch),
        }


_IN_WORDS = {
    "in_channels": "channels into the UNet",
    "out_channels": "channels out of the UNet",
    "class_embed_type": "class embedding",
    "projection_class_embeddings_input_dim": "width of the class vector",
}
