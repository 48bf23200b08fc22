"""The state of a training run: optimiser, moving average, clock; saved whole, restored by the same command."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

_WARM_UP_STEPS = 100
_AVERAGE_DECAY = 0.998


class Training:
    """AdamW under a cosine schedule, with a moving average of the weights.

    The state is one safetensors file: weights, their average and Adam's two moments; step and core seconds as metadata.
    """

    def __init__(self, network: nn.Module, path: Path, *, steps: int, peak_rate: float) -> None:
        self.network, self.path, self.steps, self.peak_rate = network, path, steps, peak_rate
        self.step = 0
        self._before, self._started = 0.0, time.process_time()
        self._weights = dict(network.named_parameters())
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._optimiser = torch.optim.AdamW(self._weights.values(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=1e-3)

    @property
    def core_seconds(self) -> float:
        """Processor time of the training, that of earlier runs included; on a shared machine wall time says nothing."""
        return self._before + time.process_time() - self._started

    @property
    def spent(self) -> float:
        """The share of the steps that is done, 1 at the end."""
        return self.step / self.steps

    def apply(self, loss: torch.Tensor) -> None:
        """One optimiser step."""
        warm_up = min(1.0, (self.step + 1) / _WARM_UP_STEPS)
        rate = self.peak_rate * warm_up * (0.02 + 0.98 * (1 + np.cos(np.pi * self.spent)) / 2)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
        self._optimiser.step()
        self.step += 1
        decay = min(_AVERAGE_DECAY, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.values()), list(self._weights.values()), 1 - decay)

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
        """Write the state beside its place, then rename, so that a kill leaves the last whole one."""
        tensors = {f"average/{name}": value.contiguous() for name, value in self._average.items()}
        for name, weight in self._weights.items():
            moments = self._optimiser.state[weight]
            tensors[f"weight/{name}"] = weight.detach().contiguous()
            tensors[f"first/{name}"] = moments["exp_avg"].contiguous()
            tensors[f"second/{name}"] = moments["exp_avg_sq"].contiguous()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, {"step": str(self.step), "core_seconds": str(self.core_seconds)})
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
            for name, weight in self._weights.items():
                self._optimiser.state[weight] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": file.get_tensor(f"first/{name}"),
                    "exp_avg_sq": file.get_tensor(f"second/{name}"),
                }
        self._started = time.process_time()

    def _load(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(values[name])
