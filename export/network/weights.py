"""Which files of a module's folder hold its weights, by their names and headers. Needs no torch.

diffusers and transformers write one file, or shards with an index, in full precision or as a
variant such as fp16:

    diffusion_pytorch_model.safetensors
    diffusion_pytorch_model.fp16.safetensors
    diffusion_pytorch_model.fp16-00001-of-00002.safetensors
    diffusion_pytorch_model.safetensors.index.fp16.json
"""

from __future__ import annotations

import json
import math
import re
import shlex
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import CheckpointError
from runtime.there import is_dir, is_file

NETWORK, TEXT_ENCODER = "diffusion_pytorch_model", "model"
"""What the names begin with: diffusers' modules, and those of transformers."""

_FILE = re.compile(
    r"(?P<stem>\w+)(?:\.(?P<variant>\w+))?(?:-(?P<shard>\d+)-of-(?P<count>\d+))?"
    r"(?:\.(?P<late>\w+))?\.safetensors"
)
_INDEX = re.compile(
    r"(?P<stem>\w+)(?:\.(?P<variant>\w+))?\.safetensors\.index(?:\.(?P<late>\w+))?\.json"
)
_FIRST = ("", "fp16", "bf16")  # full precision before half; other variants after these
_FLOATS = {"F64", "F32", "F16", "BF16"}
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_LFS = b"version https://git-lfs"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of files that may run code when they are read, and are not."""
_PICKLE_STEMS = {NETWORK: (NETWORK,), TEXT_ENCODER: ("pytorch_model", TEXT_ENCODER)}


@dataclass(frozen=True, kw_only=True)
class WeightNames:
    """One set of weights by the names of its files: whole, or shards. `variant` is "" in full
    precision; `others` are the variants that lie beside it.
    """

    variant: str
    whole: str | None
    shards: tuple[str, ...]
    index: str | None
    others: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The files of this set that are there; shards before a whole file, as diffusers reads."""
        weights = self.shards or ((self.whole,) if self.whole else ())
        return (*weights, self.index) if self.index and self.shards else weights


def choose_weights(names: Iterable[str], stem: str) -> WeightNames | None:
    """The set of weights that is read of a folder with these file names; None where there is none.

    Full precision comes first, then fp16, then bf16, then any other variant.
    """
    sets: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        if found := _FILE.fullmatch(name):
            kind = "shards" if found["shard"] else "whole"
        elif found := _INDEX.fullmatch(name):
            kind = "index"
        if found and found["stem"] == stem:
            kinds = sets.setdefault(found["variant"] or found["late"] or "", {})
            kinds.setdefault(kind, []).append(name)
    if not sets:
        return None

    def rank(variant: str) -> tuple[bool, int, str]:
        place = _FIRST.index(variant) if variant in _FIRST else len(_FIRST)
        return sets[variant].keys() == {"index"}, place, variant

    variant, *others = sorted(sets, key=rank)
    kinds = sets[variant]
    return WeightNames(
        variant=variant,
        whole=next(iter(kinds.get("whole", [])), None),
        shards=tuple(kinds.get("shards", [])),
        index=next(iter(kinds.get("index", [])), None),
        others=tuple(other for other in others if sets[other].keys() != {"index"}),
    )


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a module's folder: safetensors files whose headers are whole.

    `parameters` is how many numbers they hold. `remark` says what else lies there and is not read.
    """

    files: tuple[Path, ...]
    parameters: int
    remark: str | None


def find_weights(folder: Path, stem: str = NETWORK) -> Weights:
    """The weights that are read of a module's folder.

    Raises: CheckpointError, naming the file that is missing or damaged.
    """
    names = sorted(path.name for path in folder.iterdir()) if is_dir(folder) else []
    chosen = choose_weights(names, stem)
    if chosen is None:
        raise CheckpointError(
            f"{folder} needs {stem}.safetensors, whole or in shards, in full precision or as a "
            f"variant such as fp16; found {names or 'nothing'}."
            + _pickle_advice(folder, names, stem)
        )
    files = tuple(_files(folder, chosen))
    taken = f"{chosen.variant or 'full precision'} is read"
    left = [f"the variant {other!r}" if other else "full precision" for other in chosen.others]
    if chosen.shards and chosen.whole:
        left.append(chosen.whole)
    return Weights(
        files=files,
        parameters=sum(count_numbers(read_header(path)) for path in files),
        remark=f"{folder}: {taken}, and not {', '.join(left)} beside it" if left else None,
    )


def converting_command(pickles: Sequence[Path], target: Path) -> str:
    """The line for a shell that writes pickled weights as one safetensors file. It runs no code
    of theirs (`weights_only`).
    """
    files = json.dumps([path.as_posix() for path in pickles], ensure_ascii=False)
    program = (
        "import torch; from safetensors.torch import save_file; "
        f'read = [torch.load(f, map_location="cpu", weights_only=True) for f in {files}]; '
        "save_file({k: v.clone().contiguous() for d in read "
        'for k, v in d.get("state_dict", d).items() if hasattr(v, "dtype")}, '
        f'{json.dumps(target.as_posix(), ensure_ascii=False)}, {{"format": "pt"}})'
    )
    return f"python -c {shlex.quote(program)}"


def _pickle_advice(folder: Path, names: Sequence[str], stem: str) -> str:
    """What to do about the pickled weights of a folder: whole ones first, else all shards."""
    for start in _PICKLE_STEMS[stem]:
        found = [n for n in names if n.startswith(start) and n.endswith(PICKLES)]
        whole = [name for name in found if "-of-" not in name]
        chosen = sorted(whole, key=len)[:1] or found
        if chosen:
            command = converting_command(
                [folder / name for name in chosen], folder / f"{stem}.safetensors"
            )
            return f" Pickled weights are not read; this converts them:\n  {command}"
    return ""


def count_parameters(folder: Path) -> int:
    """Numbers in the weights of a module's folder; 0 where they are not there, or not whole."""
    try:
        return find_weights(folder).parameters
    except CheckpointError:
        return 0


