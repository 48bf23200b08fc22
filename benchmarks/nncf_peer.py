"""OpenVINO's own quantiser as a contender: `python -m benchmarks.nncf_peer BUNDLE --preset P
--images N --output DIR`.

NNCF makes int8 of the plain graph in BUNDLE, which an `openvino` build without folds is. It
calibrates with the pictures, and in mode G the noises, that our own int8 calibrates with. DIR gets
the graph as OpenVINO's own format has it, and the manifest of BUNDLE, whose pixels, tasks and sizes
hold for it too. It is no bundle: nothing proves it, and only `open_quantised` opens it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines import side_by_side
from export.embedded import rendered_scenes
from runtime.backends import BACKENDS
from runtime.backends.openvino import hints
from runtime.backends.session import import_vendor
from runtime.engine import draw_noise
from runtime.errors import LotusError
from runtime.extras import require
from runtime.manifest import MANIFEST, Manifest
from runtime.tasks import TASKS

PRESETS: dict[str, dict[str, str]] = {
    "default": {},
    "best": {"preset": "MIXED", "model_type": "TRANSFORMER"},
    "half": {"preset": "MIXED", "model_type": "TRANSFORMER", "overflow_fix": "ENABLE"},
}
"""Settings of `nncf.quantize`, by name. "best" are those that its documentation advises for
transformers, and the most exact ones that were found; "half" uses half of int8's range for weights
as well, which its documentation advises for CPUs without VNNI."""
_GRAPH = "model.xml"


def main() -> int:
    """Quantise. Status 1 when BUNDLE cannot be used or the output exists."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--images", type=int, default=8, help="rendered scenes to calibrate with")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    require("nncf", "openvino")
    try:
        quantise(arguments.bundle, arguments.preset, arguments.images, arguments.output)
    except (LotusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def quantise(bundle: Path, preset: str, images: int, output: Path) -> None:
    """Write what NNCF makes of the bundle's first graph into `output`, whole or not at all.

    Raises: LotusError, OSError.
    """
    openvino = import_vendor(BACKENDS["openvino"])  # first, and without its telemetry
    import nncf

    manifest = Manifest.load(bundle)
    kinds = {"preset": nncf.QuantizationPreset, "model_type": nncf.ModelType}
    words = dict(PRESETS[preset])
    overflow = words.pop("overflow_fix", None)
    settings: dict[str, Any] = {name: kinds[name][value] for name, value in words.items()}
    if overflow is not None:
        settings["advanced_parameters"] = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix[overflow]
        )
    quantised = nncf.quantize(
        openvino.Core().read_model(bundle / manifest.buckets[0].graph),
        nncf.Dataset([*feeds(manifest, images)]),
        subset_size=images,
        **settings,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".nncf-", dir=output.parent) as folder:
        whole = Path(folder) / "whole"
        whole.mkdir()
        openvino.save_model(quantised, whole / _GRAPH, compress_to_fp16=False)
        shutil.copy(bundle / MANIFEST, whole)
        whole.rename(output)


def feeds(manifest: Manifest, images: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The network's inputs for each picture, as `export.quantize.calibration` has them by default:
    float32, image [1,3,H,W] and in mode G noise [1,C,H/8,W/8].
    """
    bucket = manifest.buckets[0]
    takes_noise = "noise" in manifest.input_shapes(bucket)
    for number, rgb in enumerate(rendered_scenes(images, bucket.height, bucket.width)):
        inputs = {"image": manifest.preprocess.apply(rgb)}
        if takes_noise:
            shape = manifest.noise_shape(bucket)
            inputs["noise"] = draw_noise(manifest.noise_seed + number, shape)
        yield inputs


def open_quantised(folder: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """What predicts with the graph in `folder`, one image after the other, compiled as an int8
    bundle is: RGB uint8 [N,H,W,3] to the maps [N,H,W] or [N,H,W,C], float32.

    Raises: LotusError, and what OpenVINO raises.
    """
    openvino = import_vendor(BACKENDS["openvino"])
    manifest = Manifest.read(folder)
    bucket = manifest.buckets[0]
    model = openvino.Core().read_model(folder / _GRAPH)
    request = openvino.compile_model(model, "CPU", hints(model, "int8")).create_infer_request()
    noise = {}
    if "noise" in manifest.input_shapes(bucket):
        noise["noise"] = draw_noise(manifest.noise_seed, manifest.noise_shape(bucket))

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = []
        for image in images:
            result = request.infer({"image": manifest.preprocess.apply(image), **noise})
            answers.append({name: TASKS[name].decode(result[name][0]) for name in manifest.tasks})
        return side_by_side(
            [np.stack([answer[name] for answer in answers]) for name in manifest.tasks]
        )

    return predict


if __name__ == "__main__":
    sys.exit(main())
