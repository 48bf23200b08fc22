"""The format of bundles: what is written down, what is stored for good, and how it grows."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT

from runtime import manifest_check
from runtime.errors import DamagedBundleError, SchemaError
from runtime.manifest import (
    MANIFEST,
    SCHEMA,
    Bucket,
    Latent,
    Manifest,
    Quantisation,
    input_shapes,
    noise_shape,
    output_shapes,
)
from runtime.manifest_json import checksum, has_default

STORED = ROOT / "tests" / "data"
JSON_SCHEMA = json.loads((ROOT / "docs" / "bundle-format.schema.json").read_text())
PAGE = (ROOT / "docs" / "bundle-format.md").read_text()
OWN_FIELDS = ["schema", "manifest_sha256"]  # of the file, not of the dataclass


def lay_out(folder: Path, body: dict[str, Any], *, sign: bool = False) -> Path:
    """A bundle of this manifest: its files exist and have their sizes, their content is nothing."""
    if sign:
        body = {name: value for name, value in body.items() if name != "manifest_sha256"}
        body["manifest_sha256"] = checksum(body)
    folder.mkdir(parents=True, exist_ok=True)
    for file in body["files"]:
        (folder / file["path"]).write_bytes(bytes(file["bytes"]))
    (folder / MANIFEST).write_text(json.dumps(body))
    return folder


def stored(number: int) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((STORED / f"manifest-format-{number}.json").read_text())
    return body


def classes(kind: Any = Manifest) -> Iterator[Any]:
    """The dataclasses that a manifest is made of, each once or more."""
    if dataclasses.is_dataclass(kind):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from classes(hint)
    for argument in typing.get_args(kind):
        yield from classes(argument)


CLASSES = {kind.__name__: kind for kind in classes()}


def json_type(kind: Any) -> dict[str, Any]:
    """The JSON Schema of a field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin is list:
        return {"type": "array", "items": json_type(arguments[0])}
    if origin is dict:
        free = arguments[1] is Any
        return {"type": "object"} | (
            {} if free else {"additionalProperties": json_type(arguments[1])}
        )
    if origin is types.UnionType:
        inner = json_type(arguments[0])
        if "$ref" in inner:
            return {"anyOf": [inner, {"type": "null"}]}
        return {"type": [inner["type"], "null"]}
    return {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[kind]}


def page_type(kind: Any) -> str:
    """A field's type as docs/bundle-format.md spells it."""
    if typing.get_origin(kind) is types.UnionType:
        return f"{page_type(typing.get_args(kind)[0])} or null"
    if typing.get_origin(kind) is None:
        return "any" if kind is Any else str(kind.__name__)
    inner = ", ".join(page_type(argument) for argument in typing.get_args(kind))
    return f"{typing.get_origin(kind).__name__}[{inner}]"


def default_of(field: dataclasses.Field[Any]) -> Any:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


@pytest.mark.parametrize("name", CLASSES)
def test_the_json_schema_is_that_of_the_dataclasses(name: str) -> None:
    """Names, types, defaults, and which fields are required; neither changes without the other."""
    kind, own = CLASSES[name], OWN_FIELDS if name == "Manifest" else []
    described = JSON_SCHEMA if name == "Manifest" else JSON_SCHEMA["$defs"][name]
    fields, hints = dataclasses.fields(kind), typing.get_type_hints(kind)
    assert set(described["properties"]) == {field.name for field in fields} | set(own)
    required = {field.name for field in fields if not has_default(field)}
    assert set(described.get("required", [])) == required | set(own)
    for field in fields:
        entry = described["properties"][field.name]
        expected = json_type(hints[field.name])
        assert {key: entry.get(key) for key in expected} == expected, field.name
        assert entry["description"]
        assert ("default" in entry) == has_default(field), field.name
        if has_default(field):
            assert entry["default"] == default_of(field), field.name
    assert set(JSON_SCHEMA["$defs"]) == set(CLASSES) - {"Manifest"}


