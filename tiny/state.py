"""The state of a training run: optimiser, moving average, clock; saved whole, restored by the same
command.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

_WARM_UP_STEPS = 100
_AVERAGE_DECAY = 0.998


_SEEN_BY_ADAM = ("conv_in", "conv_out", "time_", "class_", "attn2")
"""Parts of a UNet that Muon leaves alone: its ends, and layers whose input is constant, so that
their gradients have rank one.
"""


class Training:
    """AdamW under a cosine schedule, with a moving average of the weights.

    With `matrix_rate`, Muon learns the matrices inside a UNet at this peak rate (a convolution's
    weight is a matrix of C_out rows). From the same images it learns about twice as fast here. The
    state is one safetensors file: weights, their average and the optimisers' moments, with step and
    core seconds as metadata.
    """

    def __init__(
        self,
        network: nn.Module,
        path: Path,
        *,
        steps: int,
        peak_rate: float,
        matrix_rate: float | None = None,
    ) -> None:
        self.network, self.path, self.steps = network, path, steps
        self.step = 0
        self._before, self._started = 0.0, time.process_time()
        self._weights = dict(network.named_parameters())
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}
        # Views of the same memory, since Muon takes two dimensions.
        self._matrices = {
            name: nn.Parameter(weight.detach().view(len(weight), -1))
            for name, weight in self._weights.items()
            if matrix_rate is not None
            and weight.ndim > 1
            and not any(part in name for part in _SEEN_BY_ADAM)
        }
        others = [weight for name, weight in self._weights.items() if name not in self._matrices]
        adam = torch.optim.AdamW(others, lr=peak_rate, betas=(0.9, 0.99), weight_decay=1e-3)
        self._optimisers: dict[torch.optim.Optimizer, float] = {adam: peak_rate}
        if matrix_rate is not None:
            matrices = self._matrices.values()
            muon = torch.optim.Muon(
                matrices, lr=matrix_rate, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw"
            )
            self._optimisers[muon] = matrix_rate

    @property
    def core_seconds(self) -> float:
        """Processor time of the training, earlier runs included. Wall time says nothing on a shared
        machine.
        """
        return self._before + time.process_time() - self._started

    @property
    def spent(self) -> float:
        """The share of the steps that is done, 1 at the end."""
        return self.step / self.steps

    def apply(self, loss: torch.Tensor) -> None:
        """One optimiser step."""
        warm_up = min(1.0, (self.step + 1) / min(_WARM_UP_STEPS, 0.1 * self.steps))
        share = warm_up * (0.02 + 0.98 * (1 + np.cos(np.pi * self.spent)) / 2)
        for weight in self._weights.values():
            weight.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
        for name, matrix in self._matrices.items():
            gradient = self._weights[name].grad
            matrix.grad = None if gradient is None else gradient.view_as(matrix)
        for optimiser, peak_rate in self._optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = peak_rate * share
            optimiser.step()
        self.step += 1
        decay = min(_AVERAGE_DECAY, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self._average.values()), list(self._weights.values()), 1 - decay
            )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the moving average into the network for the time of the block."""
        current = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._load(self._average)
        try:
            yield
        finally:
            self._load(current)

    def save(self) -> None:
        """Write the state to another file, then rename it: a kill leaves the last complete one."""
        tensors = {f"average/{name}": value.contiguous() for name, value in self._average.items()}
        for name, weight in self._weights.items():
            tensors[f"weight/{name}"] = weight.detach().contiguous()
            for moment, value in self._moments(name).items():
                if moment != "step":
                    tensors[f"{moment}/{name}"] = value.contiguous()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file(
            tensors, partial, {"step": str(self.step), "core_seconds": str(self.core_seconds)}
        )
        partial.replace(self.path)

    def restore(self) -> None:
        """Go on from the saved state, if there is one."""
        if not self.path.exists():
            return
        with safe_open(self.path, framework="pt") as file:
            self.step = int(file.metadata()["step"])
            self._before = float(file.metadata()["core_seconds"])
            self._average = {name: file.get_tensor(f"average/{name}") for name in self._weights}
            self._load({name: file.get_tensor(f"weight/{name}") for name in self._weights})
            for key in file.keys():  # noqa: SIM118 - not a mapping
                moment, _, name = key.partition("/")
                if moment not in ("average", "weight"):
                    self._moments(name)[moment] = file.get_tensor(key)
            for name in self._weights.keys() - self._matrices.keys():
                self._moments(name)["step"] = torch.tensor(float(self.step))
        self._started = time.process_time()

    def _moments(self, name: str) -> dict[str, torch.Tensor]:
        """The optimiser's own tensors of a weight; empty before the first step."""
        adam, *muon = self._optimisers
        state = (
            muon[0].state[self._matrices[name]]
            if name in self._matrices
            else adam.state[self._weights[name]]
        )
        return cast("dict[str, torch.Tensor]", state)

    def _load(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(values[name])
