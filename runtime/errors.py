"""The errors a caller can meet. Every message says what was asked, what was found and what to
do.
"""

from __future__ import annotations

_LONGEST = 4000  # characters; what a file holds, or a vendor says, may be millions


class LotusError(Exception):
    """Base of every error this project raises on purpose. A very long message is cut in its
    middle.
    """

    def __str__(self) -> str:
        text, half = super().__str__(), _LONGEST // 2
        if len(text) <= _LONGEST:
            return text
        left_out = len(text) - 2 * half
        return f"{text[:half]} [... {left_out} characters left out ...] {text[-half:]}"


class BundleError(LotusError):
    """A bundle cannot be used."""


class SchemaError(BundleError):
    """The manifest is missing, unreadable, of another schema, or says something impossible."""


class UnsafePathError(BundleError):
    """A path in the manifest, or of a graph's weights, leads outside the bundle's files."""


class DamagedBundleError(BundleError):
    """A file of the bundle is missing, has another size or another content than the manifest
    says.
    """


class UnfinishedBundleError(BundleError):
    """The bundle carries the graph for a target whose engine has still to be built on the
    device.
    """


class BackendError(LotusError):
    """A backend refused to open or run a graph; the vendor's own words are in the message."""


class DeadlineError(BackendError):
    """Opening a bundle, or its golden sample, took longer than the caller allows."""


class BackendMissingError(BackendError):
    """The named backend is unknown, or its package is not installed."""


class DeviceMissingError(BackendError):
    """The backend is installed, but this machine has no device or driver for it."""


class ForeignEngineError(BackendError):
    """An engine was built by another flavour or version, or for another device, than the one at
    hand.
    """


class ImageError(LotusError):
    """An input image (or noise tensor) cannot be used."""


class ImageWarning(UserWarning):
    """An input image was used, though something about it is odd: its end is missing, its ICC
    profile is broken, the value of white had to be guessed. `strict=True` refuses it.
    """


class VerificationError(LotusError):
    """The golden sample's answer differs from the PyTorch reference beyond the bundle's
    tolerance.
    """


class TaskError(LotusError, KeyError):
    """A prediction has no map of this task, or several where one was asked for."""


class OutputError(LotusError):
    """A result cannot be written."""


class GeometryError(LotusError):
    """A camera, a map or known distances cannot be used for points in space."""