def read_header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name: `dtype`, `shape`, `data_offsets`.

    Raises: CheckpointError for a file that is none, is cut short or holds quantised weights.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            if start + stream.read(len(_LFS) - 8) == _LFS:
                raise CheckpointError(
                    f"{path} is a pointer of Git LFS, not the weights: fetch them with "
                    "`git lfs pull`, or with `hf download`"
                )
            stream.seek(8)
            (length,) = struct.unpack("<Q", start)
            if length > min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        types = {str(entry["dtype"]) for entry in header.values()}
        count_numbers(header)  # shapes that are none are found here
        whole = 8 + length + end == size
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(
            f"cannot load {path}: it is no whole safetensors file: {error}"
        ) from None
    if not whole:
        raise CheckpointError(
            f"cannot load {path}: it has {size} bytes, and its header describes "
            f"{8 + length + end}: the copy was cut short or the file was changed"
        )
    if odd := sorted(types - _FLOATS - {"I64"}):  # int64: the text encoder's position_ids
        raise CheckpointError(
            f"{path} holds weights of type {', '.join(odd)}: quantised ones cannot be read back "
            f"exactly; pass weights in {', '.join(sorted(_FLOATS))}"
        )
    return header


def count_numbers(header: dict[str, Any]) -> int:
    """How many numbers the tensors of a header have."""
    return sum(math.prod(entry["shape"]) for entry in header.values())


def _files(folder: Path, chosen: WeightNames) -> Iterable[Path]:
    """The files of a set, all of them. Raises: CheckpointError."""
    names = set(chosen.names) - {chosen.index}
    if chosen.index is not None and not (chosen.whole and not chosen.shards):
        names = _names_in_index(folder / chosen.index)
        source = f"named in {chosen.index}"
    elif chosen.shards:
        names = _all_shards(chosen.shards[0])
        source = f"a shard beside {chosen.shards[0]}"
    for name in sorted(names):
        if not is_file(folder / name):
            raise CheckpointError(f"{folder / name} is missing, {source}: copy it too")
        yield folder / name


def _all_shards(name: str) -> set[str]:
    """The names of all shards by that of one."""
    found = re.search(r"-(\d+)-of-(\d+)", name)
    assert found is not None  # by _FILE
    start, digits, count = name[: found.start(1)], len(found[1]), int(found[2])
    rest = name[found.end(1) :]
    return {f"{start}{number:0{digits}}{rest}" for number in range(1, count + 1)}


def _names_in_index(path: Path) -> set[str]:
    """The shards that an index names. Raises: CheckpointError."""
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no index of weights: {error}") from None
    for name in names:
        if not isinstance(name, str) or not name or re.search(r"[/\\:\0]", name) or name == "..":
            raise CheckpointError(
                f"{path} names the shard {name!r}, which is not a file name: shards lie beside "
                "their index"
            )
    return names
