"""Small Lotus checkpoints with random weights: the released architecture, narrow enough to export
in seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from family_checkpoints import random_vae

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderTiny

    from export.network.single_pass import SinglePass
    from runtime.manifest import Bucket, Manifest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before a test imports ONNX Runtime
os.environ["LOTUS_EDGE_LOOPS"] = "0"  # else a thread loads them in the midst of another test

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared" / "photos"
BUCKET = 64  # pixels; four levels of the VAE and four of the UNet still have a pixel


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' own cache folder, and the null backend; for subprocesses too."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["LOTUS_EDGE_CACHE"] = str(folder)
    os.environ["LOTUS_EDGE_NULL"] = "1"
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick files first: a file's tests stay together (`--dist loadfile`)."""
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: (item.path in slow, "slow" in item.keywords))


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (20, 30)) -> Path:
    """Save noise of this seed as `path`, with the folders above it."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(path)
    return path


def save_checkpoint(
    folder: Path, *, mode: str = "d", text_encoder: bool = False, seed: int = 0
) -> Path:
    """A diffusers folder of Lotus's class: SD2-style UNet, KL autoencoder, prompt tensor or CLIP
    text encoder.

    Groups of 4 to 8 channels, as in the released network. With one channel in a group, a flat part
    of a picture leaves the norm nothing but rounding to amplify: PyTorch in fp32 is then up to 2e-3
    off its own float64 result.
    """
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels={"d": 4, "g": 8}[mode],
        out_channels=4,
        block_out_channels=[32, 64, 64, 64],
        layers_per_block=2,
        attention_head_dim=[1, 2, 2, 2],
        cross_attention_dim=32,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=4,
        norm_num_groups=8,
    )
    vae = random_vae([32, 32, 64, 64], groups=8)
    # Default initialisation answers almost a constant; louder weights and biases give every path
    # something to do.
    for parameter in (*unet.parameters(), *vae.parameters()):
        parameter.data += 0.02 * torch.randn_like(parameter)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    if text_encoder:
        _save_text_encoder(folder)
    else:
        save_file(
            {"prompt_embedding": torch.randn(1, 5, 32)}, folder / "prompt_embedding.safetensors"
        )
    return folder


def _save_text_encoder(folder: Path) -> None:
    """A CLIP text encoder and a tokenizer with a vocabulary of a few tokens, laid out as the
    released ones are.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=6,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=4,
        eos_token_id=5,
        pad_token_id=0,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    vocabulary = {"!": 0, "a": 1, "a</w>": 2, "!</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!",
        "model_max_length": 77,
    }
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))


def build_bundle(checkpoint: str | Path, output: Path, **settings: object) -> Path:
    """Build with the given BuildSettings fields; progress goes to stderr, which pytest shows on
    failure.
    """
    from export.pipeline import build
    from export.progress import Progress
    from export.settings import BuildSettings

    with Progress(sys.stderr):
        return build(BuildSettings(checkpoint=str(checkpoint), output=output, **settings))


