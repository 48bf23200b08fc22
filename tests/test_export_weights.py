"""The names that diffusers and transformers give to weights, and what a path may be instead."""

from __future__ import annotations

import io
import json
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import save_checkpoint, write_null_bundle
from safetensors.torch import load_file, save_file

from export.errors import CheckpointError
from export.network.checkpoint import Checkpoint, describe, load_checkpoint
from export.network.parts import DIFFUSERS_FOLDER
from export.network.weights import NETWORK, choose_weights, find_weights
from export.progress import Progress

WHOLE = "diffusion_pytorch_model.safetensors"
PARTS = {"unet": NETWORK, "vae": NETWORK, "text_encoder": "model"}


@pytest.fixture
def copy(checkpoint_d: Path, tmp_path: Path) -> Path:
    """A writable copy of the mode D checkpoint, with a text encoder (depth)."""
    return Path(shutil.copytree(checkpoint_d, tmp_path / "copy"))


def load(path: Path) -> Checkpoint:
    return load_checkpoint(str(path), task="depth")


def said(path: Path) -> str:
    stream = io.StringIO()
    with Progress(stream):
        load(path)
    return stream.getvalue()


def resave(folder: Path, stem: str, variant: str, *, dtype: torch.dtype = torch.float32) -> Path:
    """The one weight file of a module's folder, in another type and under a variant's name."""
    (path,) = folder.glob("*.safetensors")
    tensors = {name: value.to(dtype) for name, value in load_file(path).items()}
    path.unlink()
    name = ".".join(filter(None, (stem, variant, "safetensors")))
    save_file(tensors, folder / name, metadata={"format": "pt"})
    return folder / name


def shard(folder: Path, names: str, index: str) -> None:
    """Cut the whole file of a folder into two; `names` has {0} for the number of the shard."""
    tensors = load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    halves = [sorted(tensors)[::2], sorted(tensors)[1::2]]
    files = [names.format(f"{number + 1:05}") for number in range(2)]
    for file, half in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file, {"format": "pt"})
    if index:
        weight_map = {name: file for file, half in zip(files, halves, strict=True) for name in half}
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [("fp16", torch.float16), ("bf16", torch.bfloat16), ("ema", torch.float64)],
)
def test_a_whole_variant_is_read_as_fp32(copy: Path, variant: str, dtype: torch.dtype) -> None:
    whole = load(copy)
    for part, stem in PARTS.items():
        resave(copy / part, stem, variant, dtype=dtype)
    loaded = load(copy)
    for network, before in ((loaded.unet, whole.unet), (loaded.vae, whole.vae)):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        for (name, value), old in zip(
            network.state_dict().items(), before.state_dict().values(), strict=True
        ):
            assert torch.equal(value, old.to(dtype).float()), name
    assert (loaded.prompt - whole.prompt).abs().max() < 0.05


def test_the_file_of_case_8(copy: Path) -> None:
    before = load(copy).prompt
    encoder = copy / "text_encoder"
    (encoder / "model.safetensors").rename(encoder / "model.fp16.safetensors")
    assert torch.equal(load(copy).prompt, before)


@pytest.mark.parametrize(
    ("names", "index"),
    [
        (f"{NETWORK}-{{0}}-of-00002.safetensors", f"{WHOLE}.index.json"),
        (f"{NETWORK}.fp16-{{0}}-of-00002.safetensors", f"{WHOLE}.index.fp16.json"),
        (f"{NETWORK}.fp16-{{0}}-of-00002.safetensors", f"{NETWORK}.fp16.safetensors.index.json"),
        (f"{NETWORK}-{{0}}-of-00002.fp16.safetensors", f"{WHOLE}.index.fp16.json"),
        (f"{NETWORK}.bf16-{{0}}-of-00002.safetensors", f"{WHOLE}.index.bf16.json"),
        (f"{NETWORK}-{{0}}-of-00002.safetensors", ""),
    ],
)
def test_shards_under_every_name(copy: Path, names: str, index: str) -> None:
    before = load(copy).sha256()
    shard(copy / "unet", names, index)
    assert load(copy).sha256() == before
    gone = names.format("00002")
    (copy / "unet" / gone).unlink()
    with pytest.raises(CheckpointError, match=f"unet/{gone} is missing"):
        describe(str(copy), task="depth")


@pytest.mark.parametrize("name", ["../unet/x.safetensors", "/etc/passwd", "a\\b", "..", ""])
def test_an_index_that_leads_outside(copy: Path, name: str) -> None:
    shard(copy / "unet", f"{NETWORK}-{{0}}-of-00002.safetensors", f"{WHOLE}.index.json")
    index = copy / "unet" / f"{WHOLE}.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    with pytest.raises(CheckpointError, match=r"index\.json names the shard"):
        load(copy)
    index.write_text("[")
    with pytest.raises(CheckpointError, match=r"index\.json is no index of weights"):
        load(copy)


