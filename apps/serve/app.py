"""The HTTP side: routes, errors, the token. FastAPI checks parameters and writes the OpenAPI page,
which loads nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from apps.serve.answers import FORMS, check_task, choose_form
from apps.serve.counting import Counting
from apps.serve.errors import (
    LateError,
    NoMemoryError,
    ServeError,
    UnauthorizedError,
    UnusableError,
)
from apps.serve.metrics import Metrics
from apps.serve.pool import Pool
from apps.serve.reading import read_picture
from apps.serve.sending import Sliced
from apps.serve.work import Work
from runtime.console import one_line, say
from runtime.errors import ImageError, LotusError
from runtime.tasks import TASKS

_PICTURE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "required": ["image"], "properties": {"image": _PICTURE}}
_BODY = {
    "required": True,
    "content": {"multipart/form-data": {"schema": _FORM}, "image/*": {"schema": _PICTURE}},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "no request that can be read"},
    401: {"description": "a token is wanted"},
    406: {"description": "Accept names nothing that is written here"},
    413: {"description": "the picture has too many bytes"},
    422: {"description": "the picture or a parameter cannot be used"},
    503: {"description": "not ready, too much to do, or too little memory: see Retry-After"},
    504: {"description": "the answer was not there in time"},
}
_MEMORY_PAUSE = 10  # seconds after which others may have given memory back
_BEARER = HTTPBearer(auto_error=False, description="where the server has a token")
_ANSWER = {
    "description": "The prediction, as Accept has it: "
    + "; ".join(f"`{form.media_type}`: {form.meaning}" for form in FORMS),
    "content": {form.media_type: {} for form in FORMS},
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may take: bytes of its picture, pixels of it, seconds from the first byte to
    the answer. `token`: what a client has to know, None for nothing.
    """

    max_bytes: int = 32_000_000
    max_pixels: int = 40_000_000
    deadline: float = 30.0
    token: str | None = None


