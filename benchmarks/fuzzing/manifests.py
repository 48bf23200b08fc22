"""Damaged manifests: values, types, structure and text, most of them signed again."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzzing.bundles import (
    HEIGHT,
    WIDTH,
    compare,
    copy_bundle,
    edit_manifest,
    predict,
    write_bundle,
)
from benchmarks.fuzzing.damage import boundary, damage_bytes
from benchmarks.fuzzing.kind import Damage, Kind
from runtime.manifest import MANIFEST
from runtime.manifest_json import checksum

_TEXTS = (
    *("", " ", "d", "g", "null", "onnxruntime", "fp16", "depth", "normal", "disparity", "lotus-g"),
    *("../golden.npz", "../../outside/secret", "/etc/passwd", "/dev/zero", "\\\\host\\share"),
    *("C:model.onnx", "model.onnx/", "./model.onnx", "a/../model.onnx", "MODEL.ONNX", "."),
    *(
        "\0",
        "a\0b",
        "\ud800",
        "\udfff\ud800",
        "\u202egnp.nedlog",
        "\ufeff",
        "e\u0301",
        "\U0001f4a9",
    ),
    *("\x1b[2J", "a\nb", "%s%n{0}{x}", "1e999", "NaN", "x" * 300, "y" * 100_000, "\u0130" * 255),
)
_NUMBERS = (
    *(0, -1, 1, -0.0, 0.5, 1e-300, 1e300, -1e300, float("nan"), float("inf"), 1 << 53, 1 << 63),
    *((1 << 64) + 1, -(1 << 63), 10**18, 10**400, 0.1, 1e-7, 0.8, 0.81, 1.5, 16384, 16392),
)
_DEEPEST = 20
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None}, [None], {"a": {"b": []}})


class Manifests(Kind):
    """One to three edits of the tree, or of the text; a fifth are not signed again."""

    name = "manifests"

    def prepare(self, folder: Path) -> None:
        self._bundle = write_bundle(folder / "bundle", target="null")
        self._body = json.loads((self._bundle / MANIFEST).read_text(encoding="utf-8"))
        self._rights = []
        for number in range(len(self._body["buckets"])):  # whichever of them an edit leaves
            bundle = copy_bundle(self._bundle, folder / f"bucket-{number}")
            edit_manifest(bundle, lambda body, kept=number: _keep(body, kept))  # type: ignore[misc]
            self._rights.append(predict(bundle, folder / "cache")[0])

    def damage(self, random: Random, folder: Path) -> Damage:
        bundle = copy_bundle(self._bundle, folder / "bundle")
        body = copy.deepcopy(self._body)
        signature = body.pop("manifest_sha256")
        labels = [_edit(random, body) for _ in range(random.choice((1, 1, 2, 3)))]
        signed = random.random() < 0.8
        body["manifest_sha256"] = _sign(body) if signed else signature
        text = json.dumps(body).encode()  # half surrogates and all
        if random.random() < 0.25:
            label, text = _edit_text(random, text)
            labels.append(label)
        (bundle / MANIFEST).write_bytes(text)
        return Damage(label=f"{'' if signed else 'not signed: '}{'; '.join(labels)}")

    def run(self, folder: Path) -> str:
        values, golden = predict(folder / "bundle", folder / "cache")
        return compare(values, golden, self._rights)


def _keep(body: dict[str, Any], number: int) -> None:
    body["buckets"] = [body["buckets"][number]]


def _sign(body: dict[str, Any]) -> str:
    try:
        return checksum(body)
    except (ValueError, TypeError):
        return "0" * 64


def _places(tree: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree, those of great depth aside."""
    if depth > _DEEPEST:
        return []
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    own = [(tree, key) for key in keys]
    return own + [place for container, key in own for place in _places(container[key], depth + 1)]


