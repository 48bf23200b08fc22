"""`lotus-edge serve BUNDLE`: predictions over HTTP."""

from __future__ import annotations

import argparse
import os
import signal
import socket
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from runtime.console import say
from runtime.engine import LotusEngine
from runtime.errors import LotusError
from runtime.extras import require
from runtime.options import named, natural, positive, seconds

if TYPE_CHECKING:
    from apps.serve.pool import Pool

TOKEN = "LOTUS_EDGE_TOKEN"
_GRACE = 5.0  # seconds beyond the deadline, for answers to be written
_UNDER_WAY = 2**17  # bytes of an answer that the system holds for a client
_LOCAL = ("127.0.0.1", "localhost", "::1")


def add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`serve BUNDLE`."""
    serve = commands.add_parser(
        "serve",
        help="predictions over HTTP",
        description="Predictions over HTTP: POST a picture to /v1/predict. /docs describes it. "
        f"Where the environment has {TOKEN}, clients need that token. SIGTERM finishes what was "
        "accepted.",
    )
    serve.add_argument("bundle", type=named, help="a folder, or the id of a bundle on the hub")
    serve.add_argument("--backend", help="default: the bundle's target")
    serve.add_argument("--device", help="OpenVINO: CPU, GPU, NPU; onnxruntime-cuda: a number")
    serve.add_argument("--threads", type=positive, help="of the CPU, for the engine")
    serve.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    serve.add_argument("--port", type=natural, default=8000, help="default 8000; 0: a free one")
    serve.add_argument(
        "--workers", type=positive, default=1, help="pictures at once, with one engine (1)"
    )
    serve.add_argument(
        "--queue", type=natural, default=16, help="requests that may wait; more get 503 (16)"
    )
    serve.add_argument(
        "--deadline",
        type=seconds,
        default=30.0,
        help="seconds for one request, then 504; and for a client to take a slice of its answer, "
        "then the connection ends (30)",
    )
    serve.add_argument(
        "--max-bytes", type=positive, default=32_000_000, help="of a picture; then 413 (32000000)"
    )
    serve.add_argument(
        "--max-pixels", type=positive, default=40_000_000, help="of a picture; then 422 (40000000)"
    )
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    require("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "python_multipart")
    from apps.serve.app import Limits, create_app
    from apps.serve.metrics import Metrics
    from apps.serve.pool import Pool

    engine = LotusEngine(
        arguments.bundle,
        arguments.backend,
        parallel=arguments.workers,
        device=arguments.device,
        threads=arguments.threads,
    )
    limits = Limits(
        max_bytes=arguments.max_bytes,
        max_pixels=arguments.max_pixels,
        deadline=arguments.deadline,
        token=os.environ.get(TOKEN) or None,
    )
    metrics = Metrics()
    listening = listen(arguments.host, arguments.port)
    pool = Pool(engine, metrics, workers=arguments.workers, queue=arguments.queue)
    url = f"http://{_shown(arguments.host)}:{listening.getsockname()[1]}"
    say(f"lotus-edge: {engine.manifest.name} on {url}, described on {url}/docs")
    if arguments.host not in _LOCAL and limits.token is None:
        say(f"anyone who reaches this machine may use it: set {TOKEN} to ask for a token")
    proof = _run(create_app(pool, limits, metrics), listening, pool, arguments.deadline)
    if error := proof.exception():
        raise error
    say(f"lotus-edge: stopped after {pool.accepted} predictions")
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises: LotusError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LotusError(
            f"cannot listen on {host}, port {port}: {reason}. Choose another with --host and --port"
        ) from error
    # Connections inherit it. The kernel lets a buffer grow to megabytes, and asks for more once a
    # third has left: a client that is only slow would take too long for that.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNDER_WAY)
    return listening


def _run(app: Any, listening: socket.socket, pool: Pool, deadline: float) -> Future[None]:
    """Serve until a signal comes or the bundle turns out wrong. Returns the finished proof."""
    import uvicorn

    from apps.serve.sending import protocol

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol(deadline, pool.metrics),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(deadline + _GRACE),
        )
    )

    def stop(*reasons: object) -> None:
        server.should_exit = True

    # uvicorn finishes what it accepted, and then raises the signal again for these.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    def judge(proof: Future[None]) -> None:
        if proof.exception() is None:
            say("lotus-edge: the golden sample passed; ready")
        else:
            stop()

    proof = pool.start()
    proof.add_done_callback(judge)
    try:
        server.run(sockets=[listening])
    finally:
        pool.close()
    return proof


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