def test_full_precision_is_read_where_a_variant_lies_beside_it(copy: Path) -> None:
    before = load(copy).sha256()
    zeros = {name: value * 0 for name, value in load_file(copy / "unet" / WHOLE).items()}
    for variant in ("bf16", "fp16", "ema"):
        save_file(zeros, copy / "unet" / f"{NETWORK}.{variant}.safetensors", {"format": "pt"})
    assert load(copy).sha256() == before
    assert (
        "full precision is read, and not the variant 'fp16', the variant 'bf16', the variant 'ema'"
        in said(copy)
    )
    read = [load_file(copy / part / WHOLE) for part in ("unet", "vae")]
    count = sum(value.numel() for tensors in read for value in tensors.values())
    assert describe(str(copy), task="depth").parameters == count


def test_an_index_without_its_shards_hides_no_other_variant(copy: Path) -> None:
    before = load(copy).sha256()
    unet = copy / "unet"
    (unet / WHOLE).rename(unet / f"{NETWORK}.fp16.safetensors")
    (unet / f"{WHOLE}.index.json").write_text('{"weight_map": {"a": "b"}}')
    assert load(copy).sha256() == before


def test_a_snapshot_of_the_hub_is_a_folder(copy: Path, tmp_path: Path) -> None:
    """Files of the hub's cache are links into ../../blobs, named by their hash."""
    snapshot = tmp_path / "hub" / "models--me--lotus" / "snapshots" / "abc"
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in copy.rglob("*") if path.is_file()):
        path.rename(blobs / str(number))
        link = snapshot / path.relative_to(copy)
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * len(link.parent.relative_to(blobs.parent).parts)
        link.symlink_to(Path(up, "blobs", str(number)))
    assert load(snapshot).prompt.shape == (1, 2, 32)
    assert describe(str(snapshot), task="depth").public_id == "me/lotus"
    with pytest.raises(CheckpointError, match=r"pass one of \['snapshots/abc'\]"):
        load(blobs.parent)


def test_names_of_early_diffusers_are_read(copy: Path) -> None:
    before = load(copy).sha256()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(copy / "vae" / WHOLE)
    renamed = {}
    for name, value in tensors.items():
        for new, early in old.items():
            name = name.replace(f".{new}.", f".{early}.")
        renamed[name] = value
    assert renamed.keys() != tensors.keys()
    save_file(renamed, copy / "vae" / WHOLE, {"format": "pt"})
    assert load(copy).sha256() == before


def test_damaged_files_are_named(copy: Path) -> None:
    for part, stem in PARTS.items():
        path = copy / part / f"{stem}.safetensors"
        good = path.read_bytes()
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        for bad, message in (
            (good[:-1000], "the copy was cut short"),
            (good + b"\0", "or the file was changed"),
            (good[:100], "no whole safetensors file"),
            (b"", "no whole safetensors file"),
            (pointer, "a pointer of Git LFS"),
            (b"\xff" * 100, "no whole safetensors file"),
            ((2).to_bytes(8, "little") + b"[]", "no whole safetensors file"),
        ):
            path.write_bytes(bad)
            with pytest.raises(CheckpointError, match=message) as caught:
                load(copy)
            assert str(path) in str(caught.value)
        path.write_bytes(good)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_not_finite(copy: Path, part: str, value: float) -> None:
    path = copy / part / f"{PARTS[part]}.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="holds NaN or infinite values") as caught:
        load(copy)
    assert str(path) in str(caught.value)
    assert repr(name) in str(caught.value)


def test_quantised_weights_are_refused(copy: Path) -> None:
    path = copy / "unet" / WHOLE
    save_file({n: v.to(torch.float8_e4m3fn) for n, v in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="type F8_E4M3: quantised"):
        load(copy)


def test_a_text_encoder_that_lacks_a_tensor_is_not_filled_up(copy: Path) -> None:
    path = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors[sorted(tensors)[-1]]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="text_encoder lacks 1 tensors"):
        load(copy)