def _edit(random: Random, body: dict[str, Any]) -> str:
    container, key = random.choice(_places(body))
    value = container[key]
    how = random.choice(
        ("value", "value", "value", "type", "drop", "repeat", "other", "add", "nest")
    )
    if how == "drop":
        del container[key]
    elif how == "value":
        container[key] = _near(random, value)
    elif how == "type":
        container[key] = random.choice((*_OTHERS, *_NUMBERS, *_TEXTS, [value], {"value": value}))
    elif how == "repeat" and isinstance(container, list):
        container.extend(copy.deepcopy([value]) * random.choice((1, 2, 70, 2000)))
    elif how == "other":
        container[key] = copy.deepcopy(_value(random, body))
    elif how == "add" and isinstance(container, dict):
        added = random.choice((*_TEXTS, "requires", "engine", "quantisation", "vae_encoder"))
        container[added] = copy.deepcopy(_value(random, body))
    else:
        container[key] = _nested(value, random.choice((1, 5, 60)))  # deeper ones are made as text
    return f"{how} at {key}: {str(value)[:40]!r} -> {_shown(container, key)}"


def _shown(container: Any, key: Any) -> str:
    found = container.get(key, "nothing") if isinstance(container, dict) else "an item"
    if isinstance(found, int) and abs(found) >= 1 << 64:
        return "a huge number"
    return repr(str(found)[:40])


def _value(random: Random, body: dict[str, Any]) -> Any:
    container, key = random.choice(_places(body))
    return container[key]


def _near(random: Random, value: Any) -> Any:
    """Another value of the same type, or nearly."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        sizes = (HEIGHT, WIDTH, 8, 16, 64, 24, 56)
        return random.choice((*_NUMBERS, *sizes, boundary(random, 32, abs(value)), -value))
    if isinstance(value, float):
        return random.choice((*_NUMBERS, value * 1.0001, value * 1.1, value * 2, -value, 1e-5))
    if isinstance(value, str):
        flipped = value.swapcase()
        return random.choice((*_TEXTS, flipped, value + "x", value[:-1], value * 2, f" {value}"))
    if isinstance(value, list):
        return random.choice(([], value[::-1], value[:-1], value * 2, value * 300))
    return {} if value is None else dict(list(value.items())[::2])


def _nested(value: Any, depth: int) -> Any:
    for level in range(depth):
        value = [value] if level % 2 else {"value": value}
    return value


def _edit_text(random: Random, text: bytes) -> tuple[str, bytes]:
    """The same content said otherwise, or damaged text."""
    how = random.choice(("bytes", "twice", "digits", "deep", "encoding", "around", "number"))
    if how == "bytes":
        return damage_bytes(random, text)
    if how == "twice":  # a key that is there two times; the last counts
        keys = re.findall(rb'"[a-z_]+": (?=["\d])', text)
        if keys:
            key = random.choice(keys)
            first = random.choice((b"0, ", b'"../x", ', b"null, ", b"[], "))
            return f"{key!r} twice", text.replace(key, key + first + key, 1)
    if how == "encoding":
        name = random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7", "cp037"))
        return name, text.decode().encode(name)
    if how == "around":
        first, last = random.choice(
            ((b"[", b"]"), (b"\n" * 5000, b" "), (b"", text), (b"//\n", b""))
        )
        return "around", first + text + last
    if how == "deep":
        depth = random.choice((100, 900, 1100, 100_000))
        return f"deep {depth}", text[:-1] + b', "deep": ' + b"[" * depth + b"]" * depth + b"}"
    numbers = list(re.finditer(rb"(?<=: )\d+", text))
    if not numbers:
        return damage_bytes(random, text)
    number = random.choice(numbers)
    new = random.choice(
        (b"1e999", b"-0", b"0x10", b"1.0", b"1e2", b"9" * 5000, b"NaN", b"00", b"1_0")
    )
    return f"{number[0]!r} as {new[:9]!r}", text[: number.start()] + new + text[number.end() :]
