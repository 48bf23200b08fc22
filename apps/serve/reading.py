"""A picture out of a request's body, which is never longer in memory than it may be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request

from apps.serve.errors import ServeError, TooLargeError, UnusableError

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
_PART = 4096  # bytes that a form has around its picture
_FIELD = "image"


async def read_picture(request: Request, most: int) -> bytes:
    """The picture of a request: the whole body, or the field `image` of a multipart form. At most
    `most` bytes.

    Raises: TooLargeError, UnusableError, ServeError for a form that is none, or where the client
    went away.
    """
    is_form = request.headers.get("content-type", "").lower().startswith("multipart/")
    limit = most + _PART * is_form
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(most)
    bounded = Request(request.scope, _bounded(request.receive, limit, most))
    try:
        body = await _of_form(bounded) if is_form else await bounded.body()
    except ClientDisconnect as error:
        raise ServeError("the client went away before its picture was here") from error
    if not body:
        raise UnusableError("the body is empty: send the picture as it lies on the disk")
    return body


async def _of_form(request: Request) -> bytes:
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            picture = form.get(_FIELD)
            if isinstance(picture, UploadFile):
                return await picture.read()
            found = ", ".join(map(repr, form)) or "none"
    except (ServeError, ClientDisconnect, MemoryError):
        raise
    except Exception as error:
        # The one place where what parsers raise for a damaged form, of whatever type, becomes ours.
        reason = getattr(error, "detail", None) or error or type(error).__name__
        raise ServeError(f"the multipart form cannot be read: {reason}") from error
    raise UnusableError(f"the form needs a file in the field {_FIELD!r}; its fields: {found}")


def _bounded(receive: Receive, limit: int, most: int) -> Receive:
    """`receive`, which refuses more than `limit` bytes."""
    total = 0

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise _too_large(most)
        return message

    return bounded


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the picture has more than the {most:,} bytes that are taken")
