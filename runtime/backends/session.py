"""What every backend has in common: one opened bucket, its inputs and outputs checked in one place,
and several threads kept apart.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.backends.cores import restricted_cores
from runtime.backends.graph_files import check_weight_files
from runtime.backends.pool import Pool
from runtime.backends.process import Home
from runtime.backends.versions import KnownVersions, too_old, version_of
from runtime.compiled import Kept
from runtime.errors import (
    BackendError,
    BackendMissingError,
    DamagedBundleError,
    LotusError,
    UnsafePathError,
)
from runtime.extras import how_to_install
from runtime.files import ending
from runtime.manifest import Bucket, Manifest

Arrays: TypeAlias = dict[str, NDArray[np.float32]]
Shapes: TypeAlias = dict[str, tuple[int, ...]]

_MOST_LINES, _MOST_CHARACTERS = 20, 2000  # of a vendor's message


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One entry of the table of backends (`BACKENDS` in runtime/backends/__init__.py).

    `module` is our file in runtime/backends. `package` is the vendor's Python package ("" where
    none is needed), `product` its name in messages, `extra` the extra of lotus-edge that installs
    it, `hint` what else to know about installing it. `option` is what the module needs to tell its
    backends apart. `on_gpu`: it runs on an NVIDIA GPU. `devices` says in words which devices can be
    chosen ("": none, for the reason `no_devices`). `threads`: it computes on the CPU where no other
    device is chosen, and the number of threads can be chosen. `known` says from which version on
    the package is right. With `replays` a run records what later runs replay. `keeps` names the
    precisions of bundles whose compiled networks are worth keeping (runtime/compiled.py): opening
    from them is faster, or takes less memory; such a network takes at most `growth` bytes on the
    disk for each of the bundle. `environment` are variables that are set before the
    package is imported; one that is set already stays. `without`: optional packages that it must
    not find then.
    """

    name: str
    module: str
    package: str = ""
    product: str = ""
    extra: str = ""
    option: str = ""
    hint: str = ""
    on_gpu: bool = False
    devices: str = ""
    no_devices: str = ""
    threads: bool = False
    known: tuple[KnownVersions, ...] = ()
    replays: bool = False
    keeps: tuple[str, ...] = ()
    growth: float = 2.2
    environment: tuple[tuple[str, str], ...] = ()
    without: tuple[str, ...] = ()

    @property
    def how_to_install(self) -> str:
        """The command that installs the vendor's package, with the hint."""
        return "; ".join(filter(None, [self.extra and how_to_install(self.extra), self.hint]))


@dataclass(frozen=True)
class Tensor:
    """Type and shape of one input or output; both may be what a vendor calls them."""

    dtype: str
    shape: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


Tensors: TypeAlias = dict[str, Tensor]


