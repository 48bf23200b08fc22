"""Load a Lotus checkpoint: find it, read mode and task, encode the empty prompt once, forget the text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from export.errors import CheckpointError
from runtime.tasks import TASKS

PROMPT_FILE = "prompt_embedding.safetensors"
TIMESTEP = 999
TINY = Path(__file__).resolve().parents[1] / "tiny" / "checkpoints"

# The task cannot be read from the weights. Source of the ids: the model zoo of the published repository.
KNOWN_TASKS = {
    "jingheya/lotus-depth-g-v1-0": "depth",
    "jingheya/lotus-depth-d-v1-0": "depth",
    "jingheya/lotus-depth-g-v2-0-disparity": "disparity",
    "jingheya/lotus-depth-g-v2-1-disparity": "disparity",
    "jingheya/lotus-depth-d-v2-0-disparity": "disparity",
    "jingheya/lotus-normal-g-v1-0": "normal",
    "jingheya/lotus-normal-g-v1-1": "normal",
    "jingheya/lotus-normal-d-v1-0": "normal",
    "jingheya/lotus-normal-d-v1-1": "normal",
    "tiny/disparity-d": "disparity",
    "tiny/disparity-g": "disparity",
    "tiny/depth-d": "depth",
    "tiny/depth-g": "depth",
    "tiny/normal-d": "normal",
    "tiny/normal-g": "normal",
    "random/lotus-d": "disparity",
    "random/lotus-g": "disparity",
}

# Stable Diffusion 2 base, as Lotus changes it (in_channels, class embedding). Source: the released config.json files.
_UNET_CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 4,
}
_VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "sample_size": 512,
}
_RANDOM_IN_CHANNELS = {"random/lotus-d": 4, "random/lotus-g": 8}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a name may stand for: `words` for a user, the hub's `files`, and the one that marks an embedded folder.

    `use` is the rest of a command line that takes a folder of it, `others` are the names that need no network.
    """

    words: str
    files: tuple[str, ...]
    marker: str
    use: str
    others: tuple[str, ...]


LOTUS = Kind(
    words="diffusers folder (with unet/ and vae/), a hub id such as jingheya/lotus-depth-d-v2-0-disparity",
    files=(
        *("*.json", "*.txt", "unet/*.safetensors", "vae/*.safetensors", "text_encoder/*.safetensors"),
        PROMPT_FILE,
    ),
    marker="unet/config.json",
    use="./{folder} --task {task}",
    others=tuple(sorted(name for name in KNOWN_TASKS if "jingheya" not in name)),
)


@dataclass(frozen=True, kw_only=True)
class SmallVae:
    """A distilled autoencoder in fp32 that stands in for one half of a checkpoint's own, or for both."""

    id: str
    network: AutoencoderTiny

    def sha256(self, half: str) -> str:
        """SHA-256 over the names, shapes and values of its "encoder" or its "decoder"."""
        return _sha256(getattr(self.network, half).state_dict())


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded Lotus: fp32 modules in eval mode, and the constants of its single step.

    `prompt` is float32 [1,N,C]: the empty prompt as the text encoder sees it. `mode` is "d" or "g". `vae` is its own
    autoencoder; `small_encoder` and `small_decoder` stand in for the halves of it, where they are given.
    """

    id: str
    task: str
    mode: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    prompt: torch.Tensor
    small_encoder: SmallVae | None = None
    small_decoder: SmallVae | None = None

    @property
    def encoding_vae(self) -> AutoencoderKL | AutoencoderTiny:
        """The autoencoder whose encoder reads the image."""
        return self.vae if self.small_encoder is None else self.small_encoder.network

    @property
    def decoding_vae(self) -> AutoencoderKL | AutoencoderTiny:
        """The autoencoder whose decoder writes the map."""
        return self.vae if self.small_decoder is None else self.small_decoder.network

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along each edge."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def sha256(self) -> str:
        """SHA-256 over the names, shapes and fp32 values of the checkpoint's own weights."""
        tensors = {f"unet.{name}": value for name, value in self.unet.state_dict().items()}
        tensors |= {f"vae.{name}": value for name, value in self.vae.state_dict().items()}
        return _sha256(tensors | {"prompt": self.prompt})


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy())
    return digest.hexdigest()


def task_embedding() -> torch.Tensor:
    """`class_labels` that ask for the annotation: [sin 1, sin 0, cos 1, cos 0], float32 [1,4]."""
    switch = torch.tensor([[1.0, 0.0]])
    return torch.cat([switch.sin(), switch.cos()], dim=-1)


def load_checkpoint(
    name: str, *, task: str | None = None, seed: int = 0, progress: Callable[[str], None] = lambda line: None
) -> Checkpoint:
    """Load a local diffusers folder, a hub id, `tiny/...` (embedded) or `random/...` (seeded weights, full size).

    Raises: CheckpointError.
    """
    task = _resolve_task(name, task)
    if name in _RANDOM_IN_CHANNELS:
        progress(f"drawing the weights of {name} with seed {seed}")
        unet, vae, prompt = _random(_RANDOM_IN_CHANNELS[name], seed)
    else:
        folder = find_folder(name, LOTUS, progress)
        progress(f"loading {name}")
        unet = load_network(UNet2DConditionModel, folder / "unet")
        family = folder.resolve().parent  # may hold one autoencoder for all its checkpoints
        shared = not (folder / "vae").is_dir() and (family / "vae").is_dir()
        vae = load_network(AutoencoderKL, (family if shared else folder) / "vae")
        prompt = _load_prompt(folder)
    mode = _read_mode(unet, vae, prompt, name)
    return Checkpoint(
        id=name,
        task=task,
        mode=mode,
        unet=unet.eval().requires_grad_(False),
        vae=vae.eval().requires_grad_(False),
        prompt=prompt,
    )


