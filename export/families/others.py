"""What looks like a family and is another network: refused by name, with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from export.errors import CheckpointError
from export.families.family import Configs


@dataclass(frozen=True, kw_only=True)
class Other:
    """`pattern` finds it in an id on the hub, `sign` in the configs of a folder."""

    name: str
    pattern: str
    sign: Callable[[Configs], bool] = lambda configs: False
    reason: str


def _has(*words: str) -> Callable[[Configs], bool]:
    """Whether a file, a folder or an entry of model_index.json begins with one of the words."""
    return lambda configs: any(
        name.startswith(words) for name in (*configs.names, *map(str, configs.index))
    )


def _is(word: str) -> Callable[[Configs], bool]:
    """Whether the pipeline's class has the word in its name."""
    return lambda configs: word in str(configs.index.get("_class_name", ""))


def _has_several_latents(configs: Configs) -> bool:
    """Whether the UNet answers two or more latents, and reads one more."""
    latent = configs.vae.get("latent_channels", 4)
    answered = configs.unet.get("out_channels", 4)
    return bool(answered > latent and configs.unet.get("in_channels", 4) == answered + latent)


OTHERS = (
    Other(
        name="GeoWizard",
        pattern=r"geowizard",
        sign=_has("image_encoder"),
        reason="its UNet reads a CLIP embedding of the image and a class for depth or normals in "
        "one batch, where this project has the empty prompt",
    ),
    Other(
        name="StableNormal",
        pattern=r"stable-?normal|yoso-?normal",
        sign=_has("controlnet"),
        reason="a ControlNet runs beside its UNet",
    ),
    Other(
        name="Marigold-IID",
        pattern=r"marigold-iid",
        sign=lambda configs: _is("Intrinsics")(configs) or _has_several_latents(configs),
        reason="its UNet predicts several latents at once, over several steps",
    ),
    Other(
        name="GenPercept with a DPT head",
        pattern=r"genpercept.*dpt",
        sign=_has("dpt_head", "customized_head"),
        reason="its maps come from features inside the UNet, and not from the autoencoder",
    ),
    Other(
        name="GenPercept with a decoder of its own",
        pattern=r"genpercept.*vae[-_]decoder",
        sign=_has("vae_decoder"),
        reason="the decoder was trained too, and lies in no autoencoder that diffusers loads",
    ),
    Other(
        name="GenPercept's segmentation into classes",
        pattern=r"genpercept-seg$",
        reason="its answer is a colour for each class, and this project has no task for it",
    ),
    Other(
        name="a collection of GenPercept's UNets",
        pattern=r"genpercept-(?:models|exps)$",
        reason="download it, and pass the folder of one UNet with --family genpercept and --base",
    ),
    Other(
        name="DepthMaster",
        pattern=r"depth-?master",
        sign=_is("DepthMaster"),
        reason="its UNet has a block of Fourier transforms inside",
    ),
    Other(
        name="Lotus-2",
        pattern=r"lotus-2(?!\d)",
        sign=_is("Flux"),
        reason="it is a transformer (FLUX) and no UNet of Stable Diffusion 2",
    ),
    Other(
        name="FE2E",
        pattern=r"(?<![a-z])fe2e",
        reason="it is a diffusion transformer and no UNet of Stable Diffusion 2",
    ),
)


def refuse_by_id(name: str) -> None:
    """Refuse an id on the hub of another network. Raises: CheckpointError, with the reason."""
    for other in OTHERS:
        if re.search(other.pattern, name.lower()):
            raise _refused(name, other)


def refuse_by_structure(name: str, configs: Configs) -> None:
    """Refuse a folder of another network. Raises: CheckpointError, with the reason."""
    for other in OTHERS:
        if other.sign(configs):
            raise _refused(name, other)


def _refused(name: str, other: Other) -> CheckpointError:
    return CheckpointError(f"{name!r} is {other.name}, which is not built: {other.reason}")
