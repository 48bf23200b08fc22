"""A checkpoint: describe it by its configs, load it, hand its modules over.

The empty prompt is encoded once, and the text encoder is forgotten.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import CheckpointError
from export.families import Family, find_family, known_ids, resolve_task
from export.network.hub import CheckpointSource, download, find_folder, read_config
from export.network.weights import NETWORK, TEXT_ENCODER, count_parameters, find_weights
from export.progress import say
from runtime.manifest import Latent
from runtime.tasks import Task

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

PROMPT_FILE = "prompt_embedding.safetensors"

# Stable Diffusion 2 base, as Lotus changes it (class embedding). Source: the released config files.
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
RANDOM_UNETS: dict[str, dict[str, Any]] = {
    "random/lotus-d": {**_UNET_CONFIG, "in_channels": 4},
    "random/lotus-g": {**_UNET_CONFIG, "in_channels": 8},
}
"""The full-size network with seeded random weights: latency and memory do not depend on weights."""
_RANDOM_PARAMETERS, _RANDOM_VAE = 949_600_000, 83_700_000  # of both networks and of one, about

DIFFUSERS_FOLDER = CheckpointSource(
    description=(
        "diffusers folder (with unet/ and vae/), a hub id such as "
        "jingheya/lotus-depth-d-v2-0-disparity"
    ),
    files=("*.json", "*.txt", PROMPT_FILE),
    parts=(("unet", NETWORK), ("vae", NETWORK), ("text_encoder", TEXT_ENCODER)),
    marker="unet/config.json",
    usage="./{folder} --task {task}",
    offline_names=tuple(sorted(n for n in known_ids() if n.startswith(("tiny/", "random/")))),
    tasks={name: task for name, (_, task) in known_ids().items()},
)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint says about itself before a weight is loaded.

    `folder` is None for random weights and for what has still to be downloaded. `unet` and `vae`
    are the configs, `parameters` the numbers in the weights (0: not known yet), `vae_parameters`
    those of the autoencoder among them.
    """

    id: str
    family: Family
    task: Task
    folder: Path | None
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    parameters: int
    vae_parameters: int = 0

    @property
    def latent(self) -> Latent:
        """Channels and scale of the latent, by the autoencoder's config."""
        return Latent(
            channels=self.vae.get("latent_channels", 4),
            downscale=2 ** (len(self.vae.get("block_out_channels", (64,))) - 1),
            scaling_factor=self.vae.get("scaling_factor", 0.18215),
        )

    @property
    def trained_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that the UNet was trained at, if its config says so."""
        size = self.unet.get("sample_size")
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.latent.downscale, width * self.latent.downscale

    @property
    def public_id(self) -> str:
        """A local folder by its name alone: bundles travel, and folders concern nobody."""
        return public_id(self.id)


def public_id(name: str) -> str:
    """The name of a checkpoint without the folders of the building machine.

    A snapshot in the hub's cache, `models--OWNER--NAME/snapshots/HASH`, has the name of its
    repository.
    """
    if not Path(name).is_dir():
        return name
    folder = Path(name).resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def describe(name: str, *, task: str | None = None) -> Description:
    """Describe a local diffusers folder, a hub id (whose configs are downloaded), `tiny/...`
    (embedded) or `random/...` (seeded weights, full size).

    Raises: CheckpointError for a name, a task or a network that is unknown.
    """
    if name in known_ids():
        resolve_task(name, task)  # another task than the known one is refused before a download
    if name in RANDOM_UNETS:
        unet, vae = RANDOM_UNETS[name], _VAE_CONFIG
        folder, parameters, vae_parameters = None, _RANDOM_PARAMETERS, _RANDOM_VAE
    else:
        folder = find_folder(name, DIFFUSERS_FOLDER)
        configs = download(name, DIFFUSERS_FOLDER, configs_only=True) if folder is None else folder
        unet_folder, vae_folder = configs / "unet", _vae_folder(configs)
        if folder is not None:
            for part in (unet_folder, vae_folder):
                check_folder(part)
        unet, vae = read_config(unet_folder), read_config(vae_folder)
        vae_parameters = count_parameters(vae_folder)
        parameters = count_parameters(unet_folder) + vae_parameters
    return Description(
        id=name,
        family=find_family(name, unet, vae),
        task=resolve_task(name, task),
        folder=folder,
        unet=unet,
        vae=vae,
        parameters=parameters,
        vae_parameters=vae_parameters,
    )


@dataclass(frozen=True, kw_only=True)
class SmallVae:
    """A distilled autoencoder in fp32 that stands in for one half of a checkpoint's own, or for
    both.
    """

    id: str
    network: AutoencoderTiny

    def sha256(self, half: str) -> str:
        """SHA-256 over the names, shapes and values of its "encoder" or its "decoder"."""
        return _sha256(getattr(self.network, half).state_dict())


@dataclass(frozen=True, kw_only=True)
class Modules:
    """fp32 modules in eval mode, and the empty prompt as the text encoder sees it, [1,N,C].

    `vae` is the checkpoint's own autoencoder; `small_encoder` and `small_decoder` stand in for the
    halves of it, where they are given.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    prompt: torch.Tensor
    small_encoder: SmallVae | None = None
    small_decoder: SmallVae | None = None


