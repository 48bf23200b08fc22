"""What is compared: the PyTorch reference in the forms a user would run it, plain ONNX exports, and our bundles."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import ROOT
from export.errors import BuildError

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""RGB uint8 [N,H,W,3] to the N maps as they leave the network's post-processing, float32.

PyTorch takes the N images in one pass; a bundle, whose graph is for one image, takes them one after the other.
"""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """`backend` None is PyTorch with `options` of `_pytorch`; else a bundle built with `options` of BuildSettings."""

    meaning: str
    backend: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


# Random weights have no accuracy to keep, and one image does for the ranges: what is compared is speed.
_ALL_INT8 = {"precision": "int8", "calibration-images": 1, "budget": 1.0}
CONTENDERS = {
    "pytorch": Contender(meaning="PyTorch fp32, prompt cached, posterior mean: the reference"),
    "pytorch-authors": Contender(
        meaning="PyTorch fp32 as published: text encoder for each image, posterior sample", options={"published": True}
    ),
    "pytorch-bf16": Contender(meaning="PyTorch, autocast bf16, prompt cached", options={"dtype": "bfloat16"}),
    "pytorch-fp16": Contender(meaning="PyTorch, autocast fp16, prompt cached", options={"dtype": "float16"}),
    "pytorch-compile": Contender(meaning="PyTorch fp32, torch.compile", options={"compile": True}),
    "plain-onnxruntime": Contender(
        meaning="plain ONNX export (opset 20), ONNX Runtime fp32",
        backend="onnxruntime",
        options={"target": "onnxruntime", "folds": False, "opset": 20},
    ),
    "plain-openvino": Contender(
        meaning="plain ONNX export (opset 20), OpenVINO fp32",
        backend="openvino",
        options={"target": "openvino", "folds": False, "opset": 20},
    ),
    "onnxruntime": Contender(
        meaning="lotus-edge, ONNX Runtime fp32", backend="onnxruntime", options={"target": "onnxruntime"}
    ),
    "openvino": Contender(meaning="lotus-edge, OpenVINO fp32", backend="openvino", options={"target": "openvino"}),
    "openvino-bf16": Contender(
        meaning="lotus-edge, OpenVINO bf16", backend="openvino", options={"target": "openvino", "precision": "bf16"}
    ),
    "onnxruntime-int8": Contender(
        meaning="lotus-edge, ONNX Runtime int8 (every layer that can; fp32 elsewhere)",
        backend="onnxruntime",
        options={"target": "onnxruntime", **_ALL_INT8},
    ),
    "openvino-int8": Contender(
        meaning="lotus-edge, OpenVINO int8 (every layer that can; bf16 elsewhere)",
        backend="openvino",
        options={"target": "openvino", **_ALL_INT8},
    ),
    "openvino-taesd": Contender(
        meaning="lotus-edge, OpenVINO fp32, autoencoder of TAESD's size (another function)",
        backend="openvino",
        options={"target": "openvino", "vae": "random/taesd"},
    ),
    "openvino-bf16-taesd": Contender(
        meaning="lotus-edge, OpenVINO bf16, autoencoder of TAESD's size (another function)",
        backend="openvino",
        options={"target": "openvino", "precision": "bf16", "vae": "random/taesd"},
    ),
    "openvino-int8-taesd": Contender(
        meaning="lotus-edge, OpenVINO int8, autoencoder of TAESD's size (another function)",
        backend="openvino",
        options={"target": "openvino", "vae": "random/taesd", **_ALL_INT8},
    ),
    "onnxruntime-cuda": Contender(
        meaning="lotus-edge, ONNX Runtime CUDA fp32", backend="onnxruntime-cuda", options={"target": "onnxruntime"}
    ),
    "tensorrt": Contender(meaning="lotus-edge, TensorRT fp32", backend="tensorrt", options={"target": "tensorrt"}),
    "tensorrt-fp16": Contender(
        meaning="lotus-edge, TensorRT fp16", backend="tensorrt", options={"target": "tensorrt", "precision": "fp16"}
    ),
    "tensorrt-int8": Contender(
        meaning="lotus-edge, TensorRT int8 (every layer that can; fp16 elsewhere)",
        backend="tensorrt",
        options={"target": "tensorrt", **_ALL_INT8},
    ),
    "tensorrt-rtx": Contender(
        meaning="lotus-edge, TensorRT-RTX fp32", backend="tensorrt-rtx", options={"target": "tensorrt-rtx"}
    ),
    "tensorrt-rtx-fp16": Contender(
        meaning="lotus-edge, TensorRT-RTX fp16",
        backend="tensorrt-rtx",
        options={"target": "tensorrt-rtx", "precision": "fp16"},
    ),
}
BASELINE = "pytorch"
_NOISE_SEED = 0  # what bundles built without --seed draw


