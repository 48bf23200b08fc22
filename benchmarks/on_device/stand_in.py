"""A stand-in for TensorRT whose engine is one kernel of ours: the mean of an image's planes.

The TensorRT backend runs it as it runs any engine: it allocates, copies, captures and replays. So
on a GPU without TensorRT everything of the backend is proven but the vendor.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.on_device.kernel import MEAN
from runtime.backends import BACKENDS
from runtime.backends.tensorrt import BackendSession
from runtime.errors import BackendError
from runtime.manifest import Bucket, Checkpoint, EngineInfo, Golden, Latent, Manifest

Launch = Callable[[str, int, int, int, int], None]
"""`Kernels.launch`."""
NAME = "tensorrt"
_ENGINE = "model.plan"


class StandIn:
    """The vendor. `launch` queues a kernel, `edge` is that of the square image.

    `before` is called as a run is queued, and may raise or return False as a vendor's failure;
    `kernel` is what is launched.
    """

    __version__ = "stand-in"
    DataType = types.SimpleNamespace(FLOAT="float")

    class ILogger:
        """What `runtime.backends.tensorrt.Log` derives its logger from."""

        ERROR, INTERNAL_ERROR, WARNING = "error", "internal", "warning"

        def log(self, severity: str, message: str) -> None:
            """The backend's own takes its place."""

    def __init__(self, launch: Launch, edge: int) -> None:
        self.launch = launch
        self.shapes = {"image": (1, 3, edge, edge), "disparity": (1, 1, edge, edge)}
        self.kernel = MEAN
        self.before: Callable[[int], bool] = lambda stream: True

    def Runtime(self, logger: Any) -> Any:
        """An object that makes the engine of any content."""
        return types.SimpleNamespace(deserialize_cuda_engine=lambda content: self._engine(logger))

    def _engine(self, logger: Any) -> Any:
        names = list(self.shapes)
        return types.SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=lambda index: names[index],
            get_tensor_dtype=lambda name: self.DataType.FLOAT,
            get_tensor_shape=lambda name: self.shapes[name],
            create_execution_context=lambda: _Context(self, logger),
        )


class _Context:
    def __init__(self, vendor: StandIn, logger: Any) -> None:
        self._vendor, self._logger = vendor, logger
        self._addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        vendor, found = self._vendor, self._addresses
        count = vendor.shapes["image"][2] * vendor.shapes["image"][3]
        try:
            if vendor.before(stream):
                vendor.launch(vendor.kernel, stream, found["image"], found["disparity"], count)
                return True
            words = "the stand-in was told to refuse"
        except BackendError as error:
            words = str(error)
        self._logger.log(vendor.ILogger.ERROR, words)
        return False


def open_stand_in(folder: Path, vendor: StandIn, cuda: Any, *, parallel: int = 1) -> BackendSession:
    """A session of the TensorRT backend on the stand-in, past the checks of version and device."""
    (folder / _ENGINE).write_bytes(b"no engine: the stand-in's")
    manifest = _manifest(vendor.shapes["image"][2])

    class OnStandIn(BackendSession):
        def _check_bundle(self) -> Path:
            self._vendor, self._cuda, self.version = vendor, cuda, vendor.__version__
            return self.folder / _ENGINE

    return OnStandIn(folder, manifest, manifest.buckets[0], BACKENDS[NAME], parallel=parallel)


def picture(edge: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """An input of its own for each seed."""
    values = np.random.default_rng(seed).uniform(-1, 1, (1, 3, edge, edge))
    return {"image": values.astype(np.float32)}


def exact(inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """What the kernel must answer, to the last bit: the same operations in the same order."""
    first, second, third = inputs["image"][0]
    mean: NDArray[np.float32] = ((first + second) + third) / np.float32(3)
    return mean[None, None]


def _manifest(edge: int) -> Manifest:
    bucket = Bucket(height=edge, width=edge, graph="model.onnx", engine=_ENGINE)
    return Manifest(
        name="stand-in",
        checkpoint=Checkpoint(id="stand-in", sha256="0" * 64),
        mode="d",
        tasks=["disparity"],
        outputs={"disparity": ""},
        precision="fp32",
        target=NAME,
        opset=20,
        buckets=[bucket],
        latent=Latent(channels=4, downscale=8, scaling_factor=1.0),
        noise_seed=0,
        fixed_noise=False,
        folds=[],
        golden=Golden(file="golden.npz", tolerance=0.0, mean_tolerance=0.0, measured=[]),
        files=[],
        tools={},
        command="",
        created="",
        engine=EngineInfo(
            flavour=NAME, version=StandIn.__version__, compute_capability=None, settings={}
        ),
    )