class Checkpoint:
    """A loaded checkpoint, as its authors left it.

    Its modules can be handed over once, to an owner that rewrites them. What needs them untouched,
    the hash and the reference, refuses to run after that.
    """

    def __init__(self, *, id: str, family: Family, task: Task, modules: Modules) -> None:
        self.id = id
        self.family = family
        self.task = task
        self._modules: Modules | None = modules

    @property
    def modules(self) -> Modules:
        """The untouched modules. Raises: RuntimeError when they were handed over."""
        if self._modules is None:
            raise RuntimeError(
                f"the modules of {self.id!r} were handed over to be rewritten: take hash and "
                "reference before that, or hand over a copy()"
            )
        return self._modules

    def hand_over(self) -> Modules:
        """The modules, which this checkpoint forgets. Raises: RuntimeError the second time."""
        modules, self._modules = self.modules, None
        return modules

    def copy(self) -> Checkpoint:
        """Another checkpoint with modules of its own."""
        modules = copy.deepcopy(self.modules)
        return Checkpoint(id=self.id, family=self.family, task=self.task, modules=modules)

    def with_own_vae(self) -> Checkpoint | None:
        """The same modules without small autoencoders; None where there are none."""
        modules = self.modules
        if modules.small_encoder is None and modules.small_decoder is None:
            return None
        own = dataclasses.replace(modules, small_encoder=None, small_decoder=None)
        return Checkpoint(id=self.id, family=self.family, task=self.task, modules=own)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The UNet, untouched."""
        return self.modules.unet

    @property
    def vae(self) -> AutoencoderKL:
        """The checkpoint's own autoencoder, untouched."""
        return self.modules.vae

    @property
    def prompt(self) -> torch.Tensor:
        """The empty prompt as the text encoder sees it, float32 [1,N,C]."""
        return self.modules.prompt

    @property
    def encoding_vae(self) -> AutoencoderKL | AutoencoderTiny:
        """The autoencoder whose encoder reads the image."""
        small = self.modules.small_encoder
        return self.modules.vae if small is None else small.network

    @property
    def decoding_vae(self) -> AutoencoderKL | AutoencoderTiny:
        """The autoencoder whose decoder writes the map."""
        small = self.modules.small_decoder
        return self.modules.vae if small is None else small.network

    def sha256(self) -> str:
        """SHA-256 over the names, shapes and fp32 values of the checkpoint's own weights."""
        tensors = {f"unet.{name}": value for name, value in self.unet.state_dict().items()}
        tensors |= {f"vae.{name}": value for name, value in self.vae.state_dict().items()}
        return _sha256(tensors | {"prompt": self.prompt})


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().data)
    return digest.hexdigest()


def load_checkpoint(name: str, *, task: str | None = None, seed: int = 0) -> Checkpoint:
    """`describe` and `load` in one step. Raises: CheckpointError."""
    return load(describe(name, task=task), seed=seed)


def load(description: Description, *, seed: int = 0) -> Checkpoint:
    """The modules of a described checkpoint; `seed` draws the weights of `random/...`.

    Raises: CheckpointError.
    """
    from export.network.modules import draw_modules, load_modules

    if description.id in RANDOM_UNETS:
        say(f"drawing the weights of {description.id} with seed {seed}")
        modules = draw_modules(description.unet, description.vae, seed)
    else:
        folder = description.folder or download(description.id, DIFFUSERS_FOLDER)
        say(f"loading {description.id}")
        modules = load_modules(folder, _vae_folder(folder))
    width = description.unet.get("cross_attention_dim", 1280)
    if modules.prompt.ndim != 3 or modules.prompt.shape[0] != 1 or modules.prompt.shape[2] != width:
        raise CheckpointError(
            f"the prompt tensor of {description.id!r} is {list(modules.prompt.shape)}, expected "
            f"[1,N,{width}]"
        )
    return Checkpoint(
        id=description.id, family=description.family, task=description.task, modules=modules
    )


def check_folder(folder: Path) -> None:
    """Refuse a module's folder without config or whole weights. Raises: CheckpointError."""
    if not (folder / "config.json").is_file():
        files = sorted(path.name for path in folder.glob("*")) or "nothing"
        raise CheckpointError(
            f"{folder} needs config.json and safetensors (a module's folder of diffusers); found "
            f"{files}"
        )
    find_weights(folder)


def _vae_folder(folder: Path) -> Path:
    """The checkpoint's own autoencoder, or the one beside its folder, which a whole series of
    checkpoints shares."""
    beside = folder.resolve().parent / "vae"
    return beside if not (folder / "vae").is_dir() and beside.is_dir() else folder / "vae"