Once = Callable[..., Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once("name", make, *first, **more)`: the folder that `make(*first, folder, **more)` makes,
    once for all processes of a run, and that no test may change.
    """
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    (shared / "begun").mkdir(parents=True, exist_ok=True)

    def made(name: str, make: Callable[..., object], *first: object, **more: object) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / name).exists():
                make(*first, shared / "begun" / name, **more)
                (shared / "begun" / name).rename(shared / name)
        return shared / name

    return made


@pytest.fixture(scope="session")
def checkpoint_d(once: Once) -> Path:
    """Mode D, with a text encoder."""
    return once("lotus-d", save_checkpoint, mode="d", text_encoder=True)


@pytest.fixture(scope="session")
def checkpoint_g(once: Once) -> Path:
    """Mode G, with a stored prompt tensor."""
    return once("lotus-g", save_checkpoint, mode="g")


SMALL = {"task": "depth", "resolutions": ((BUCKET, BUCKET),)}
TWO_SIZES = SMALL | {"resolutions": ((BUCKET, BUCKET), (64, 104))}
BF16 = {"task": "depth", "resolutions": ((64, 64), (128, 128)), "precision": "bf16"}
INT8 = SMALL | {"precision": "int8", "calibration_images": 2, "budget": (10.0,)}


@pytest.fixture(scope="session")
def bundle_d(checkpoint_d: Path, once: Once) -> Path:
    """Depth, two buckets, ONNX Runtime."""
    return once("d", build_bundle, checkpoint_d, **TWO_SIZES)


@pytest.fixture(scope="session")
def bundle_openvino(checkpoint_d: Path, once: Once) -> Path:
    """The same for OpenVINO."""
    return once("openvino", build_bundle, checkpoint_d, target="openvino", **TWO_SIZES)


@pytest.fixture(scope="session")
def bundle_bf16(checkpoint_d: Path, once: Once) -> Path:
    """Depth for OpenVINO in bf16, 64x64 and 128x128."""
    return once("bf16", build_bundle, checkpoint_d, target="openvino", **BF16)


@pytest.fixture(scope="session")
def bundle_g(checkpoint_g: Path, once: Once) -> Path:
    """Normals, mode G, one bucket."""
    return once("g", build_bundle, checkpoint_g, seed=7, **(SMALL | {"task": "normal"}))


@pytest.fixture(scope="session")
def bundle_int8(checkpoint_d: Path, once: Once) -> Path:
    """Depth, one bucket, two calibration images, and every layer in int8."""
    return once("int8", build_bundle, checkpoint_d, **INT8)


@pytest.fixture(scope="session")
def bundle_int8_openvino(checkpoint_d: Path, once: Once) -> Path:
    """The same for OpenVINO."""
    return once("int8-openvino", build_bundle, checkpoint_d, target="openvino", **INT8)


@pytest.fixture(scope="session")
def folded(checkpoint_d: Path) -> SinglePass:
    """The network that `bundle_int8` is traced from. Tests that change it take a copy."""
    from export.folds import apply_folds
    from export.network.checkpoint import load_checkpoint
    from export.network.single_pass import SinglePass
    from export.targets import TARGETS

    module = SinglePass(load_checkpoint(str(checkpoint_d), task="depth"))
    apply_folds(module, TARGETS["onnxruntime"].recipe("int8"))
    return module


@pytest.fixture(scope="session")
def small_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an AutoencoderTiny."""
    folder = tmp_path_factory.mktemp("small") / "narrow"
    new_tiny_vae().save_pretrained(folder)
    return folder


def new_tiny_vae(seed: int = 1, **changes: object) -> AutoencoderTiny:
    """A narrow TAESD whose every weight and bias has something to do."""
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    settings: dict[str, object] = {
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "num_encoder_blocks": (1, 1, 1, 1),
        "num_decoder_blocks": (1, 1, 1, 1),
    }
    network = AutoencoderTiny(**(settings | changes))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def image_inputs(count: int = 2) -> list[tuple[torch.Tensor]]:
    """Random images as the network takes them: float32 [1,3,BUCKET,BUCKET] in [-1,1]."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(1, 3, BUCKET, BUCKET, generator=generator) * 2 - 1,) for _ in range(count)]


def write_null_bundle(
    folder: Path,
    *,
    mode: str = "d",
    task: str | tuple[str, ...] = "disparity",
    backend: str = "null",
    **changes: object,
) -> Path:
    """A bundle for the null backend: real manifest, checksums and golden, and a graph that is no
    graph. No torch. `task` may be several. For another `backend` the graphs of the buckets lie in
    `folder` already.
    """
    from runtime.manifest import (
        Bucket,
        Checkpoint,
        Golden,
        Latent,
        Manifest,
        Source,
        describe_file,
        required_features,
    )

    folder.mkdir(parents=True, exist_ok=True)
    tasks = [task] if isinstance(task, str) else [*task]
    bucket = Bucket(height=64, width=96, graph="model-64x96.onnx")
    nowhere = Checkpoint(id="none", sha256="0" * 64)
    fields: dict[str, object] = {
        "name": "null",
        "checkpoint": nowhere,
        "mode": mode,
        "tasks": tasks,
        "outputs": dict.fromkeys(tasks, "none"),
        "precision": "fp32",
        "target": backend,
        "opset": 23 if backend == "null" else 20,
        "buckets": [bucket, Bucket(height=96, width=64, graph="model-64x96.onnx")],
        "latent": Latent(channels=4, downscale=8, scaling_factor=0.18215),
        "noise_seed": 3,
        "fixed_noise": False,
        "folds": [],
        "golden": Golden(file="golden.npz", tolerance=1e-4, mean_tolerance=1e-5, measured=[]),
        "files": [],
        "tools": {},
        "command": "none",
        "created": "2026-01-01T00:00:00+00:00",
        "beside": {name: Source(checkpoint=nowhere) for name in tasks[1:]},
    }
    manifest = Manifest(**(fields | changes))
    np.savez(folder / "golden.npz", **_golden(folder, manifest, backend))
    graphs = sorted({one.graph for one in manifest.buckets})
    if backend == "null":
        for graph in graphs:
            (folder / graph).write_bytes(b"not a graph " * 100)
    files = [describe_file(folder, name) for name in ("golden.npz", *graphs)]
    requires = required_features(manifest)
    dataclasses.replace(manifest, files=files, requires=requires).save(folder)
    return folder


def _golden(folder: Path, manifest: Manifest, backend: str) -> dict[str, np.ndarray]:
    """The backend's own answers to random pictures, as golden.npz has them."""
    from runtime.backends import open_session
    from runtime.engine import draw_noise

    arrays: dict[str, np.ndarray] = {}
    for one in manifest.buckets:
        shapes = manifest.input_shapes(one)
        shape = (one.batch, one.height, one.width, 3)
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        feeds = {"image": manifest.preprocess.apply(image)}
        if "noise" in shapes:
            feeds["noise"] = arrays[f"noise_{one}"] = draw_noise(0, shapes["noise"])
        with open_session(backend, folder, manifest, one) as session:
            answer = session(feeds)
        arrays[f"image_{one}"] = image if one.batch > 1 else image[0]
        arrays |= {
            f"{name}_{one}": array if one.answers > 1 else array[0]
            for name, array in answer.items()
        }
    return arrays


def read_png16(path: Path) -> np.ndarray:
    """The values of one of our 16-bit PNGs, [H,W] or [H,W,3]; of RGB Pillow keeps the high bytes.

    By hand; no row is filtered (PNG specification, 9.2).
    """
    content = path.read_bytes()
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    channels = {0: 1, 2: 3}[content[25]]
    start = content.index(b"IDAT")
    length = int.from_bytes(content[start - 4 : start], "big")
    data = np.frombuffer(zlib.decompress(content[start + 4 : start + 4 + length]), np.uint8)
    rows = data.reshape(height, -1)
    assert (rows[:, 0] == 0).all()
    values = rows[:, 1:].copy().view(">u2").reshape(height, width, channels).astype(int)
    return values[..., 0] if channels == 1 else values


def bucket(batch: int = 1, height: int = 64, width: int = 96, *, noises: int = 1) -> Bucket:
    """One of a null bundle, with a graph of its own."""
    from runtime.manifest import Bucket

    graph = f"model-{batch}x{height}x{width}x{noises}.onnx"
    return Bucket(height=height, width=width, graph=graph, batch=batch, noises=noises)


def pictures(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """RGB uint8 [H,W,3], each another one."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def null_bundle(tmp_path: Path) -> Path:
    """A writable null bundle: disparity, mode D, buckets 64x96 and 96x64."""
    return write_null_bundle(tmp_path / "null")


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """RGB uint8 [H,W,3]: a rendered scene of the project's own, 256 x 256."""
    from PIL import Image

    return np.array(Image.open(ROOT / "tiny" / "samples" / "room.png").convert("RGB"))
