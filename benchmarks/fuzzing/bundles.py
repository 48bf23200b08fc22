"""Small bundles for damaging: a real manifest, checksums, golden, and a graph of a dozen nodes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fuzzing.kind import Map, WrongAnswerError
from runtime import LotusEngine
from runtime.backends import BACKENDS, FOR_TESTS, open_session
from runtime.manifest import (
    MANIFEST,
    Bucket,
    Checkpoint,
    Golden,
    Latent,
    Manifest,
    describe_file,
)
from runtime.manifest_json import checksum

GRAPH, WEIGHTS, GOLDEN = "model.onnx", "model.onnx.data", "golden.npz"
HEIGHT, WIDTH = 32, 48
TOLERANCE = 1e-3
# Of another picture than the golden one: the same rounding may come out larger.
_FACTOR = 2.0


def write_bundle(
    folder: Path,
    *,
    target: str,
    sizes: Sequence[tuple[int, int]] = ((HEIGHT, WIDTH), (WIDTH, HEIGHT)),
) -> Path:
    """A bundle for `target`, with the answers of its own backend as golden. `null` has buckets of
    all `sizes` (height, width), and a graph that is none; others the first.
    """
    folder.mkdir(parents=True)
    buckets = [Bucket(height=height, width=width, graph=GRAPH) for height, width in sizes]
    if target == "null":
        os.environ[FOR_TESTS] = "1"
        (folder / GRAPH).write_bytes(b"no graph " * 100)
        (folder / WEIGHTS).write_bytes(bytes(range(256)) * 16)
    else:
        from benchmarks.fuzzing.graph import write_graph

        buckets = buckets[:1]
        write_graph(folder / GRAPH, *sizes[0])
    manifest = _manifest(target, buckets)
    arrays: dict[str, NDArray[Any]] = {}
    for bucket in buckets:
        image = picture(bucket.height, bucket.width, seed=0)
        with open_session(target, folder, manifest, bucket) as session:
            answer = session({"image": manifest.preprocess.apply(image)})
        arrays |= {f"image_{bucket}": image, f"disparity_{bucket}": answer["disparity"][0]}
    np.savez_compressed(folder / GOLDEN, **arrays)
    files = [describe_file(folder, name) for name in (GRAPH, WEIGHTS, GOLDEN)]
    dataclasses.replace(manifest, files=files).save(folder)
    return folder


def copy_bundle(source: Path, folder: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(source, folder))


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's body and sign it again."""
    body = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    del body["manifest_sha256"]
    change(body)
    body["manifest_sha256"] = checksum(body)
    (bundle / MANIFEST).write_text(json.dumps(body), encoding="utf-8")


def sign_files(bundle: Path, names: Sequence[str]) -> None:
    """Enter the present sizes and checksums of these files into the manifest, and sign it."""
    entries = {name: dataclasses.asdict(describe_file(bundle, name)) for name in names}

    def change(body: dict[str, Any]) -> None:
        body["files"] = [entries.get(entry["path"], entry) for entry in body["files"]]

    edit_manifest(bundle, change)


def picture(height: int, width: int, *, seed: int) -> NDArray[np.uint8]:
    """RGB uint8 [H,W,3]: a ramp and noise."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 180, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    return (ramp + random.integers(0, 36, (height, width, 3))).astype(np.uint8)


def open_engine(bundle: Path, cache: Path, **settings: Any) -> LotusEngine:
    """The bundle, opened with records in `cache`. The null backend counts as a vendor's here, so
    that its bundles prove themselves too.
    """
    os.environ["LOTUS_EDGE_CACHE"] = str(cache)
    BACKENDS["null"] = dataclasses.replace(BACKENDS["null"], package="numpy")
    return LotusEngine(bundle, **settings)


def predict(bundle: Path, cache: Path, **settings: Any) -> tuple[Map, Golden]:
    """The map of a picture that is not the golden one, and the bundle's tolerances."""
    with open_engine(bundle, cache, **settings) as engine:
        return engine(picture(HEIGHT, WIDTH, seed=1)).values, engine.manifest.golden


def compare(values: Map, golden: Golden, rights: Sequence[Map]) -> str:
    """ "same", or "within tolerance" of one of the right maps. Raises: WrongAnswerError."""
    errors = []
    for right in rights:
        if values.shape == right.shape:
            difference = np.abs(values.astype(np.float64) - right)
            errors.append((float(difference.max()), float(difference.mean())))
    if not errors:
        raise WrongAnswerError(f"a map of shape {values.shape}")
    largest, mean = min(errors)
    if largest == 0:
        return "same"
    if largest > _FACTOR * golden.tolerance or mean > _FACTOR * golden.mean_tolerance:
        raise WrongAnswerError(f"a map {largest:.2g} off (mean {mean:.2g}), no error")
    return "within tolerance"


def _manifest(target: str, buckets: list[Bucket]) -> Manifest:
    return Manifest(
        name="small",
        checkpoint=Checkpoint(id="none", sha256="0" * 64),
        mode="d",
        tasks=["disparity"],
        outputs={"disparity": "near is large"},
        precision="fp32",
        target=target,
        opset=20,
        buckets=buckets,
        latent=Latent(channels=4, downscale=8, scaling_factor=0.18215),
        noise_seed=0,
        fixed_noise=False,
        folds=["none"],
        golden=Golden(file=GOLDEN, tolerance=TOLERANCE, mean_tolerance=TOLERANCE / 4, measured=[]),
        files=[],
        tools={"numpy": np.__version__},
        command="none",
        created="2026-01-01T00:00:00+00:00",
        family="lotus-d",
    )
