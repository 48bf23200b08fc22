"""Where the parts of a checkpoint lie: in one folder or repository, or a UNet alone and the rest
in another. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from export.embedded import embedded_checkpoints
from export.errors import CheckpointError
from export.families import Configs, Family, known_ids
from export.network.hub import (
    CheckpointSource,
    download,
    find_folder,
    read_config,
    split_revision,
)
from export.network.weights import NETWORK, TEXT_ENCODER, choose_weights, find_weights
from runtime.there import is_dir, is_file

PROMPT_FILE = "prompt_embedding.safetensors"
STABLE_DIFFUSION = "stabilityai/stable-diffusion-2-1"

DIFFUSERS_FOLDER = CheckpointSource(
    description=(
        "diffusers folder (with unet/ and vae/), a hub id such as "
        "jingheya/lotus-depth-d-v2-0-disparity"
    ),
    files=("*.json", "*.txt", PROMPT_FILE),
    parts=(("unet", NETWORK), ("vae", NETWORK), ("text_encoder", TEXT_ENCODER)),
    marker="unet/config.json",
    usage="./{folder} --task {task}{family}",
    offline_names=tuple(sorted(n for n in known_ids() if n.startswith(("tiny/", "random/")))),
    tasks={name: task for name, (_, task) in known_ids().items()},
    families={
        name: family.name for name, (family, _) in known_ids().items() if family.step is not None
    },
)
_UNET = CheckpointSource(
    description="folder of a UNet, a hub id such as guangkaixu/genpercept-depth",
    files=("*.json",),
    parts=(("unet", NETWORK), ("", NETWORK)),
    marker="",
    usage="./{folder} --task {task}{family} --base BASE",
    offline_names=(),
    tasks=DIFFUSERS_FOLDER.tasks,
    families=DIFFUSERS_FOLDER.families,
)
_BASE = CheckpointSource(
    description=f"diffusers folder with vae/, a hub id such as {STABLE_DIFFUSION}",
    files=DIFFUSERS_FOLDER.files,
    parts=(("vae", NETWORK), ("text_encoder", TEXT_ENCODER)),
    marker="vae/config.json",
    usage="CHECKPOINT --base ./{folder}",
    offline_names=DIFFUSERS_FOLDER.offline_names,
    tasks={},
)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Folders: `root` with model_index.json and scheduler/, `unet` with its weights, `shape` with
    its config, `vae`, and `rest` with the prompt, stored or as text encoder and tokenizer.

    `local` are those whose weights were there before any download.
    """

    root: Path
    unet: Path
    shape: Path
    vae: Path
    rest: Path
    local: tuple[Path, ...]

    def configs(self) -> Configs:
        """What the files say. Raises: CheckpointError for one that is no JSON object."""
        return Configs(
            unet=read_config(self.shape),
            vae=read_config(self.vae),
            scheduler=read_config(self.root / "scheduler", "scheduler_config.json"),
            index=read_config(self.root, "model_index.json"),
            names=tuple(sorted(path.name for path in self.root.iterdir())),
        )

    def check(self) -> None:
        """Refuse local folders without configs or whole weights. Raises: CheckpointError."""
        for folder in self.local:
            if folder == self.unet and folder != self.shape:
                find_weights(folder)
            else:
                check_folder(folder)


def find_parts(name: str, base: str | None, *, configs_only: bool = False) -> Parts:
    """The parts of a local folder, `tiny/...` or a hub id, which is downloaded; `base` has what it
    lacks of autoencoder and prompt.

    Raises: CheckpointError.
    """
    if base is not None:
        return _unet_and_base(name, base, configs_only=configs_only)
    bare, revision = split_revision(name)
    folder = find_folder(bare, DIFFUSERS_FOLDER)
    if folder is not None and revision is not None:
        raise CheckpointError(f"{bare!r} is a local folder: it has no revision {revision!r}")
    root = folder or download(name, DIFFUSERS_FOLDER, configs_only=configs_only)
    unet, vae = root / "unet", _vae_folder(root)
    local = (unet, vae) if folder is not None else ()
    return Parts(root=root, unet=unet, shape=unet, vae=vae, rest=root, local=local)


