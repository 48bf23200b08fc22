"""`policy.json`: what an int8 build chose, layer by layer, for the next build and for a reader."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.errors import BuildError

POLICY = "policy.json"
VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Step:
    """One point of the search: the number of groups in higher precision, the share of multiply-adds
    in int8 (0 to 1), and the error of each task's prediction.
    """

    high_precision: int
    int8_share: float
    errors: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """A layer, its group and its multiply-adds for one image; whether it is `int8`, and the range
    that its input has then: from `low` to `high`, proposed by `method`.
    """

    name: str
    group: str
    multiply_adds: int
    int8: bool
    method: str
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What stays in higher precision, and how that was found.

    `high_precision` are the groups. `alone` are each group's errors when it alone is quantised, and
    `steps` are what the search measured. All errors are by task, in `units`, as the limits
    `max_errors` and the `errors` that were reached. `calibration_sha256` is over the pixels of the
    `images` for calibration.
    """

    high_precision: list[str]
    max_errors: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    multiply_adds: int = 0
    images: int = 0
    calibration_sha256: str = ""
    alone: dict[str, dict[str, float]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    layers: list[LayerChoice] = field(default_factory=list)
    version: int = VERSION

    @property
    def groups(self) -> set[str]:
        """The groups that the policy decided about."""
        return {layer.group for layer in self.layers}

    def write(self, path: Path) -> None:
        """Write the file. Raises: OSError."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Read a file of this version or of an older one. Fields that are not there take their
        defaults. Raises: BuildError for a file that is no policy, or of a newer version.
        """
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            version = body.get("version", 1)
            if version > VERSION:
                raise BuildError(
                    f"{path} is a policy of version {version}; this release reads up to {VERSION}. "
                    "Use the lotus-edge release that made it, or search anew without --policy."
                )
            body = _from_1(body) if version < 2 else body
            return _parse(_from_2(body) if version < 3 else body)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BuildError(
                f"{path} is not a policy: {error!r}; a bundle of --precision int8 holds one"
            ) from error


def _parse(body: dict[str, Any]) -> Policy:
    names = {entry.name for entry in dataclasses.fields(Policy)} - {"steps", "layers", "version"}
    groups = [str(group) for group in body["high_precision"]]
    known = {name: body[name] for name in names if name in body} | {"high_precision": groups}
    return Policy(
        **known,
        steps=[_take(Step, step) for step in body.get("steps", [])],
        layers=[_take(LayerChoice, layer) for layer in body.get("layers", [])],
    )


def _take(kind: Any, entry: dict[str, Any]) -> Any:
    """A dataclass of an object's fields; what this release does not know is left out."""
    return kind(**{field.name: entry[field.name] for field in dataclasses.fields(kind)})


def _from_2(body: dict[str, Any]) -> dict[str, Any]:
    """Version 2, which knew one task, and did not name it: here it is ""."""
    several = {"max_error": "max_errors", "error": "errors", "unit": "units"}

    def rename(entry: dict[str, Any]) -> dict[str, Any]:
        return {
            several.get(name, name): {"": value} if name in several else value
            for name, value in entry.items()
        }

    alone = {group: {"": error} for group, error in body.get("alone", {}).items()}
    steps = [rename(step) for step in body.get("steps", [])]
    return rename(body) | {"alone": alone, "steps": steps}


def _from_1(body: dict[str, Any]) -> dict[str, Any]:
    """Version 1, which had no number, other names, and each layer's range as an object."""
    renamed = {"kept": "high_precision", "budget": "max_error", "distance": "error"}

    def rename(entry: dict[str, Any]) -> dict[str, Any]:
        return {renamed.get(name, name): value for name, value in entry.items()}

    layers = []
    for layer in body.get("layers", []):
        span = layer.get("range", {})
        defaults = {"multiply_adds": 0, "int8": layer["group"] not in body["kept"]}
        layers.append(
            {"name": layer["group"], **defaults, "method": "given", "low": 0.0, "high": 0.0}
            | {name: value for name, value in layer.items() if name != "range"}
            | span
        )
    steps = [rename(step) for step in body.get("steps", [])]
    return rename(body) | {"steps": steps, "layers": layers}
