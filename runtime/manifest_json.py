"""`manifest.json` as text: reading it, its checksum, older formats, and its types.

docs/bundle-format.md describes the format and how it grows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from runtime.errors import SchemaError
from runtime.files import read_bounded
from runtime.tasks import TASKS
from runtime.there import exists, is_dir, is_file

MANIFEST = "manifest.json"
# The format that is written, and the oldest that is read.
SCHEMA, OLDEST_SCHEMA = 4, 3
_LARGEST = 4 << 20  # bytes of a manifest
BATCHES, NOISES = "buckets.batch", "buckets.noises"
# What `requires` may name beside the manifest's own fields.
FEATURES = frozenset((BATCHES, NOISES))


def read_json(folder: Path) -> dict[str, Any]:
    """The object in the folder's manifest, as it lies there. Raises: SchemaError."""
    path = folder / MANIFEST
    try:
        if not exists(path):  # nor a link to something that exists
            raise SchemaError(_no_manifest(folder))
        text = read_bounded(path, _LARGEST).decode()
        body = json.loads(text, parse_constant=_finite, parse_float=_finite)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair cannot be printed
    except (OSError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"cannot read {path}: {error}. Copy or build the bundle again."
        ) from error
    if not isinstance(body, dict):
        raise SchemaError(
            f"{path} holds {type(body).__name__}, not an object. Copy or build the bundle again."
        )
    return body


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _no_manifest(folder: Path) -> str:
    """Raises: OSError."""
    if is_file(folder):
        return (
            f"{folder} is a file; a bundle is a folder: pass {folder.absolute().parent} (an "
            "archive must be unpacked first)."
        )
    if not is_dir(folder):
        return f"there is no folder {folder}."
    return (
        f"{folder} is not a bundle: it has no {MANIFEST}. "
        "Build one with `python export/build_engine.py CHECKPOINT`."
    )


def checksum(body: dict[str, Any]) -> str:
    """SHA-256 in hex over the manifest's body: all but the field `manifest_sha256` itself."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def upgrade(body: dict[str, Any], path: Path) -> dict[str, Any]:
    """The body of a readable format as one of format SCHEMA, without the field `schema`.

    Raises: SchemaError for a format that this release does not read.
    """
    schema = body.get("schema")
    if type(schema) is not int or not OLDEST_SCHEMA <= schema <= SCHEMA:
        raise SchemaError(
            f"{path} has schema {schema!r}; this runtime reads schemas {OLDEST_SCHEMA} to "
            f"{SCHEMA}. Use the lotus-edge release that built the bundle, or build the bundle "
            "again."
        )
    body = {name: value for name, value in body.items() if name != "schema"}
    for older in range(schema, SCHEMA):
        body = _UPGRADES[older](body)
    return body


def check_requires(requires: object, fields: Iterable[str], path: Path) -> None:
    """Refuse a manifest that names a feature which this release does not know.

    Raises: SchemaError.
    """
    if not isinstance(requires, list) or not all(isinstance(name, str) for name in requires):
        raise SchemaError(f"{path}: requires: expected a list of names, found {requires!r}")
    if unknown := sorted(set(requires) - FEATURES - set(fields)):
        raise SchemaError(
            f"{path} requires {unknown}, which this release of lotus-edge does not know; beside "
            f"the fields of format {SCHEMA} it knows {sorted(FEATURES) or 'no feature'}. Update "
            "lotus-edge, or build the bundle again with this release."
        )


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value` (from JSON) as `kind`: a dataclass, list[...], dict[str, ...], X | None or a scalar.

    A dataclass's field without a value takes its default; a value without a field is ignored.

    Raises: SchemaError for a missing field without a default, or a value of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_object(kind, value, where)
    if origin is list and isinstance(value, list):
        return [parse(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: parse(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is types.UnionType:
        return None if value is None else parse(arguments[0], value, where)
    if kind is Any:
        return value
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if not isinstance(kind, type) or type(value) is not kind:
        raise SchemaError(f"{where}: expected {getattr(kind, '__name__', kind)}, found {value!r}")
    return value


def _parse_object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise SchemaError(f"{where}: expected an object, found {value!r}")
    required = {field.name for field in dataclasses.fields(kind) if not has_default(field)}
    if missing := sorted(required - set(value)):
        raise SchemaError(f"{where}: missing fields {missing}; required are {sorted(required)}")
    hints = typing.get_type_hints(kind)
    present = {name: hint for name, hint in hints.items() if name in value}
    return kind(
        **{name: parse(hint, value[name], f"{where}: {name}") for name, hint in present.items()}
    )


def has_default(field: dataclasses.Field[Any]) -> bool:
    """Whether the field is optional in the file."""
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _upgrade_3(body: dict[str, Any]) -> dict[str, Any]:
    """Format 4 names the family, and says of quantisation what is measured and in which unit.

    Nothing is known of the types yet: what makes no sense is left for `parse` to refuse.
    """
    body = {"family": f"lotus-{body.get('mode')}", **body}
    old = body.get("quantisation")
    if isinstance(old, dict):
        names = {"budget": "max_error", "distance": "error"}
        tasks = body.get("tasks")
        task = TASKS.get(str(tasks[0])) if isinstance(tasks, list) and tasks else None
        renamed = {names.get(name, name): value for name, value in old.items()}
        body["quantisation"] = {**renamed, "unit": task.error_unit if task else ""}
    return body


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {3: _upgrade_3}