@pytest.mark.parametrize("name", CLASSES)
def test_the_page_has_a_row_for_each_field(name: str) -> None:
    section = re.search(rf"^### {name}\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None
    rows = {
        match[1]: (match[2], match[3])
        for match in re.finditer(r"^\| `(\w+)` \| (.+?) \| (.+?) \| .", section[1], re.MULTILINE)
    }
    hints = typing.get_type_hints(CLASSES[name])
    if name == "Manifest":
        assert f"number of the format: {SCHEMA} |" in section[1]
        hints |= {"schema": int, "manifest_sha256": str}
    assert {field: kind for field, (kind, _) in rows.items()} == {
        field: page_type(hint) for field, hint in hints.items()
    }
    optional = {field.name for field in dataclasses.fields(CLASSES[name]) if has_default(field)}
    assert {field for field, (_, default) in rows.items() if default != "required"} == optional


def test_what_is_written_obeys_the_json_schema(null_bundle: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(JSON_SCHEMA)
    validator = jsonschema.Draft202012Validator(JSON_SCHEMA)
    body = json.loads((null_bundle / MANIFEST).read_text())
    validator.validate(body)
    for change in ({"schema": 3}, {"mode": "x"}, {"opset": "23"}, {"engine": {}}, {"files": [{}]}):
        assert not validator.is_valid(body | change), change


def test_the_bounds_of_the_json_schema_are_those_of_the_code() -> None:
    kinds, top = JSON_SCHEMA["$defs"], JSON_SCHEMA["properties"]
    for name in ("height", "width"):
        assert kinds["Bucket"]["properties"][name]["maximum"] == manifest_check.LARGEST_EDGE
    latent = kinds["Latent"]["properties"]
    assert latent["channels"]["maximum"] == manifest_check.LARGEST_CHANNELS
    assert latent["downscale"]["maximum"] == manifest_check.LARGEST_CELL
    for entry in (latent["scaling_factor"], *kinds["Preprocess"]["properties"].values()):
        assert entry["maximum"] == -entry["minimum"] == manifest_check.LARGEST_CONSTANT
    assert top["buckets"]["maxItems"] == manifest_check.MOST_BUCKETS
    assert top["files"]["maxItems"] == manifest_check.MOST_FILES
    assert top["noise_seed"]["exclusiveMaximum"] == manifest_check.LARGEST_SEED


def test_a_stored_manifest_of_format_4_stays_readable(tmp_path: Path) -> None:
    """Without any optional field. Never edit the stored file: bundles like it are out there."""
    body = stored(4)
    jsonschema.validate(body, JSON_SCHEMA)
    for kind in ("engine", "quantisation", "family", "licence", "requires", "preprocess"):
        assert kind not in body
    manifest = Manifest.load(lay_out(tmp_path, body))
    assert manifest.buckets == [Bucket(height=64, width=96, graph="model.onnx", engine=None)]
    assert (manifest.family, manifest.licence, manifest.requires) == ("", None, [])
    assert (manifest.preprocess.scale, manifest.preprocess.offset) == (1 / 127.5, -1.0)
    assert manifest.engine is manifest.quantisation is manifest.vae_encoder is None


def test_a_stored_manifest_of_format_3_is_upgraded(tmp_path: Path) -> None:
    """Never edit the stored file: bundles like it are out there."""
    body = stored(3)
    assert body["schema"] == 3
    manifest = Manifest.load(lay_out(tmp_path, body))
    assert manifest.family == "lotus-g"
    assert manifest.licence is None
    assert manifest.quantisation == Quantisation(
        policy="policy.json",
        calibration_sha256="8" * 64,
        images=8,
        max_error=1.0,
        error=0.93,
        unit="degrees",
        multiply_adds=123456,
    )
    assert manifest.golden.mean_tolerance == 0.02
    manifest.save(tmp_path)
    written = json.loads((tmp_path / MANIFEST).read_text())
    jsonschema.validate(written, JSON_SCHEMA)
    assert Manifest.load(tmp_path) == manifest


def test_the_unit_of_a_format_3_manifest_is_its_tasks(tmp_path: Path) -> None:
    body = stored(3) | {"tasks": ["depth"], "outputs": {"depth": "depth"}, "mode": "d"}
    manifest = Manifest.load(lay_out(tmp_path, body, sign=True))
    assert manifest.family == "lotus-d"
    assert manifest.quantisation is not None
    assert manifest.quantisation.unit == "AbsRel"


@pytest.mark.parametrize("number", [3, 4])
def test_a_changed_manifest_is_noticed_in_each_format(tmp_path: Path, number: int) -> None:
    body = stored(number) | {"noise_seed": 8}
    with pytest.raises(DamagedBundleError, match="was changed"):
        Manifest.load(lay_out(tmp_path, body))


@pytest.mark.parametrize(
    "change",
    [
        {"quantisation": "int8"},
        {"quantisation": {"budget": 1}},
        {"quantisation": {"max_error": 1, "budget": 2}},
        {"tasks": "normal"},
        {"tasks": [["normal"]]},
        {"tasks": [7]},
        {"mode": None},
        {"mode": ["d"]},
    ],
)
def test_a_format_3_manifest_that_makes_no_sense_is_our_error(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(SchemaError):
        Manifest.load(lay_out(tmp_path, stored(3) | change, sign=True))


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    """A later release may add them; they are part of the checksum all the same."""
    body = stored(4)
    body["surprise"] = {"of": ["a", "later", "release"]}
    body["buckets"][0]["surprise"] = 1
    body["latent"]["surprise"] = None
    manifest = Manifest.load(lay_out(tmp_path / "a", body, sign=True))
    assert manifest == Manifest.load(lay_out(tmp_path / "b", stored(4)))
    with pytest.raises(DamagedBundleError, match="was changed"):
        Manifest.load(lay_out(tmp_path / "c", stored(4) | {"surprise": 1}))


def test_an_unknown_required_feature_is_refused_by_name(tmp_path: Path) -> None:
    body = stored(4) | {"tiles": [1, 2], "requires": ["tiles", "licence"]}
    with pytest.raises(SchemaError, match=r"requires \['tiles'\].*does not know.*[Uu]pdate"):
        Manifest.load(lay_out(tmp_path, body, sign=True))
    known = stored(4) | {"requires": ["licence"]}
    assert Manifest.load(lay_out(tmp_path, known, sign=True)).requires == ["licence"]


@pytest.mark.parametrize("requires", ["tiles", [7], None, {"tiles": 1}])
def test_requires_is_a_list_of_names(tmp_path: Path, requires: object) -> None:
    with pytest.raises(SchemaError, match="requires: expected a list of names"):
        Manifest.load(lay_out(tmp_path, stored(4) | {"requires": requires}, sign=True))


def test_shapes_need_no_manifest() -> None:
    bucket = Bucket(height=64, width=96, graph="model.onnx")
    latent = Latent(channels=4, downscale=8, scaling_factor=0.18215)
    assert input_shapes(bucket, latent, noise=False) == {"image": (1, 3, 64, 96)}
    assert noise_shape(bucket, latent) == (1, 4, 8, 12)
    both = {"image": (1, 3, 64, 96), "noise": (1, 4, 8, 12)}
    assert input_shapes(bucket, latent, noise=True) == both
    assert output_shapes(bucket, ["depth", "normal"]) == {
        "depth": (1, 1, 64, 96),
        "normal": (1, 3, 64, 96),
    }
