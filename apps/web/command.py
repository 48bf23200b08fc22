"""`lotus-edge web BUNDLE [BUNDLE ...]`: a page on which anyone tries bundles."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.serve.command import listen
from runtime.console import say
from runtime.engine import LotusEngine
from runtime.extras import require
from runtime.found import find_pictures
from runtime.options import named, natural, path, positive
from runtime.writing import scratch_folder

_LOCAL = ("127.0.0.1", "localhost", "::1")
_MOST_EXAMPLES = 6
_SWEEP = 60.0  # seconds between two looks for what is old


def add_web(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`web BUNDLE [BUNDLE ...]`."""
    web = commands.add_parser(
        "web",
        help="a page on which anyone tries bundles with a photo",
        description="A web page: a photo in, depth, normals and a 3D scene out. Nothing of a "
        "visitor is kept. It is bound to this machine unless --host says otherwise.",
    )
    web.add_argument(
        "bundles",
        type=named,
        nargs="+",
        metavar="BUNDLE",
        help="one for depth or disparity and normals, or one for each",
    )
    web.add_argument("--backend", help="default: each bundle's target")
    web.add_argument("--device", help="OpenVINO: CPU, GPU, NPU; onnxruntime-cuda: a number")
    web.add_argument("--threads", type=positive, help="of the CPU, for the engine")
    web.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    web.add_argument("--port", type=natural, default=7860, help="default 7860; 0: a free one")
    web.add_argument("--examples", type=path, metavar="DIR", help="photos to try; default: goldens")
    web.add_argument("--queue", type=positive, default=20, help="visitors that may wait (20)")
    web.add_argument("--max-bytes", type=positive, default=32_000_000, help="of a photo (32000000)")
    web.add_argument(
        "--max-pixels", type=positive, default=100_000_000, help="of a photo (100000000)"
    )
    web.set_defaults(run=_web)


def _web(arguments: argparse.Namespace) -> int:
    require("gradio", "trimesh", "OpenEXR")
    with contextlib.ExitStack() as stack:
        how = {"device": arguments.device, "threads": arguments.threads}
        engines = [
            stack.enter_context(LotusEngine(bundle, arguments.backend, **how))
            for bundle in arguments.bundles
        ]
        for engine in engines:
            engine.verify()
            for bucket in engine.manifest.buckets:  # opened now, not by the first visitor
                engine(np.zeros((bucket.height, bucket.width, 3), np.uint8))
        # Before Gradio is imported, which asks once.
        uploads = _keep_all_in(stack.enter_context(scratch_folder()))
        from apps.web.page import create_page, launch
        from apps.web.studio import Studio
        from apps.web.visitors import Visitors

        studio = Studio(engines, arguments.max_pixels)
        examples = _examples(arguments.examples, studio.examples(), uploads / "examples")
        visitors = Visitors(uploads, examples)
        title = " + ".join(engine.manifest.name for engine in engines)
        page = create_page(studio, visitors, title, examples, arguments.queue)
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        port = free_port(arguments.host, arguments.port)
        url = launch(page, arguments.host, port, arguments.max_bytes)
        say(f"lotus-edge: {title} on {url}")
        if arguments.host not in _LOCAL:
            say("whoever reaches this machine may use the page")
        while not stopped.wait(_SWEEP):
            visitors.sweep()
        page.close(verbose=False)
    say("lotus-edge: stopped")
    return 0


def free_port(host: str, port: int) -> int:
    """`port`, or for 0 one that is free now. Raises: LotusError."""
    with listen(host, port) as found:
        return int(found.getsockname()[1])


def _keep_all_in(root: Path) -> Path:
    """Uploads, results and all that Gradio writes lie below `root`, and go with it. Returns the
    folder of uploads.
    """
    uploads = root / "gradio"
    uploads.mkdir()
    tempfile.tempdir = str(root)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return uploads


def _examples(source: Path | None, goldens: list[NDArray[np.uint8]], folder: Path) -> list[Path]:
    """Copies in `folder` of some pictures of `source`, else those of the golden samples. Raises:
    ImageError.
    """
    folder.mkdir()
    paths = []
    if source is None:
        for number, rgb in enumerate(goldens[:_MOST_EXAMPLES], 1):
            paths.append(folder / f"example-{number}.png")
            Image.fromarray(rgb).save(paths[-1])
        return paths
    for number, picture in enumerate(find_pictures([source], folder).pictures[:_MOST_EXAMPLES], 1):
        paths.append(folder / f"example-{number}{picture.path.suffix}")
        shutil.copyfile(picture.path, paths[-1])
    return paths
