"""A checkpoint: describe it by its configs, load it, hand its modules over.

The empty prompt is encoded once, and the text encoder is forgotten.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import CheckpointError
from export.families import (
    Configs,
    Family,
    find_family,
    known_ids,
    named_family,
    refuse_by_id,
    resolve_task,
)
from export.network.hub import split_revision
from export.network.parts import check_base, find_parts
from export.network.weights import count_parameters
from export.progress import say
from runtime.manifest import Latent
from runtime.tasks import Task
from runtime.there import exists, is_dir

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

# Stable Diffusion 2 base; channels and class embedding are the family's. Source: the released
# config files of Lotus.
_UNET_CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
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
_RANDOM = {
    name: dataclasses.replace(family, licence="none: its weights are random", remark=None)
    for name, (family, _) in known_ids().items()
    if name.startswith("random/")
}
"""The full-size network with seeded random weights: latency and memory do not depend on weights."""
_RANDOM_PARAMETERS, _RANDOM_VAE = 949_600_000, 83_700_000  # of both networks and of one, about


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint says about itself before a weight is loaded.

    `folder` is None for random weights and for what has still to be downloaded. `unet`, `vae` and
    `scheduler` are the configs, `parameters` the numbers in the weights (0: not known yet),
    `vae_parameters` those of the autoencoder among them. `base` names what a UNet alone takes the
    rest from.
    """

    id: str
    family: Family
    task: Task
    folder: Path | None
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    parameters: int
    vae_parameters: int = 0
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None

    @property
    def latent(self) -> Latent:
        """Channels and scale of the latent, by the autoencoder's config."""
        return Latent(
            channels=self.vae.get("latent_channels", 4),
            downscale=2 ** (len(self.vae.get("block_out_channels", (64,))) - 1),
            scaling_factor=self.vae.get("scaling_factor", 0.18215),
        )

    @property
    def vae_channels(self) -> int:
        """Channels of the autoencoder's widest block at full size, by its config."""
        channels = self.vae.get("block_out_channels", (64,))
        return int(channels[min(1, len(channels) - 1)])

    @property
    def trained_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that the UNet was trained at, if its config says so."""
        size = self.unet.get("sample_size")
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        if not isinstance(height, int) or not isinstance(width, int):
            raise ValueError(f"the sample_size of the UNet is {size!r}")
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
    if not is_dir(Path(name)):
        return name
    folder = Path(name).resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def describe(
    name: str, *, task: str | None = None, family: str | None = None, base: str | None = None
) -> Description:
    """Describe a local diffusers folder, a hub id (ID or ID@REVISION, whose configs are
    downloaded), `tiny/...` (embedded) or `random/...` (seeded weights, full size; `@N` is the
    UNet's own seed). `base` is the folder or id of what a UNet alone lacks.

    Raises: CheckpointError for a name, a task, a family or a network that is unknown.
    """
    bare, revision = split_revision(name)
    if bare in known_ids():
        resolve_task(bare, task)  # another task than the known one is refused before a download
    elif not exists(Path(bare)):
        refuse_by_id(bare)
    check_base(bare, named_family(bare, family), base)
    if bare in _RANDOM:
        _unet_seed(bare, revision)
        found = _RANDOM[bare].derived(_RANDOM[bare].random_scheduler)
        ends = found.unet_config(_VAE_CONFIG["latent_channels"])
        configs = Configs(unet=_UNET_CONFIG | ends, vae=_VAE_CONFIG, scheduler=found.scheduler)
        folder, parameters, vae_parameters = None, _RANDOM_PARAMETERS, _RANDOM_VAE
    else:
        parts = find_parts(name, base, configs_only=True)
        parts.check()
        configs, folder = parts.configs(), parts.root if parts.local else None
        vae_parameters = count_parameters(parts.vae)
        parameters = count_parameters(parts.unet) + vae_parameters
        found = find_family(bare, configs, family)
    description = Description(
        id=name,
        family=found,
        task=resolve_task(bare, task, found),
        folder=folder,
        unet=configs.unet,
        vae=configs.vae,
        parameters=parameters,
        vae_parameters=vae_parameters,
        scheduler=configs.scheduler,
        base=base,
    )
    try:
        _ = description.latent, description.vae_channels, description.trained_size
    except (TypeError, ValueError, LookupError) as error:
        raise CheckpointError(f"the configs of {name!r} cannot be understood: {error}") from error
    return description


def _unet_seed(name: str, revision: str | None) -> int | None:
    """The seed of the UNet's weights alone, of `random/...@N`. Raises: CheckpointError."""
    if revision is None:
        return None
    if not revision.isdecimal() or int(revision) >= 1 << 63:
        raise CheckpointError(
            f"the revision of {name!r} is the seed of the UNet's weights, a number; found "
            f"{revision!r}"
        )
    return int(revision)


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


def load_checkpoint(
    name: str, *, task: str | None = None, seed: int = 0, family: str | None = None
) -> Checkpoint:
    """`describe` and `load` in one step. Raises: CheckpointError."""
    return load(describe(name, task=task, family=family), seed=seed)


def load(description: Description, *, seed: int = 0) -> Checkpoint:
    """The modules of a described checkpoint; `seed` draws the weights of `random/...`, and of
    `random/...@N` all but the UNet's.

    Raises: CheckpointError.
    """
    from export.network.modules import draw_modules, load_modules

    bare, revision = split_revision(description.id)
    if bare in _RANDOM:
        own = _unet_seed(bare, revision)
        say(f"drawing the weights of {description.id} with seed {seed}")
        modules = draw_modules(description.unet, description.vae, seed, unet_seed=own)
    else:
        parts = find_parts(description.id, description.base)
        say(f"loading {description.id}; licence of its weights: {description.family.licence}")
        modules = load_modules(parts)
    if description.family.remark is not None:
        say(f"{description.family.name}: {description.family.remark}")
    width = description.unet.get("cross_attention_dim", 1280)
    if modules.prompt.ndim != 3 or modules.prompt.shape[0] != 1 or modules.prompt.shape[2] != width:
        raise CheckpointError(
            f"the prompt tensor of {description.id!r} is {list(modules.prompt.shape)}, expected "
            f"[1,N,{width}]"
        )
    return Checkpoint(
        id=description.id, family=description.family, task=description.task, modules=modules
    )