def create_app(pool: Pool, limits: Limits, metrics: Metrics) -> FastAPI:
    """The application. Who makes it starts and closes the pool."""
    app: FastAPI = FastAPIOffline(
        title="lotus-edge",
        description="Depth, disparity and surface normals from one picture.",
    )
    app.add_middleware(Counting, metrics=metrics)
    _add_errors(app, metrics)
    allowed = [Depends(_gate(limits.token))]
    _add_predict(app, pool, limits, metrics, allowed)

    @app.get("/v1/bundle", dependencies=allowed, summary="What the bundle says about itself")
    async def bundle() -> dict[str, Any]:
        return describe(pool, limits)

    @app.get("/healthz", summary="Whether the process lives", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok\n"

    @app.get(
        "/readyz",
        summary="Whether the golden sample passed here, and predictions are taken",
        response_class=PlainTextResponse,
        responses={503: {"description": "not yet, or never: the text says why"}},
    )
    async def readyz() -> Response:
        problem = pool.problem
        return PlainTextResponse(f"{problem or 'ready'}\n", 503 if problem else 200)

    @app.get("/metrics", dependencies=allowed, summary="Counters for Prometheus")
    async def page() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _add_predict(
    app: FastAPI, pool: Pool, limits: Limits, metrics: Metrics, allowed: list[Any]
) -> None:
    tasks = pool.engine.manifest.tasks

    @app.post(
        "/v1/predict",
        dependencies=allowed,
        summary="Predict for one picture",
        response_class=Response,
        responses={200: _ANSWER, **_ERRORS},
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(
        request: Request,
        task: Annotated[str | None, Query(description="one of the bundle's tasks")] = None,
        seed: Annotated[int | None, Query(description="the noise of mode G")] = None,
        resize: Annotated[
            Literal["bilinear", "nearest", "none"],
            Query(description="to the picture's size; none: the size that the network has"),
        ] = "bilinear",
    ) -> Response:
        """The body is the picture as it lies on the disk, or a multipart form with the field
        `image`. `Accept` says what comes back.
        """
        form = choose_form(request.headers.get("accept"))
        check_task(form, task, tasks)
        work = Work(
            body=b"",
            form=form,
            task=task,
            seed=seed,
            resize=None if resize == "none" else resize,
            max_pixels=limits.max_pixels,
            metrics=metrics,
        )

        async def answered() -> bytes:
            with work.stage("read"):
                work.body = await read_picture(request, limits.max_bytes)
            return await pool.run(work)

        with contextlib.ExitStack() as held:
            held.enter_context(pool.place())
            try:
                with work.stage("total"):
                    content = await asyncio.wait_for(answered(), limits.deadline)
            except asyncio.TimeoutError as error:
                raise LateError(
                    f"there was no answer within {limits.deadline:g} s: send a smaller picture, or "
                    "come again when there is less to do"
                ) from error
            took = ", ".join(f"{name};dur={1000 * each:.1f}" for name, each in work.seconds.items())
            # The place goes with the answer, until the client has taken it.
            return Sliced(
                content, held.pop_all(), media_type=form.media_type, headers={"Server-Timing": took}
            )


def describe(pool: Pool, limits: Limits) -> dict[str, Any]:
    """What `/v1/bundle` answers."""
    manifest = pool.engine.manifest
    return {
        "name": manifest.name,
        "mode": manifest.mode,
        "tasks": {
            name: {
                "meaning": manifest.outputs[name],
                "channels": TASKS[name].channels,
                "low": TASKS[name].low,
                "high": TASKS[name].high,
                "near": TASKS[name].near,
            }
            for name in manifest.tasks
        },
        "sources": {
            name: {"checkpoint": source.checkpoint.id, "licence": source.licence}
            for name, source in manifest.sources.items()
        },
        "sizes": [str(bucket) for bucket in manifest.buckets],
        "backend": pool.engine.backend,
        "precision": manifest.precision,
        "limits": {
            "bytes": limits.max_bytes,
            "pixels": limits.max_pixels,
            "seconds": limits.deadline,
        },
    }


def _gate(token: str | None) -> Any:
    """A dependency that lets pass who knows the token."""

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        if token is None:
            return
        known = given.credentials if given is not None else ""
        if not hmac.compare_digest(known.encode(), token.encode()):
            raise UnauthorizedError(
                "this server wants its token: `Authorization: Bearer TOKEN`",
                WWW_Authenticate="Bearer",
            )

    return check


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    """All errors look alike: {"error": {"kind", "message"}}."""

    def answer(status: int, kind: str, message: str, headers: Any = None) -> Response:
        metrics.errors.labels(kind).inc()
        body = {"error": {"kind": kind, "message": message}}
        return JSONResponse(body, status, headers=headers)

    @app.exception_handler(LotusError)
    async def ours(request: Request, error: LotusError) -> Response:
        if isinstance(error, ImageError):
            error = UnusableError(str(error))
        if isinstance(error, ServeError):
            return answer(error.status, error.kind, str(error), error.headers)
        say(one_line(f"error: {error}"))
        return answer(500, "engine", str(error))

    @app.exception_handler(MemoryError)
    async def memory(request: Request, error: MemoryError) -> Response:
        say(one_line(f"error: not enough memory ({error})"))
        message = (
            "there is too little memory for this picture now: send a smaller one, or come again"
        )
        return await ours(request, NoMemoryError(message, Retry_After=str(_MEMORY_PAUSE)))

    @app.exception_handler(RequestValidationError)
    async def parameters(request: Request, error: RequestValidationError) -> Response:
        problems = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()]
        return answer(422, UnusableError.kind, "; ".join(problems))

    @app.exception_handler(HTTPException)
    async def others(request: Request, error: HTTPException) -> Response:
        return answer(error.status_code, "http", str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return answer(500, "internal", "something went wrong here; the server's log says what")