def is_whole(name: str) -> bool:
    """Whether this is known to lack nothing that a base has: `tiny/...`, `random/...`, known ids,
    and local folders with UNet, autoencoder and prompt. Of other ids nothing is known.
    """
    folder, bare = Path(name), split_revision(name)[0]
    if is_dir(folder):
        return _own_vae(folder) is not None and has_prompt(folder)
    if name.startswith(("tiny/", "random/")):
        return True
    known = known_ids().get(bare)
    return known is not None and not known[0].unet_alone


def has_prompt(folder: Path) -> bool:
    """Whether the empty prompt lies there, stored or as text encoder and tokenizer."""
    encoder = is_dir(folder / "text_encoder") and is_dir(folder / "tokenizer")
    return encoder or is_file(folder / PROMPT_FILE)


def check_base(name: str, family: Family | None, base: str | None) -> None:
    """Refuse a known UNet alone without the rest, and a base for what is whole, before anything is
    downloaded.

    Raises: CheckpointError.
    """
    if base is not None:
        if is_whole(name):
            raise CheckpointError(
                f"{name!r} is a whole checkpoint, which needs no --base: leave it out"
            )
        return
    alone = family is not None and family.unet_alone
    if alone and not is_dir(Path(name)) and not is_whole(name):
        raise CheckpointError(
            f"{name!r} is a UNet alone: pass --base with the folder or id of the rest, the "
            f"autoencoder and the text encoder of Stable Diffusion 2.1, such as {STABLE_DIFFUSION}"
        )


def check_folder(folder: Path) -> None:
    """Refuse a module's folder without config or whole weights. Raises: CheckpointError."""
    if not is_file(folder / "config.json"):
        files = sorted(path.name for path in folder.glob("*")) or "nothing"
        raise CheckpointError(
            f"{folder} needs config.json and safetensors (a module's folder of diffusers); found "
            f"{files}"
        )
    find_weights(folder)


def _unet_and_base(name: str, base: str, *, configs_only: bool) -> Parts:
    root = Path(name)
    if not is_dir(root):
        root = download(name, _UNET, configs_only=configs_only)
    rest = _base_folder(base, configs_only=configs_only)
    unet = next(_with_weights(root), root)
    shape = next((f for f in (unet, root / "unet", root) if _is_unet(f)), rest / "unet")
    if not _is_unet(shape):
        raise CheckpointError(
            f"neither {name!r} nor {base!r} has the config.json of a UNet: copy that of Stable "
            "Diffusion 2.1 beside the weights"
        )
    own, given = _own_vae(root), is_dir(Path(name))
    vae = _vae_folder(rest) if own is None else own
    whose = _is_local(base) if own is None else given
    local = (*((unet,) if given else ()), *((vae,) if whose else ()))
    rest = root if has_prompt(root) else rest
    return Parts(root=root, unet=unet, shape=shape, vae=vae, rest=rest, local=local)


def _own_vae(root: Path) -> Path | None:
    """The autoencoder that belongs to the folder of a checkpoint, and not of a UNet alone."""
    vae = _vae_folder(root)
    return vae if is_dir(root / "unet") and is_dir(vae) else None


def _with_weights(root: Path) -> Iterator[Path]:
    for folder in (root / "unet", root):
        names = [path.name for path in folder.iterdir()] if is_dir(folder) else []
        if choose_weights(names, NETWORK) is not None:
            yield folder


def _is_unet(folder: Path) -> bool:
    return "cross_attention_dim" in read_config(folder)


def _is_local(base: str) -> bool:
    return base.startswith("tiny/") or is_dir(Path(base))


def _base_folder(base: str, *, configs_only: bool) -> Path:
    if base.startswith("tiny/"):
        folder = embedded_checkpoints() / base.removeprefix("tiny/")
        if is_dir(folder):
            return folder
    elif is_dir(Path(base)):
        check_folder(_vae_folder(Path(base)))
        return Path(base)
    bare, _ = split_revision(base)
    return find_folder(bare, _BASE) or download(base, _BASE, configs_only=configs_only)


def _vae_folder(folder: Path) -> Path:
    """The checkpoint's own autoencoder, or the one beside its folder, which a whole series of
    checkpoints shares."""
    beside = folder.resolve().parent / "vae"
    return beside if not is_dir(folder / "vae") and is_dir(beside) else folder / "vae"