def bundle_path(name: str, checkpoint: str, resolution: str, folder: Path) -> Path | None:
    """Where a contender's bundle lies; contenders with the same settings share it. None for PyTorch."""
    contender = CONTENDERS[name]
    if contender.backend is None:
        return None
    settings = "-".join(f"{key}={value}" for key, value in sorted(contender.options.items()))
    return folder / f"bench-{checkpoint}-{resolution}-{settings}".replace("/", "-")


def built(name: str, checkpoint: str, resolution: str, folder: Path) -> Path | None:
    """The contender's bundle, built now by a process of its own where it is not there yet; None for PyTorch.

    Raises: BuildError.
    """
    bundle = bundle_path(name, checkpoint, resolution, folder)
    if bundle is None or bundle.exists():
        return bundle
    options = CONTENDERS[name].options
    command = [sys.executable, "export/build_engine.py", checkpoint, "--resolution", resolution]
    command += [f"--{key}={value}" for key, value in options.items() if key != "folds"]
    command += [] if options.get("folds", True) else ["--no-folds"]
    if subprocess.run([*command, "--output", str(bundle)], cwd=ROOT, stdout=subprocess.DEVNULL).returncode != 0:
        raise BuildError(f"the bundle of {name} could not be built")
    return bundle


@contextlib.contextmanager
def opened(name: str, checkpoint: str, bundle: Path | None, stages: dict[str, float]) -> Iterator[Predict]:
    """The contender, loaded. PyTorch adds the seconds of each stage to `stages`, which a prediction starts anew."""
    contender = CONTENDERS[name]
    if bundle is None or contender.backend is None:
        yield _pytorch(checkpoint, stages, **contender.options)
        return
    from runtime import LotusEngine

    with LotusEngine(bundle, contender.backend) as engine:
        yield lambda images: np.stack([engine(image, resize=None).values for image in images])


def _pytorch(
    checkpoint: str,
    stages: dict[str, float],
    *,
    published: bool = False,
    dtype: str | None = None,
    compile: bool = False,
) -> Predict:
    import torch

    from export.checkpoint import TIMESTEP, load_checkpoint, task_embedding
    from runtime.engine import draw_noise, unit_vectors
    from runtime.manifest import Preprocess

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_checkpoint(checkpoint)
    vae, unet, task = loaded.vae.to(device), loaded.unet.to(device), task_embedding().to(device)
    prompt, encode_prompt = loaded.prompt.to(device), _text_encoder(checkpoint, device) if published else None
    encoder, network, decoder = vae.encode, unet, vae.decode
    if compile:
        encoder, network, decoder = (torch.compile(part) for part in (encoder, network, decoder))
    scaling = vae.config.scaling_factor
    half = torch.autocast(device, getattr(torch, dtype)) if dtype else contextlib.nullcontext()

    @contextlib.contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if device == "cuda":
            torch.cuda.synchronize()
        stages[stage] = time.perf_counter() - start

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        stages.clear()
        count = len(images)
        with torch.inference_mode(), half:
            text = prompt
            if encode_prompt is not None:
                with timed("text encoder"):
                    text = encode_prompt()
            with timed("encoder"):
                pixels = np.concatenate([Preprocess().apply(image) for image in images])
                posterior = encoder(torch.from_numpy(pixels).to(device)).latent_dist
                latent = (posterior.sample() if published else posterior.mode()) * scaling
            if loaded.mode == "g":
                noise = torch.from_numpy(draw_noise(_NOISE_SEED, (1, *latent.shape[1:])))
                latent = torch.cat([latent, noise.expand(count, -1, -1, -1).to(latent)], dim=1)
            with timed("unet"):
                text = text.expand(count, -1, -1)
                predicted = network(latent, TIMESTEP, encoder_hidden_states=text, class_labels=task).sample
            with timed("decoder"):
                unit = (decoder(predicted / scaling).sample.float() / 2 + 0.5).clamp(0, 1)
            if loaded.task == "normal":
                return unit_vectors((unit * 2 - 1).permute(0, 2, 3, 1).cpu().numpy())
            return unit.mean(dim=1).cpu().numpy()

    return predict


def _text_encoder(checkpoint: str, device: str) -> Callable[[], Any]:
    """Encodes the empty prompt, as the published pipeline does for every image; random weights for `random/...`."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    if checkpoint.startswith("random/"):
        # Stable Diffusion 2's text encoder. Source: the released text_encoder/config.json.
        config = CLIPTextConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
        )
        model, tokens = CLIPTextModel(config).eval().to(device), torch.tensor([[49406, 49407]], device=device)
    else:
        model = CLIPTextModel.from_pretrained(Path(checkpoint) / "text_encoder").eval().to(device)
        tokenizer = CLIPTokenizer.from_pretrained(Path(checkpoint) / "tokenizer")
        tokens = tokenizer("", padding="do_not_pad", return_tensors="pt").input_ids.to(device)
    return lambda: model(tokens)[0]
