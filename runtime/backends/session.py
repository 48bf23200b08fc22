"""What every backend has in common: one opened bucket, inputs and outputs checked in one place."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BackendError, BackendMissingError, DamagedBundleError
from runtime.extras import how_to_install
from runtime.manifest import Bucket, Manifest

Arrays: TypeAlias = dict[str, NDArray[np.float32]]
Shapes: TypeAlias = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One entry of the table of backends (`BACKENDS` in runtime/backends/__init__.py).

    `module` is our file in runtime/backends. `package` is the vendor's Python package ("" where
    none is needed), `extra` the extra of lotus-edge that installs it, `hint` what else to know
    about installing it. `option` is what the module needs to tell its backends apart. `on_gpu`:
    it runs on an NVIDIA GPU.
    """

    name: str
    module: str
    package: str = ""
    extra: str = ""
    option: str = ""
    hint: str = ""
    on_gpu: bool = False

    @property
    def how_to_install(self) -> str:
        """The command that installs the vendor's package, with the hint."""
        return f"{how_to_install(self.extra)}{self.hint and f'; {self.hint}'}"


class Session(ABC):
    """One bucket of a bundle, opened by one backend. `open_session` makes one.

    A backend fills three hooks: `_open` (load the file, return the shapes the vendor reports,
    inputs and outputs in one dict), `_run` (float32 arrays in, float32 arrays out, both by tensor
    name) and `_close`. `model_folder` is where the vendor finds the bucket's files while it opens
    them, `folder` the bundle. `backend` is the entry in `BACKENDS` by which the session was opened.
    Vendor errors leave the hooks as BackendError, with the vendor's words.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        bucket: Bucket,
        backend: Backend,
        *,
        model_folder: Path | None = None,
    ) -> None:
        self.folder = folder
        self.model_folder = folder if model_folder is None else model_folder
        self.manifest = manifest
        self.bucket = bucket
        self.backend = backend
        self.input_shapes: Shapes = manifest.input_shapes(bucket)
        self.output_shapes: Shapes = manifest.output_shapes(bucket)
        expected = self.input_shapes | self.output_shapes
        try:
            shapes = self._open()
            if shapes != expected:
                raise DamagedBundleError(
                    f"the model of bucket {bucket} in {folder} has tensors {shapes}, the manifest "
                    f"says {expected}. Copy or build the bundle again."
                )
        except BaseException:
            self.close()
            raise

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run once. Raises: BackendError for wrong or non-finite inputs, a failing vendor or a
        non-finite answer.
        """
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes != self.input_shapes or any(
            array.dtype != np.float32 for array in inputs.values()
        ):
            raise BackendError(
                f"bucket {self.bucket} takes float32 {self.input_shapes}, found {shapes}"
            )
        if not all(
            np.isfinite(array).all() for array in inputs.values()
        ):  # OpenVINO's clamp turns NaN into a number
            raise BackendError(f"an input of bucket {self.bucket} holds NaN or infinite values")
        outputs = self._run(inputs)
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                raise BackendError(
                    f"the output {name!r} of bucket {self.bucket} holds NaN or infinite values: "
                    "this engine or device cannot run this bundle in "
                    f"{self.manifest.precision}. Run `python -m runtime verify` on it."
                )
        return outputs

    def close(self) -> None:
        """Release what the vendor holds; safe to call twice."""
        self._close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _open(self) -> Shapes: ...

    @abstractmethod
    def _run(self, inputs: Arrays) -> Arrays: ...

    @abstractmethod
    def _close(self) -> None: ...


def import_vendor(backend: Backend) -> Any:
    """The vendor's package of a backend.

    Raises: BackendMissingError when it is not installed or its libraries do not load.
    """
    try:
        return importlib.import_module(backend.package)
    except (ImportError, OSError) as error:  # the wheels load their shared libraries on import
        raise BackendMissingError(
            f"the Python package {backend.package!r} of backend {backend.name!r} cannot be "
            f"imported: {error}. {backend.how_to_install}"
        ) from error
