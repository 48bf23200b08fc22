"""Pickled weights and the line that converts them; a UNet alone and the rest from elsewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import save_checkpoint
from family_checkpoints import save_family
from safetensors.torch import load_file, save_file

from export.errors import CheckpointError
from export.network.checkpoint import describe, load, load_checkpoint
from export.network.parts import find_parts

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return save_family(tmp_path / "it's whole", "e2e")


@pytest.fixture
def lotus(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "lotus", text_encoder=True)


def as_pickles(path: Path, *names: str) -> dict[str, torch.Tensor]:
    """The safetensors file as pickled files of these names, its tensors dealt out."""
    tensors = load_file(path)
    path.unlink()
    for number, name in enumerate(names):
        torch.save(dict(list(tensors.items())[number :: len(names)]), path.parent / name)
    return tensors


def follow(message: str) -> None:
    """Run the command that a message names."""
    found = re.search(r"converts them:\n  (python -c .*)", message)
    assert found is not None
    _, *words = shlex.split(found[1])
    subprocess.run([sys.executable, *words], check=True)


@pytest.mark.parametrize(
    "names",
    [
        ("diffusion_pytorch_model.bin",),
        tuple(f"diffusion_pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)),
        ("diffusion_pytorch_model.fp16.bin",),
        ("diffusion_pytorch_model.pt",),
    ],
)
def test_pickled_weights_are_refused_with_the_command_that_converts_them(
    whole: Path, names: tuple[str, ...]
) -> None:
    tensors = as_pickles(whole / "unet" / WEIGHTS, *names)
    with pytest.raises(CheckpointError, match="Pickled weights are not read") as caught:
        describe(str(whole), task="depth", family="marigold")
    follow(str(caught.value))
    found = load_checkpoint(str(whole), task="depth", family="marigold").unet.state_dict()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_a_pickled_text_encoder(lotus: Path) -> None:
    before = load_checkpoint(str(lotus), task="depth").prompt
    as_pickles(lotus / "text_encoder" / "model.safetensors", "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Pickled weights are not read") as caught:
        load_checkpoint(str(lotus), task="depth")
    follow(str(caught.value))
    assert torch.equal(load_checkpoint(str(lotus), task="depth").prompt, before)


def test_a_single_pickled_file(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a.weight": torch.ones(2), "b.weight": torch.ones(3)}}, file)
    with pytest.raises(CheckpointError, match="is a file of pickled weights") as caught:
        describe(str(file), task="depth")
    follow(str(caught.value))
    assert set(load_file(tmp_path / "model.safetensors")) == {"a.weight", "b.weight"}


def test_the_command_runs_no_code_of_the_pickle(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"a": Evil()}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError) as caught:
        describe(str(tmp_path / "model.bin"), task="depth")
    with pytest.raises(subprocess.CalledProcessError):
        follow(str(caught.value))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["unet", "."])
@pytest.mark.parametrize("with_config", [True, False])
def test_a_unet_alone_takes_the_rest_from_its_base(
    place: str, with_config: bool, whole: Path, tmp_path: Path
) -> None:
    """The UNet's config may be missing too: then it is the base's."""
    alone = tmp_path / "alone"
    (alone / place).mkdir(parents=True)
    own = {n: v + 1 for n, v in load_file(whole / "unet" / WEIGHTS).items()}
    save_file(own, alone / place / WEIGHTS, {"format": "pt"})
    if with_config:
        shutil.copy(whole / "unet" / "config.json", alone / place)
    shutil.copytree(whole / "scheduler", alone / "scheduler")
    with pytest.raises(CheckpointError):
        describe(str(alone), task="depth", family="marigold")
    described = describe(str(alone), task="depth", family="marigold", base=str(whole))
    assert described.parameters > sum(v.numel() for v in own.values())
    loaded, rest = load(described), load_checkpoint(str(whole), task="depth", family="marigold")
    assert all(torch.equal(v, own[n]) for n, v in loaded.unet.state_dict().items())
    assert torch.equal(loaded.vae.decoder.conv_out.weight, rest.vae.decoder.conv_out.weight)
    assert torch.equal(loaded.prompt, rest.prompt)


def test_a_base_that_lacks_something(whole: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(whole / "unet", alone)
    with pytest.raises(CheckpointError, match="also --base"):
        describe(str(alone), task="depth", family="marigold")
    with pytest.raises(CheckpointError, match=r"vae needs config\.json"):
        describe(str(alone), task="depth", family="marigold", base=str(tmp_path))
    (alone / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"needs {WEIGHTS}"):
        describe(str(alone), task="depth", family="marigold", base=str(whole))


def test_a_unet_and_a_base_on_the_hub(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the base everything but its UNet's weights is downloaded, once each."""
    hub = {"me/unet": tmp_path / "alone", "me/base": whole}
    (hub["me/unet"] / "unet").mkdir(parents=True)
    shutil.copy(whole / "unet" / WEIGHTS, hub["me/unet"] / "unet")
    shutil.copytree(whole / "scheduler", hub["me/unet"] / "scheduler")
    wanted: dict[str, set[str]] = {}

    def info(_: object, name: str, **__: object) -> object:
        files = [p.relative_to(hub[name]).as_posix() for p in hub[name].rglob("*") if p.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

    def snapshot(name: str, *, allow_patterns: list[str], **_: object) -> str:
        wanted[name] = set(allow_patterns)
        return str(hub[name])

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    parts = find_parts("me/unet", "me/base@v1")
    assert parts.unet == hub["me/unet"] / "unet"
    assert parts.shape == whole / "unet"
    assert wanted["me/unet"] == {"scheduler/scheduler_config.json", f"unet/{WEIGHTS}"}
    assert f"vae/{WEIGHTS}" in wanted["me/base"]
    assert f"unet/{WEIGHTS}" not in wanted["me/base"]
