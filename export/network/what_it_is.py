"""What a path is that someone took for a checkpoint: words for an error. Needs no torch."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from export.errors import CheckpointError
from export.network.weights import PICKLES, converting_command, read_header
from runtime.manifest import MANIFEST
from runtime.there import is_file

_LORA = (
    "a LoRA, which only changes another network: load both in diffusers, fuse them "
    "(`fuse_lora`) and save the result"
)
_LORA_FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "adapter_config.json",
)
_BUNDLE = "a bundle, built already: predict with it, or build an engine from it with --from-bundle"
_SINGLE_FILE = (
    "weights in a single file, without configs: load it in diffusers (`from_single_file`) and save "
    "it as a folder (`save_pretrained`)"
)
_BY_SUFFIX = {
    ".gz": "an archive: unpack it and pass the folder",
    ".tar": "an archive: unpack it and pass the folder",
    ".zip": "an archive: unpack it and pass the folder",
    ".onnx": "an ONNX graph: a bundle is built from the checkpoint that it was exported from",
}


def what_it_is(path: Path, marker: str) -> str:
    """What an existing path is that lacks `marker`, the file of a checkpoint; without a verb."""
    return _what_file(path) if is_file(path) else _what_folder(path, marker)


def _what_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        try:
            names = read_header(path)
        except CheckpointError as error:
            return f"a file ({error})"
        return _LORA if any("lora" in name.lower() for name in names) else _SINGLE_FILE
    if suffix in PICKLES:
        command = converting_command([path], path.with_suffix(".safetensors"))
        return f"a file of pickled weights, which are not read; this converts them:\n  {command}"
    if path.name == MANIFEST:
        return f"a file of {_BUNDLE}"
    is_zip = suffix not in _BY_SUFFIX and zipfile.is_zipfile(path)
    return _BY_SUFFIX[".zip"] if is_zip else _BY_SUFFIX.get(suffix, "a file, not a folder")


def _what_folder(folder: Path, marker: str) -> str:
    names = sorted(path.name for path in folder.iterdir())
    marked = {*folder.glob(f"*/{marker}"), *folder.glob(f"snapshots/*/{marker}")}
    inner = sorted(filter(is_file, marked))
    if inner:
        depth = len(Path(marker).parts)
        places = [path.parents[depth - 1].relative_to(folder).as_posix() for path in inner]
        return f"a folder of such folders: pass one of {places[:5]}"
    if MANIFEST in names and "golden.npz" in names:
        return _BUNDLE
    if any(name in names for name in _LORA_FILES):
        return _LORA
    index, config = _read(folder / "model_index.json"), _read(folder / "config.json")
    if "_class_name" in config:
        return (
            f"one module, {config['_class_name']}: pass the folder that holds unet/ and vae/, or "
            "for a UNet alone also --base, the folder or id that has the rest"
        )
    if "_class_name" in index:
        return f"a folder of {index['_class_name']}, without {marker}"
    if names and all(Path(name).suffix == ".safetensors" for name in names):
        return _SINGLE_FILE
    return f"a folder without {marker}: it holds {names[:8]}" if names else "an empty folder"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
