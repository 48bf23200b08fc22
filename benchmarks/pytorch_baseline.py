"""The PyTorch reference in the forms a user would run it. The only baseline that imports torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.errors import CheckpointError
from export.families import Family
from export.network.checkpoint import Checkpoint, load_checkpoint
from runtime.engine import draw_noise
from runtime.manifest import Preprocess
from runtime.tasks import Task

_NOISE_SEED = 0  # what bundles built without --seed draw


def open_pytorch(
    checkpoint: str,
    stages: dict[str, float],
    *,
    task: str | None = None,
    published: bool = False,
    dtype: str | None = None,
    compile: bool = False,
    torchao: str | None = None,
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Load a checkpoint; the answer predicts RGB uint8 [N,H,W,3] in one pass, as float32 [N,H,W] or
    [N,H,W,C].

    Each prediction empties `stages` and then writes the seconds of each stage into it. `published`
    encodes the prompt for every image and samples the posterior; otherwise the prompt is stored and
    the posterior's mean is taken. `dtype` is a type of torch for autocast. `compile` is for all
    three networks, `torchao` a configuration of it, `task` for checkpoints that do not imply it.

    Raises: CheckpointError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_checkpoint(checkpoint, task=task)
    vae, unet = loaded.vae.to(device), loaded.unet.to(device)
    family, answered = loaded.family, loaded.task
    class_vector, stored_prompt = family.class_labels(), loaded.prompt.to(device)
    if class_vector is not None:
        class_vector = class_vector.to(device)
    encode_prompt = _text_encoder(loaded, device) if published else lambda: stored_prompt
    _quantise([vae, unet], torchao)
    encoder, network, decoder = vae.encode, unet, vae.decode
    if compile:
        encoder, network, decoder = (torch.compile(part) for part in (encoder, network, decoder))
    scaling = vae.config.scaling_factor
    half = torch.autocast(device, getattr(torch, dtype)) if dtype else contextlib.nullcontext()

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        stages.clear()
        with torch.inference_mode(), half:
            with _timed(stages, "text encoder") if published else contextlib.nullcontext():
                prompt = encode_prompt()
            with _timed(stages, "encoder"):
                pixels = np.concatenate([Preprocess().apply(image) for image in images])
                posterior = encoder(torch.from_numpy(pixels).to(device)).latent_dist
                latent = (posterior.sample() if published else posterior.mode()) * scaling
            beside = _beside(family, latent)
            with _timed(stages, "unet"):
                output = network(
                    latent if beside is None else torch.cat([latent, beside], dim=1),
                    family.timestep,
                    encoder_hidden_states=prompt.expand(len(images), -1, -1),
                    class_labels=class_vector,
                ).sample
                predicted = family.latent_factor * output
                if beside is not None:
                    predicted = predicted + family.noise_factor * beside
            with _timed(stages, "decoder"):
                decoded = decoder(predicted / scaling).sample.float()
            return _maps(family, decoded, answered)

    return predict


def _maps(family: Family, decoded: torch.Tensor, task: Task) -> NDArray[np.float32]:
    """The task's values [N,H,W] or [N,H,W,C] of decoded pictures [N,3,H,W]. Lotus's are written out
    here; those of other families are the exported network's own.
    """
    if family.step is None:  # Lotus
        return values_of((decoded / 2 + 0.5).clamp(0, 1), task)
    return np.stack([task.decode(each) for each in family.to_map(decoded, task).cpu().numpy()])


def _quantise(parts: list[torch.nn.Module], configuration: str | None) -> None:
    """Linear layers by torchao, in place, if asked for; it leaves convolutions alone."""
    if configuration is None:
        return
    from torchao import quantization

    for part in parts:
        quantization.quantize_(part, getattr(quantization, configuration)())


def values_of(unit: torch.Tensor, task: Task) -> NDArray[np.float32]:
    """The task's values [N,H,W] or [N,H,W,C] of decoded pictures [N,3,H,W] in [0,1].

    The range is stretched to the task's; a scalar task takes the mean of the three channels.
    """
    stretched = unit * (task.high - task.low) + task.low
    outputs = stretched.unflatten(1, (task.channels, -1)).mean(dim=2).cpu().numpy()
    return np.stack([task.decode(output) for output in outputs])


@contextlib.contextmanager
def _timed(stages: dict[str, float], stage: str) -> Iterator[None]:
    """On a GPU the time between two CUDA events, without what the host does before the first."""
    if torch.cuda.is_available():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        end.synchronize()
        stages[stage] = start.elapsed_time(end) / 1e3
        return
    before = time.perf_counter()
    yield
    stages[stage] = time.perf_counter() - before


def _beside(family: Family, latent: torch.Tensor) -> torch.Tensor | None:
    """What the UNet reads beside latents [N,C,h,w]: zeros, the same noise for each, or nothing."""
    if family.beside_latent is None:
        return None
    if not family.takes_noise:
        return torch.zeros_like(latent)
    noise = torch.from_numpy(draw_noise(_NOISE_SEED, (1, *latent.shape[1:])))
    return noise.expand(len(latent), -1, -1, -1).to(latent)


def _text_encoder(loaded: Checkpoint, device: str) -> Callable[[], Any]:
    """Encodes the empty prompt, as Lotus's published pipeline does for every image. Its weights are
    random for `random/...`. Raises: CheckpointError for other families, whose pipelines differ.
    """
    checkpoint = loaded.id
    if loaded.family.step is not None:
        raise CheckpointError(
            f"only Lotus's pipeline is known as published, and {checkpoint!r} is "
            f"{loaded.family.name}: compare it with the baseline `pytorch`"
        )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    if checkpoint.startswith("random/"):
        # Stable Diffusion 2's text encoder. Source: the released text_encoder/config.json.
        config = CLIPTextConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
        )
        model = CLIPTextModel(config).eval().to(device)
        tokens = torch.tensor([[49406, 49407]], device=device)
    else:
        model = CLIPTextModel.from_pretrained(Path(checkpoint) / "text_encoder").eval().to(device)
        tokenizer = CLIPTokenizer.from_pretrained(Path(checkpoint) / "tokenizer")
        tokens = tokenizer("", padding="do_not_pad", return_tensors="pt").input_ids.to(device)
    return lambda: model(tokens)[0]
