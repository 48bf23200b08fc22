"""What a client can do wrong, or meet: each is an answer with a status and a kind."""

from __future__ import annotations

from runtime.errors import LotusError


class ServeError(LotusError):
    """An answer that is no prediction. `kind` is one word for programs, the message is for people;
    `headers` go with it.
    """

    status = 400
    kind = "bad_request"

    def __init__(self, message: str, **headers: str) -> None:
        super().__init__(message)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class UnauthorizedError(ServeError):
    """There is a token, and the request has another or none."""

    status = 401
    kind = "unauthorized"


class NotAcceptableError(ServeError):
    """`Accept` names nothing that is written here."""

    status = 406
    kind = "not_acceptable"


class TooLargeError(ServeError):
    """The body has more bytes than are taken."""

    status = 413
    kind = "too_large"


class UnusableError(ServeError):
    """The picture, or a parameter, cannot be used."""

    status = 422
    kind = "unusable"


class BusyError(ServeError):
    """As many requests as fit are held, or the bundle is not ready; `Retry-After` says when to
    come again.
    """

    status = 503
    kind = "busy"


class NoMemoryError(ServeError):
    """There is not enough memory for this picture now; `Retry-After` says when to come again."""

    status = 503
    kind = "memory"


class LateError(ServeError):
    """The deadline passed before the answer was there."""

    status = 504
    kind = "deadline"
