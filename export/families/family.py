"""What a family is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from export.network.checkpoint import Checkpoint

    Reference = Callable[
        [Checkpoint, NDArray[np.uint8], NDArray[np.float32] | None], NDArray[np.float32]
    ]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the single pass of one kind of checkpoint computes around its networks.

    `mode` is "d" (the same answer for the same image) or "g" (takes noise).
    `timestep` is the constant one of the UNet's call.
    `class_switch` is what the UNet's class embedding reads, by its sines and cosines; None where
    the UNet has no such embedding.
    `beside_latent` is what stands beside the image latent in the UNet's input: "noise" or None.
    `latent_factor` times the UNet's output is the predicted latent.
    `to_map` turns the decoded picture [N,3,H,W] into the task's map [N,channels,H,W].
    `known_ids` gives the task of published and embedded checkpoints by their id.
    `licence` is that of the published weights, in words.
    `reference` is the authors' computation in PyTorch: checkpoint, RGB uint8 [H,W,3] and noise
    [1,C,h,w] (or None) to the map [channels,H,W].
    """

    name: str
    mode: str
    timestep: int
    class_switch: tuple[float, ...] | None
    beside_latent: str | None
    latent_factor: float = 1.0
    to_map: Callable[[Tensor, Task], Tensor]
    known_ids: Mapping[str, str]
    licence: str
    reference: Reference

    @property
    def takes_noise(self) -> bool:
        """Whether the answer depends on noise."""
        return self.beside_latent == "noise"

    def class_labels(self) -> Tensor | None:
        """`class_labels` for the UNet, float32 [1,2n]: sines, then cosines of the switch."""
        if self.class_switch is None:
            return None
        import torch

        switch = torch.tensor([self.class_switch])
        return torch.cat([switch.sin(), switch.cos()], dim=-1)

    def mismatches(self, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> list[str]:
        """What the configs lack to be of this family, in words; nothing where they fit."""
        latent = vae.get("latent_channels", 4)
        beside = 0 if self.beside_latent is None else latent
        classes = None if self.class_switch is None else "projection"
        width = None if self.class_switch is None else 2 * len(self.class_switch)
        wanted = {
            "channels into the UNet": (unet.get("in_channels", 4), latent + beside),
            "channels out of the UNet": (unet.get("out_channels", 4), latent),
            "class embedding": (unet.get("class_embed_type"), classes),
            "width of the class vector": (
                unet.get("projection_class_embeddings_input_dim"),
                width,
            ),
        }
        return [
            f"{fact} {right!r} (here {value!r})"
            for fact, (value, right) in wanted.items()
            if value != right
        ]
