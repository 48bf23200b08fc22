"""A bundle proves itself before its first answer on a machine that it does not know yet.

Library versions exist that answer wrong and look right. So the golden sample runs by itself the
first time a bundle meets a library version, driver, device or CPU kind. A passed proof is
remembered (runtime/cache.py); a failed one is an error. Where a device or its driver cannot be
described nothing is remembered: there it runs each time.
"""

from __future__ import annotations

import os
from typing import Any

from runtime.backends.session import Backend, Session
from runtime.cache import recall, remember
from runtime.console import one_line, say
from runtime.errors import VerificationError
from runtime.golden import check_tolerance, golden_error, golden_on
from runtime.machine import describe_machine, knows_device
from runtime.manifest import Bucket, Manifest

OFF = "LOTUS_EDGE_PROVE"
_KIND = "proofs"


def prove(session: Session) -> None:
    """Run the golden sample of an opened bucket, unless this machine has a proof of it.

    Costs one prediction (two where a vendor captures its second run). The environment variable
    LOTUS_EDGE_PROVE=0 switches it off. Raises: VerificationError, DamagedBundleError,
    BackendError.
    """
    if os.environ.get(OFF) == "0" or not session.backend.package:
        return
    opened = (session.manifest, session.bucket, session.backend, session.device)
    key = _key(*opened, kept=session.opened_from)
    known = knows_device(session.backend, session.device)
    if known and recall(_KIND, key):
        return
    here = f"{session.backend.name} {key['machine']['version']}"
    name = f"{session.manifest.name} ({session.bucket}) with {here}"
    line = f"first use of {name} on this machine" if known else f"{name} on a device unknown here"
    say(one_line(f"lotus-edge: {line}: running its golden sample"))
    try:
        check_tolerance(
            {str(session.bucket): golden_error(session)},
            session.backend.name,
            golden_on(session.manifest, session.backend.name),
        )
    except VerificationError as error:
        raise VerificationError(f"{here}: {error}") from error
    remember_proof(*opened, kept=session.opened_from)


def remember_proof(
    manifest: Manifest,
    bucket: Bucket,
    backend: Backend,
    device: str | None = None,
    *,
    kept: str = "",
) -> None:
    """Note that the golden of this bucket passed on this machine, on this device; `kept`: the
    identity of the entry (runtime/compiled.py) that it was opened from. Nothing is noted where the
    device or its driver cannot be described.

    Raises: BackendMissingError.
    """
    if backend.package and knows_device(backend, device):
        remember(_KIND, _key(manifest, bucket, backend, device, kept=kept), True)


def _key(
    manifest: Manifest, bucket: Bucket, backend: Backend, device: str | None, *, kept: str
) -> dict[str, Any]:
    return {
        "bundle": manifest.checksum,
        "bucket": str(bucket),
        "machine": describe_machine(backend, device),
        **({"kept": kept} if kept else {}),
    }