def _resolve_task(name: str, task: str | None) -> str:
    implied = KNOWN_TASKS.get(name)
    if task is None and implied is None:
        raise CheckpointError(
            f"the task of {name!r} cannot be read from its weights; pass --task with one of {sorted(TASKS)}"
        )
    if task is not None and implied not in (None, task) and not name.startswith("random/"):
        raise CheckpointError(f"{name!r} is known to predict {implied}, but --task {task} was asked")
    found = task or implied
    if found not in TASKS:
        raise CheckpointError(f"unknown task {found!r}; known: {sorted(TASKS)}")
    return found


def find_folder(name: str, kind: Kind, progress: Callable[[str], None]) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded (safetensors only). Raises: CheckpointError."""
    if name.startswith("tiny/"):
        folder = TINY / name.removeprefix("tiny/")
        if not folder.is_dir():
            there = sorted(f"tiny/{folder.name}" for folder in TINY.glob("*") if (folder / kind.marker).is_file())
            raise CheckpointError(f"no embedded checkpoint {name!r}; there is {there}")
        return folder
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.startswith("random/"):
        known = [other for other in kind.others if other.startswith("random/")]
        raise CheckpointError(f"unknown {name!r}; known: {known}")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"no folder {name!r}. Pass a {kind.words}, or one of {list(kind.others)}")
    return _download(name, kind, progress)


def _download(name: str, kind: Kind, progress: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download

    progress(f"downloading {name} (or reading it from the local cache)")
    try:
        return Path(snapshot_download(name, allow_patterns=list(kind.files), etag_timeout=5))
    # The hub's client raises OSError, ValueError, httpx and hub types of its own for one and the same missing network.
    except Exception as error:
        raise CheckpointError(
            f"cannot download {name!r}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
            f"Without network: on a machine that has it, run `hf download {name} --local-dir {Path(name).name}`, copy "
            f"the folder here and pass its path: `python export/build_engine.py "
            f"{kind.use.format(folder=Path(name).name, task=KNOWN_TASKS.get(name, 'TASK'))}`"
        ) from error


def load_network(network: Any, folder: Path) -> Any:
    """One module's folder as fp32; every tensor must be there. safetensors only, never pickle. Raises: CheckpointError.

    `network` is its diffusers class.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise CheckpointError(
            f"{folder} needs config.json and *.safetensors (a diffusers folder); found "
            f"{sorted(f.name for f in folder.glob('*')) or 'nothing'}. Pickled .bin weights are not read."
        )
    variant = "fp16" if all(".fp16." in path.name for path in weights) else None
    try:
        module, report = network.from_pretrained(
            folder,
            variant=variant,
            torch_dtype=torch.float32,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            local_files_only=True,
        )
    # diffusers, safetensors and json each raise their own types for a damaged folder.
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"cannot load {folder}: {error}") from error
    if report["missing_keys"]:
        raise CheckpointError(
            f"{folder} lacks {len(report['missing_keys'])} tensors of its architecture, the first is "
            f"{sorted(report['missing_keys'])[0]!r}: the weights are incomplete or of another model"
        )
    return module


def _load_prompt(folder: Path) -> torch.Tensor:
    """The empty prompt, float32 [1,N,C]: from `prompt_embedding.safetensors`, or from tokenizer and text encoder.

    The published pipeline does not pad the empty prompt (`padding="do_not_pad"`): N is 2, start and end token, not 77.
    """
    stored = folder / PROMPT_FILE
    if stored.is_file():
        try:
            return load_file(stored)["prompt_embedding"].float()
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{stored} must hold the tensor 'prompt_embedding': {error}") from error
    if not ((folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()):
        raise CheckpointError(f"{folder} has neither {PROMPT_FILE} nor text_encoder/ and tokenizer/")
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32, use_safetensors=True, local_files_only=True
        ).eval()
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"cannot load the text encoder of {folder}: {error}") from error
    tokens = tokenizer("", padding="do_not_pad", return_tensors="pt")
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    with torch.inference_mode():
        return encoder(tokens.input_ids, attention_mask=mask)[0].clone()


def _random(in_channels: int, seed: int) -> tuple[UNet2DConditionModel, AutoencoderKL, torch.Tensor]:
    """The full-size architecture with PyTorch's default initialisation; latency and memory do not depend on weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(in_channels=in_channels, **_UNET_CONFIG)
        vae = AutoencoderKL(**_VAE_CONFIG)
        return unet, vae, torch.randn(1, 2, _UNET_CONFIG["cross_attention_dim"])


def _read_mode(unet: UNet2DConditionModel, vae: AutoencoderKL, prompt: torch.Tensor, name: str) -> str:
    """ "d" or "g" from the UNet's input channels; refuses what is not a Lotus."""
    channels, latent = unet.config.in_channels, vae.config.latent_channels
    modes = {latent: "d", 2 * latent: "g"}
    if channels not in modes or unet.config.out_channels != latent:
        raise CheckpointError(
            f"{name!r} is no Lotus: its UNet maps {channels} to {unet.config.out_channels} channels; with {latent} "
            f"latent channels Lotus has {latent} (mode D) or {2 * latent} (mode G) in and {latent} out"
        )
    if unet.config.class_embed_type != "projection" or unet.config.projection_class_embeddings_input_dim != 4:
        raise CheckpointError(f"{name!r} is no Lotus: its UNet has no 4-wide projected class embedding (task switch)")
    if prompt.ndim != 3 or prompt.shape[0] != 1 or prompt.shape[2] != unet.config.cross_attention_dim:
        raise CheckpointError(
            f"the prompt tensor of {name!r} is {list(prompt.shape)}, expected [1,N,{unet.config.cross_attention_dim}]"
        )
    return modes[channels]
