"""`lotus-edge triton BUNDLE --output REPOSITORY`: a bundle as a model of Triton."""

from __future__ import annotations

import argparse
import re

from apps.triton.repository import Serving, model_name, write_model
from runtime.backends import BACKENDS, find_backend
from runtime.console import show
from runtime.errors import OutputError
from runtime.hub import find_bundle
from runtime.manifest import Manifest
from runtime.options import named, natural, path, positive


def add_triton(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`triton BUNDLE --output REPOSITORY`."""
    triton = commands.add_parser(
        "triton",
        help="a model repository for NVIDIA's Triton Inference Server",
        description="Write the bundle into a model repository of Triton. The server needs this "
        "package and the bundle's engine in the Python of its Python backend.",
    )
    triton.add_argument(
        "bundle", type=named, help="a folder, or the id of a bundle on the Hugging Face hub"
    )
    triton.add_argument("--output", type=path, required=True, metavar="REPOSITORY")
    triton.add_argument("--name", help="of the model; default: the bundle's name")
    triton.add_argument("--backend", help="default: the bundle's target")
    triton.add_argument(
        "--instances", type=positive, default=1, metavar="N", help="engines in the server (1)"
    )
    triton.add_argument(
        "--delay",
        type=natural,
        default=2000,
        metavar="US",
        help="microseconds that a request waits for others, where the bundle has a batch (2000)",
    )
    triton.add_argument(
        "--queue", type=positive, default=64, metavar="N", help="requests that may wait (64)"
    )
    triton.add_argument("--overwrite", action="store_true", help="replace a model of this command")
    triton.set_defaults(run=_triton)


def _triton(arguments: argparse.Namespace) -> int:
    folder = find_bundle(arguments.bundle)
    manifest = Manifest.load(folder)
    manifest.check_contents(folder)
    name = arguments.name if arguments.name is not None else model_name(manifest)
    if not re.fullmatch(r"\w[\w.-]*", name, flags=re.ASCII):
        raise OutputError(f"a model's name has letters, digits, `_`, `.` and `-`, found {name!r}")
    backend = arguments.backend or manifest.target
    if backend not in BACKENDS:  # it is the server that must have it installed
        find_backend(backend)
    serving = Serving(
        backend=backend,
        instances=arguments.instances,
        delay=arguments.delay,
        queue=arguments.queue,
    )
    model = arguments.output / name
    write_model(folder, manifest, model, serving, overwrite=arguments.overwrite)
    show(f"{model}: start it with `tritonserver --model-repository {arguments.output.absolute()}`")
    return 0
