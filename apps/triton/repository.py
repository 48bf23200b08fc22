"""A model repository for Triton: the configuration, the program, and the bundle beside it.

Source: Triton's "Model Repository" and "Model Configuration", and the README of its Python backend.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apps.triton.model import ARRAY, BUNDLE, ENCODED, SEED, TritonPythonModel
from runtime.backends import BACKENDS
from runtime.errors import OutputError
from runtime.files import real_file
from runtime.manifest import MANIFEST, Manifest
from runtime.tasks import TASKS
from runtime.there import exists

_MARK = "# lotus-edge"
_VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How Triton runs a model: `instances` (each has an engine, and its memory), how long a request
    waits for others to fill a batch (`delay`, microseconds), and how many may wait (`queue`; more
    are refused at once).
    """

    backend: str
    instances: int = 1
    delay: int = 2000
    queue: int = 64


def model_name(manifest: Manifest) -> str:
    """The bundle's name, as a folder and a URL may have it."""
    return re.sub(r"[^\w.-]+", "-", manifest.name, flags=re.ASCII).strip(".-") or "lotus"


def write_model(
    folder: Path, manifest: Manifest, model: Path, serving: Serving, *, overwrite: bool = False
) -> None:
    """Write the folder `model` of a repository for the bundle in `folder`: whole, or not at all.

    A model that this command wrote is replaced with `overwrite`, nothing else is.
    Raises: OutputError, BundleError where a file of the bundle is missing.
    """
    _check_free(model, overwrite)
    try:
        model.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=model.parent))
        try:
            scratch.chmod(0o755)
            version = scratch / _VERSION
            (version / BUNDLE).mkdir(parents=True)
            (scratch / "config.pbtxt").write_text(config(model.name, manifest, serving))
            (version / "model.py").write_text(_program())
            for name in (*(file.path for file in manifest.files), MANIFEST):
                (version / BUNDLE / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(real_file(folder / name), version / BUNDLE / name)
            if exists(model):
                old = Path(tempfile.mkdtemp(prefix=f".{model.name}-old-", dir=model.parent))
                model.replace(old / model.name)
                scratch.replace(model)
                shutil.rmtree(old)
            else:
                scratch.replace(model)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {model}: {error.strerror or error}") from error


def config(name: str, manifest: Manifest, serving: Serving) -> str:
    """The model's `config.pbtxt`."""
    batches = sorted({bucket.batch for bucket in manifest.buckets})
    kind = "KIND_GPU" if BACKENDS[serving.backend].on_gpu else "KIND_CPU"
    return "\n".join(
        (
            f"{_MARK}: {manifest.name}, {', '.join(manifest.tasks)} ({manifest.precision})",
            f'name: "{name}"',
            'backend: "python"',
            f"max_batch_size: {batches[-1]}",
            "input [",
            ",\n".join(_inputs(manifest)),
            "]",
            "output [",
            ",\n".join(_outputs(manifest)),
            "]",
            f"instance_group [ {{ count: {serving.instances} kind: {kind} }} ]",
            "dynamic_batching {",
            *(f"  preferred_batch_size: {batch}" for batch in batches if batch > 1),
            *([f"  max_queue_delay_microseconds: {serving.delay}"] if batches[-1] > 1 else []),
            f"  default_queue_policy {{ max_queue_size: {serving.queue} }}",
            "}",
            f'parameters {{ key: "backend" value: {{ string_value: "{serving.backend}" }} }}',
            "",
        )
    )


def _inputs(manifest: Manifest) -> Iterator[str]:
    optional = "optional: true allow_ragged_batch: true"
    yield f'  {{ name: "{ARRAY}" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] {optional} }}'
    yield f'  {{ name: "{ENCODED}" data_type: TYPE_STRING dims: [ 1 ] {optional} }}'
    if manifest.mode == "g" and not manifest.fixed_noise:
        yield f'  {{ name: "{SEED}" data_type: TYPE_INT64 dims: [ 1 ] {optional} }}'


def _outputs(manifest: Manifest) -> Iterator[str]:
    for task in manifest.tasks:
        channels = TASKS[task].channels
        dims = "-1, -1" if channels == 1 else f"-1, -1, {channels}"
        yield f'  {{ name: "{task}" data_type: TYPE_FP32 dims: [ {dims} ] }}'


def _program() -> str:
    """Installed the module has another name than in a clone."""
    module = TritonPythonModel.__module__
    return (
        '"""Triton\'s Python backend runs this. Its Python needs lotus-edge and the bundle\'s '
        'engine."""\n\n'
        f"from {module} import TritonPythonModel\n\n"
        '__all__ = ["TritonPythonModel"]\n'
    )


def _check_free(model: Path, overwrite: bool) -> None:
    if not os.path.lexists(model):
        return
    try:
        ours = (model / "config.pbtxt").read_text(errors="replace").startswith(_MARK)
    except OSError:
        ours = False
    if not ours:
        raise OutputError(
            f"{model} exists and was not written by this command; choose another --name or --output"
        )
    if not overwrite:
        raise OutputError(f"{model} exists; replace it with --overwrite, or choose another --name")
