"""Which buckets the null backend has open."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from runtime.backends.null import BackendSession
from runtime.backends.session import Tensors
from runtime.manifest import Bucket


@dataclass
class OpenBuckets:
    """Those that are open `now`, and the `most` that were."""

    now: list[Bucket] = field(default_factory=list)
    most: int = 0


def watch(monkeypatch: pytest.MonkeyPatch) -> OpenBuckets:
    """The buckets that are opened and closed from now on."""
    buckets = OpenBuckets()
    start, stop = BackendSession._open, BackendSession._close

    def opened(session: BackendSession) -> Tensors:
        buckets.now.append(session.bucket)
        buckets.most = max(buckets.most, len(buckets.now))
        return start(session)

    def closed(session: BackendSession) -> None:
        if session.bucket in buckets.now:
            buckets.now.remove(session.bucket)
        stop(session)

    monkeypatch.setattr(BackendSession, "_open", opened)
    monkeypatch.setattr(BackendSession, "_close", closed)
    return buckets
