"""Which extra of this project brings a package: what a command says where one is missing."""

from __future__ import annotations

import importlib.util
import sys
from types import TracebackType

from runtime.errors import BackendMissingError

EXTRAS = {
    "cpu": ("onnxruntime",),
    "openvino": ("openvino",),
    "gpu": ("tensorrt", "cuda"),
    "rtx": ("tensorrt_rtx",),
    "export": (
        "torch",
        "diffusers",
        "transformers",
        "onnx",
        "onnxscript",
        "onnx_ir",
        "polygraphy",
        "safetensors",
        "huggingface_hub",
        "tqdm",
    ),
    "cluster": ("ray", "pyarrow"),
    "scene": ("trimesh", "OpenEXR", "fast_simplification"),
    "fast": ("isal", "numba", "llvmlite"),
    "serve": (
        "fastapi",
        "fastapi_offline",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "python_multipart",
    ),
    "web": ("gradio",),
    "video": ("av",),
    "flow": ("cv2",),
    "ros": ("rosbags",),
    "views": ("open3d", "pycolmap", "libusb_package"),
    "peers": ("nncf", "torchao"),
    "dev": ("yaml", "matplotlib", "jsonschema", "pytest"),
}
"""The packages, by the names that they are imported by, of each extra in pyproject.toml."""

_ALONE = {"numpy": "numpy", "PIL": "pillow", "atheris": "atheris"}
"""Packages to be installed by themselves, with the names that they are installed by."""

_NOT_EVERYWHERE = {
    "open3d": "there is none for Python 3.13 and newer on Macs with Intel",
    "pycolmap": "there is none for Linux on ARM: there a transforms.json of undistorted pictures "
    "works",
}
"""Where an extra leaves a package out, since nobody built it."""


def how_to_install(extra: str) -> str:
    """What to type to get an extra of this project."""
    return f'`pip install -e ".[{extra}]"` in the clone'  # in a wheel another: setup.py


def how_to_get(package: str) -> str | None:
    """How to get a package that cannot be imported, in one sentence; None for any that is not of an
    extra.
    """
    name = package.partition(".")[0]
    if name in _ALONE:
        return f"this needs the package {name!r}: `pip install {_ALONE[name]}`"
    extra = next((extra for extra, names in EXTRAS.items() if name in names), None)
    if extra is None:
        return None
    advice = f"this needs the extra `{extra}` (there is no package {name!r}): "
    nowhere = f"; {_NOT_EVERYWHERE[name]}" if name in _NOT_EVERYWHERE else ""
    return f"{advice}{how_to_install(extra)}{nowhere}"


def require(*packages: str) -> None:
    """Before work that would be in vain. Raises: ModuleNotFoundError, as their import would."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def explain_missing_packages() -> None:
    """From here on this process ends with one sentence and status 1 where a package of an extra is
    not installed. Every other exception is shown as ever.

    A command calls it before it imports anything of an extra; a library never does.
    """
    sys.excepthook = _explain


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    missing = error.__cause__ if isinstance(error, BackendMissingError) else error
    advice = how_to_get(missing.name or "") if isinstance(missing, ModuleNotFoundError) else None
    if advice is None:
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"error: {advice}\n")