class Session(ABC):
    """One bucket of a bundle, opened by one backend. `open_session` makes one.

    A backend fills three hooks and one more where it needs it:

    - `_open` loads the file and returns the tensors that the vendor reports, inputs and outputs in
      one dict. It gets the vendor's package from `_import`.
    - `_new_runner` makes what one run needs for itself (a request, a context with its buffers); the
      default is nothing.
    - `_run` takes a runner and float32 arrays, and returns arrays that no later run changes, both
      by tensor name.
    - `_close` releases everything.

    What a vendor raises in a hook leaves the session as BackendError, with the vendor's words.
    `model_folder` is where the vendor finds the bucket's files while it opens them, `folder` the
    bundle. `backend` is the entry in `BACKENDS` by which the session was opened, `version` that of
    the vendor's package ("" where there is none).

    `device` is the one that was asked for, None the backend's default; `threads` how many threads a
    run on the CPU uses: what was asked for, else the cores that this process may use where they are
    fewer than the machine's, else None, which leaves it to the vendor.

    `compiled` is what an earlier session of this bucket compiled, and `keep_in` a folder in which
    this session shall leave it; either may be None, and one of them is.

    Threads may call a session at once: up to `parallel` runs are in flight, each with a runner of
    its own, and further calls wait. A session cannot be pickled, nor used in a forked child.
    """

    version = ""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        bucket: Bucket,
        backend: Backend,
        *,
        model_folder: Path | None = None,
        parallel: int = 1,
        device: str | None = None,
        threads: int | None = None,
        compiled: Kept | None = None,
        keep_in: Path | None = None,
    ) -> None:
        if parallel < 1:
            raise BackendError(f"parallel is the number of runs at once, found {parallel}")
        check_placement(backend, device, threads)
        self.folder = folder
        self.model_folder = folder if model_folder is None else model_folder
        self.manifest = manifest
        self.bucket = bucket
        self.backend = backend
        self.parallel = parallel
        self.compiled = compiled
        self.keep_in = keep_in
        self.device = device
        self.threads = threads or (restricted_cores() if backend.threads else None)
        self.input_shapes: Shapes = manifest.input_shapes(bucket)
        self.output_shapes: Shapes = manifest.output_shapes(bucket)
        self._home = Home()
        _opened.add(self)
        self._runners: Pool[Any] = Pool(
            limit=parallel, owner=f"the session of bucket {bucket} in {folder}"
        )
        expected = _float32(self.input_shapes | self.output_shapes)
        try:
            with self._vendor_errors("open"):
                found = self._open()
                if found != expected:
                    raise DamagedBundleError(
                        f"the model of bucket {bucket} in {folder} has tensors {_words(found)}, "
                        f"the manifest says {_words(expected)}. Copy or build the bundle again."
                    )
                with self._runners.borrow(self._new_runner):
                    pass  # one is made now, so that a failure is one of opening
        except BaseException:
            self.close()
            raise

    @property
    def opened_from(self) -> str:
        """The identity of `compiled`; "" where the bundle itself was opened."""
        return "" if self.compiled is None else self.compiled.identity

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run once. Waits for a free runner.

        Raises: BackendError for wrong or non-finite inputs, a failing vendor, a non-finite answer,
        a closed session and a forked child; DamagedBundleError for an answer of another type or
        shape than the manifest says.
        """
        self._home.check(str(self.folder))
        given = _tensors(inputs)
        if given != _float32(self.input_shapes):
            raise BackendError(
                f"bucket {self.bucket} takes float32 {self.input_shapes}, found {_words(given)}"
            )
        if not all(
            np.isfinite(array).all() for array in inputs.values()
        ):  # OpenVINO's clamp turns NaN into a number
            raise BackendError(f"an input of bucket {self.bucket} holds NaN or infinite values")
        with self._vendor_errors("run"), self._runners.borrow(self._new_runner) as runner:
            outputs = self._run(runner, inputs)
        self._check_outputs(outputs)
        return outputs

    def close(self) -> None:
        """Wait for the runs in flight, then release what the vendor holds. Safe to call twice, and
        without effect in a forked child: what the vendor holds belongs to the parent.

        Raises: BackendError from a handler of a signal that interrupts a run of the same thread.
        """
        if not self._home.is_here:
            return
        self._runners.close()
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

    def __reduce__(self) -> NoReturn:
        raise BackendError(
            f"an opened bundle ({self.folder}) cannot be pickled or copied; pass its path, and "
            "open it in each process"
        )

    def _import(self) -> Any:
        """The vendor's package, with its version noted.

        Raises: BackendMissingError; BackendError for a version that is known to be wrong for this
        bundle.
        """
        vendor = import_vendor(self.backend)
        self.version = version_of(vendor)
        if needed := too_old(self.version, self.backend.known, self.manifest.opset):
            raise BackendError(
                f"{self.backend.product} {self.version} is installed, which cannot open or answers "
                f"wrong a graph of ONNX opset {self.manifest.opset} as in {self.folder}: it "
                f"{needed}"
            )
        return vendor

    def _graph(self) -> Path:
        """The bucket's ONNX graph, which takes weights from files beside it that were listed, and
        are compared with their checksums, for this bucket.

        Raises: UnsafePathError; BackendError for what is no ONNX graph.
        """
        name, path = PurePosixPath(self.bucket.graph), self.model_folder / self.bucket.graph
        if ending(path) != ".onnx":  # by another ending OpenVINO reads other formats
            raise UnsafePathError(
                f"{path} is not opened: a graph's name ends in .onnx. Do not use this bundle."
            )
        if self.manifest.files:  # a bundle that is being built lists none yet
            listed = [PurePosixPath(file.path) for file in self.manifest.files_of(self.bucket)]
            check_weight_files(path, {file.name for file in listed if file.parent == name.parent})
        return path

    @abstractmethod
    def _open(self) -> Tensors: ...

    def _new_runner(self) -> Any:
        return None

    @abstractmethod
    def _run(self, runner: Any, inputs: Arrays) -> Arrays: ...

    @abstractmethod
    def _close(self) -> None: ...

    @contextmanager
    def _vendor_errors(self, task: str) -> Iterator[None]:
        """Turn what a vendor raises into BackendError. Vendors' types have no base but Exception in
        common.
        """
        try:
            yield
        except LotusError:
            raise
        except Exception as error:
            vendor = f"{self.backend.product or self.backend.name} {self.version}".strip()
            path = self.folder / (self.bucket.engine or self.bucket.graph)
            raise BackendError(
                f"{vendor} cannot {task} {path}: {excerpt(str(error) or type(error).__name__)}\n"
                "`python -m runtime verify` tells whether the bundle is whole and right here."
            ) from error

    def _check_outputs(self, outputs: Arrays) -> None:
        found, expected = _tensors(outputs), _float32(self.output_shapes)
        if found != expected:
            raise DamagedBundleError(
                f"the model of bucket {self.bucket} in {self.folder} answered {_words(found)}, the "
                f"manifest says {_words(expected)}. Copy or build the bundle again."
            )
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                raise BackendError(
                    f"the output {name!r} of bucket {self.bucket} holds NaN or infinite values: "
                    "this engine or device cannot run this bundle in "
                    f"{self.manifest.precision}. Run `python -m runtime verify` on it."
                )


def check_placement(backend: Backend, device: str | None, threads: int | None) -> None:
    """Refuse a device or a number of threads that would have no effect. Raises: BackendError."""
    if device is not None and not (isinstance(device, str) and device):
        raise BackendError(f"device is a name such as 'CPU' or '0', found {device!r}")
    if device is not None and not backend.devices:
        raise BackendError(
            f"backend {backend.name!r} takes no device, found {device!r}: {backend.no_devices}"
        )
    if threads is None:
        return
    if type(threads) is not int or threads < 1:
        raise BackendError(f"threads is a number from 1 on, found {threads!r}")
    if not backend.threads:
        raise BackendError(
            f"backend {backend.name!r} does not compute on the CPU: leave threads={threads} out"
        )


_opened: weakref.WeakSet[Session] = weakref.WeakSet()


def _never_free() -> None:
    """Hold the sessions of the parent for as long as a forked child lives: their destructors would
    wait for threads that the child does not have.
    """
    for session in _opened:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_never_free)


def import_vendor(backend: Backend) -> Any:
    """The vendor's package of a backend.

    Raises: BackendMissingError when it is not installed or its libraries do not load.
    """
    for name, value in backend.environment:
        os.environ.setdefault(name, value)
    try:
        with _hidden(backend.without):
            return importlib.import_module(backend.package)
    except (ImportError, OSError) as error:  # the wheels load their shared libraries on import
        raise BackendMissingError(
            f"the Python package {backend.package!r} of backend {backend.name!r} cannot be "
            f"imported: {error}. {backend.how_to_install}"
        ) from error


@contextmanager
def _hidden(modules: tuple[str, ...]) -> Iterator[None]:
    """While the block runs these cannot be imported; what was imported before stays."""
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None, as Python has it
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def excerpt(words: str) -> str:
    """The first lines of a vendor's message, without empty ones; vendors print hundreds."""
    lines = [line.rstrip() for line in words.splitlines() if line.strip()]
    text = "\n".join(lines[:_MOST_LINES])[:_MOST_CHARACTERS]
    left = len(lines) - text.count("\n") - 1
    return f"{text}\n(and {left} more lines)" if left > 0 else text


def _tensors(arrays: Arrays) -> Tensors:
    """Type and shape of each array; of what is no array, the name of its type."""
    return {
        name: Tensor(str(array.dtype), array.shape)
        if isinstance(array, np.ndarray)
        else Tensor(type(array).__name__, ())
        for name, array in arrays.items()
    }


def _float32(shapes: Shapes) -> Tensors:
    return {name: Tensor("float32", shape) for name, shape in shapes.items()}


def _words(tensors: Tensors) -> str:
    return ", ".join(f"{name} {tensor}" for name, tensor in tensors.items())