def test_tensors_of_another_shape_and_unknown_ones(copy: Path) -> None:
    path = copy / "unet" / WHOLE
    tensors = load_file(path)
    save_file(tensors | {"extra.weight": torch.ones(1)}, path, {"format": "pt"})
    assert "1 tensors that its config has no place for, the first is 'extra.weight'" in said(copy)
    halved = {name: value[: len(value) // 2].clone() for name, value in tensors.items()}
    save_file(halved, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="size mismatch") as caught:
        load(copy)
    assert len(str(caught.value).splitlines()) <= 5


def other_things(folder: Path, checkpoint: Path) -> dict[str, str]:
    """Paths that are no checkpoint, and what must be said of them."""
    write_null_bundle(folder / "bundle")
    (folder / "empty").mkdir()
    with zipfile.ZipFile(folder / "lotus.zip", "w") as archive:
        archive.writestr("unet/config.json", "{}")
    shutil.copy(folder / "lotus.zip", folder / "download")
    save_file({"down.lora_A.weight": torch.ones(1)}, folder / "lora.safetensors")
    (folder / "lora").mkdir()
    shutil.copy(folder / "lora.safetensors", folder / "lora" / "pytorch_lora_weights.safetensors")
    save_file({"model.diffusion_model.weight": torch.ones(1)}, folder / "all.safetensors")
    (folder / "one").mkdir()
    shutil.copy(folder / "all.safetensors", folder / "one")
    (folder / "model.ckpt").write_text("pickled")
    (folder / "letter.txt").write_text("dear")
    (folder / "flux").mkdir()
    (folder / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (folder / "all").mkdir()
    (folder / "all" / "mine").symlink_to(checkpoint)
    (folder / "unet").symlink_to(checkpoint / "unet")
    return {
        "bundle": "is a bundle, built already",
        "empty": "is an empty folder",
        "lotus.zip": "is an archive: unpack it",
        "download": "is an archive: unpack it",
        "lora.safetensors": "is a LoRA",
        "lora": "is a LoRA",
        "all.safetensors": "is weights in a single file",
        "one": "is weights in a single file",
        "model.ckpt": "is a file of pickled weights",
        "letter.txt": "is a file, not a folder",
        "flux": "is a folder of FluxPipeline",
        "all": r"pass one of \['mine'\]",
        "unet": "is one module, UNet2DConditionModel: pass the folder that holds unet/",
    }


def test_what_is_no_checkpoint_is_called_by_its_name(
    checkpoint_d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in other_things(tmp_path, checkpoint_d).items():
        for task in (None, "depth"):
            with pytest.raises(CheckpointError, match=f"'{name}' .*{words}"):
                describe(name, task=task)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nowhere", "no such folder: './nowhere'"),
        ("nowhere", "no such folder: 'nowhere'"),
        ("a/b/c", "no such folder: 'a/b/c'"),
        ("lotus-depth-d-v1-0", "Did you mean 'jingheya/lotus-depth-d-v1-0'"),
        ("tiny/disparty-d", "Did you mean 'tiny/disparity-d'"),
        ("random/lotus-e", "Did you mean 'random/lotus-"),
        ("mymodels/lotus-mine", "(?s)no such folder: .*cannot download.*hf download mymodels"),
        (
            "jingheya/lotus-depth-d-v2-0-disparty",
            "(?s)no such folder: .*Did you mean 'jingheya/lotus-depth-d-v2-0-disparity'",
        ),
    ],
)
@pytest.mark.parametrize("task", [None, "disparity"])
def test_a_name_that_leads_nowhere_gives_one_error(
    name: str, words: str, task: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        describe(name, task=task)
    assert "--task with" not in str(caught.value)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_never_answers_is_given_up_soon(
    silent_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", silent_server)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("export.network.hub._HUB_SECONDS", 0.2)
    asked: list[CheckpointError] = []

    def ask() -> None:
        with pytest.raises(CheckpointError, match="cannot download") as caught:
            describe("me/lotus", task="depth")
        asked.append(caught.value)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert asked, "the hub's own client tries for minutes"


REPOSITORY = [
    *("README.md", "model_index.json", "prompt_embedding.safetensors", "lotus.ckpt"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "text_encoder/config.json"),
    *("text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin"),
    *("unet/config.json", f"unet/{WHOLE}", f"unet/{NETWORK}.fp16.safetensors"),
    *(f"unet/{NETWORK}.bin", f"unet/{NETWORK}.fp16.bin", f"unet/{NETWORK}.non_ema.safetensors"),
    *("vae/config.json", f"vae/{WHOLE}.index.json", f"vae/{WHOLE}.index.fp16.json"),
    *(f"vae/{NETWORK}-0000{n}-of-00002.safetensors" for n in (1, 2)),
    *(f"vae/{NETWORK}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)),
]


def test_one_variant_of_each_part_is_downloaded() -> None:
    weights = {n for n in DIFFUSERS_FOLDER.wanted(REPOSITORY) if not n.endswith((".json", ".txt"))}
    assert weights == {
        "prompt_embedding.safetensors",
        f"unet/{WHOLE}",
        *(f"vae/{NETWORK}-0000{n}-of-00002.safetensors" for n in (1, 2)),
        "text_encoder/model.fp16.safetensors",
    }


def test_a_repository_is_downloaded_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a folder here; what is downloaded is what loading asks for."""
    source = save_checkpoint(tmp_path / "source", text_encoder=True)
    resave(source / "text_encoder", "model", "fp16", dtype=torch.float16)
    resave(source / "unet", NETWORK, "fp16", dtype=torch.float16)
    (source / "unet" / f"{NETWORK}.fp16.bin").write_text("pickled")
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]

    def snapshot(name: str, *, allow_patterns: list[str], **_: object) -> str:
        for file in names:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / file, tmp_path / "cache" / file)
        return str(tmp_path / "cache")

    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    loaded = load_checkpoint("me/lotus", task="depth")
    assert loaded.sha256() == load(source).sha256()
    assert not list((tmp_path / "cache").rglob("*.bin"))
    info.siblings = [SimpleNamespace(rfilename="manifest.json")]
    with pytest.raises(CheckpointError, match=r"on the hub has no unet/config\.json"):
        load_checkpoint("me/lotus", task="depth")


def test_other_stems_are_not_weights(tmp_path: Path) -> None:
    assert choose_weights(["lora.safetensors", "model.onnx", "x.safetensors.bak"], NETWORK) is None
    with pytest.raises(CheckpointError, match="found nothing"):
        find_weights(tmp_path / "none")
