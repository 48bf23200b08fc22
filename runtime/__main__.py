"""Command line: `python -m runtime predict|verify|info`.

The installed command `lotus-edge` (apps/__main__.py) has these commands and those of the apps.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from runtime.extras import explain_missing_packages

if __name__ == "__main__":
    explain_missing_packages()

from runtime.backends import find_backend
from runtime.batch import predict_all
from runtime.console import prepare, release, say, show
from runtime.encoding import FORMATS
from runtime.engine import LotusEngine
from runtime.errors import LotusError
from runtime.found import find_pictures
from runtime.hub import find_bundle
from runtime.manifest import Bucket, Checkpoint, EngineInfo, Manifest
from runtime.memory import estimate
from runtime.opening import is_worth_keeping
from runtime.options import named, natural, path, positive, seconds
from runtime.reuse import keep_memory
from runtime.saving import DEFAULT, check_formats

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
# Adds one subparser, whose default `run` is a function from the parsed arguments to the exit
# status.
AddCommand: TypeAlias = Callable[[Commands], None]
_BUNDLE = "a folder, or the id of a bundle on the Hugging Face hub"


def main(argv: list[str] | None = None) -> int:
    """Run one command of this runtime. Returns the exit status, as `run`."""
    return run(COMMANDS, argv)


def run(commands: Sequence[AddCommand], argv: list[str] | None = None) -> int:
    """Run one of these commands with `argv` (None: the command line's).

    Returns the exit status: 0 done, 1 an error (or an image that could not be used), 2 wrong
    usage, 130 interrupted. An error is said in words, and with its traceback where LOTUS_EDGE_DEBUG
    is set.
    """
    prepare()
    parser: argparse.ArgumentParser = _Parser(
        prog="lotus-edge", description="Predict with Lotus bundles."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_command in commands:
        add_command(subparsers)
    try:
        arguments = parser.parse_args(argv)
        status: int = arguments.run(arguments)
    except (LotusError, OSError, MemoryError) as error:
        if os.environ.get("LOTUS_EDGE_DEBUG"):
            raise
        say(f"error: {str(error) or 'not enough memory'}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        release()
    return status


class _Parser(argparse.ArgumentParser):
    """Writes as the commands do, also where nobody listens."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.color = False  # Python 3.14 colours help; the console would show the codes

    def print_help(self, file: object = None) -> None:
        show(self.format_help().rstrip())

    def error(self, message: str) -> NoReturn:
        say(self.format_usage().rstrip(), f"{self.prog}: error: {message}")
        raise SystemExit(2)


def add_predict(commands: Commands) -> None:
    """`predict BUNDLE IMAGE... --output DIR`."""
    predict = commands.add_parser(
        "predict",
        help="predict for images or folders of images",
        description="Predict for images, or folders of them. The last line counts what was done, "
        "skipped and failed; the exit status is 0 if nothing failed.",
    )
    predict.add_argument("bundle", type=named, help=_BUNDLE)
    predict.add_argument(
        "images",
        type=path,
        nargs="+",
        metavar="IMAGE",
        help="an image, or a folder (with subfolders)",
    )
    predict.add_argument("--output", type=path, required=True, metavar="DIR")
    predict.add_argument(
        "--save",
        nargs="+",
        choices=[*FORMATS],
        default=DEFAULT,
        metavar="FORMAT",
        help=f"any of {', '.join(FORMATS)}; default: {' '.join(DEFAULT)}",
    )
    _add_opening(predict)
    predict.add_argument("--seed", type=natural, help="noise seed of mode G; default: the bundle's")
    predict.add_argument(
        "--ensemble",
        type=positive,
        metavar="N",
        help="mode G: answer with N seeds, and write their middle and its uncertainty",
    )
    predict.add_argument(
        "--tiles",
        action="store_true",
        default=None,
        help="for large images: add detail with overlapping tiles of the bundle's size",
    )
    predict.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files in DIR that are not results of lotus-edge, or of another picture",
    )
    _add_reading(predict)
    predict.set_defaults(run=_predict)


def add_verify(commands: Commands) -> None:
    """`verify BUNDLE`."""
    verify = commands.add_parser(
        "verify", help="check the files and run the golden sample on this machine"
    )
    verify.add_argument("bundle", type=named, help=_BUNDLE)
    _add_opening(verify)
    verify.set_defaults(run=_verify)


def add_info(commands: Commands) -> None:
    """`info BUNDLE`."""
    info = commands.add_parser("info", help="what a bundle says about itself")
    info.add_argument("bundle", type=named, help=_BUNDLE)
    info.set_defaults(run=_info)


COMMANDS: tuple[AddCommand, ...] = (add_predict, add_verify, add_info)


def _predict(arguments: argparse.Namespace) -> int:
    # What is not given stays out: the engine has the defaults.
    options = {
        name: value
        for name in ("seed", "ensemble", "tiles", "max_pixels", "strict", "icc")
        if (value := getattr(arguments, name)) is not None
    }
    formats = check_formats(arguments.save)
    found = find_pictures(arguments.images, arguments.output)
    if len(found.pictures) > 1:
        keep_memory()
    with _open(arguments) as engine:
        engine.check_seed(arguments.seed, arguments.ensemble or 1)
        failed = predict_all(
            engine,
            found,
            arguments.output,
            overwrite=arguments.overwrite,
            formats=formats,
            options=options,
        )
    return 1 if failed else 0


def _verify(arguments: argparse.Namespace) -> int:
    with _open(arguments) as engine:
        result = engine.verify()
    for bucket, error in result.errors.items():
        of_tasks = {f"{bucket} {task}": each for task, each in error.by_task.items()}
        for what, each in (of_tasks or {bucket: error}).items():
            show(
                f"{what}: differs from the PyTorch reference by {each} "
                f"(tolerance {result.tolerance:g}, {result.backend})"
            )
    show(f"{arguments.bundle}: files and golden are right on this machine")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    manifest = Manifest.load(find_bundle(arguments.bundle))
    golden, files = manifest.golden, manifest.files
    measured = [f"{run.max_abs_error:.2e} ({run.backend})" for run in golden.measured]
    rows = {
        "name": manifest.name,
        **_sources_in_words(manifest),
        "mode": manifest.mode.upper(),
        **{f"output {task}": meaning for task, meaning in manifest.outputs.items()},
        "target": f"{manifest.target}, {manifest.precision}, ONNX opset {manifest.opset}",
        "engine": _engine_in_words(manifest.engine),
        "buckets": ", ".join(map(_bucket_in_words, manifest.buckets)),
        "golden": f"tolerance {golden.tolerance:g}; at build {', '.join(measured) or 'not run'}",
        "size": f"{sum(file.bytes for file in files) / 1e6:.1f} MB in {len(files)} files",
        **_parts_in_words(manifest),
        **_memory_in_words(manifest),
        "tools": ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()),
        "built": f"{manifest.created} by `{manifest.command}`",
    }
    width = max(18, *(len(key) + 2 for key in rows))
    for key, value in rows.items():
        show(f"{key:<{width}}{value}")
    return 0


def _parts_in_words(manifest: Manifest) -> dict[str, str]:
    """How much of the size is what."""
    names: dict[str | None, str] = {
        **{bucket.engine: "engines" for bucket in manifest.buckets},
        **{bucket.graph: "graphs" for bucket in manifest.buckets},
        manifest.golden.file: "golden",
    }
    parts: dict[str, int] = {}
    for file in manifest.files:
        what = names.get(file.path, "weights and others")
        parts[what] = parts.get(what, 0) + file.bytes
    kinds = {} if manifest.memory is None else manifest.memory.weights
    rows = {what: f"{size / 1e6:.1f} MB" for what, size in sorted(parts.items())}
    words = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in sorted(kinds.items()))
    return {
        "of these": ", ".join(f"{what} {size}" for what, size in rows.items()),
        **({"weights": words} if words else {}),
    }


def _memory_in_words(manifest: Manifest) -> dict[str, str]:
    """What a process takes that opens a bucket, with the bundle's target; nothing where unknown."""
    rows = {}
    for bucket in manifest.buckets:
        needed, again = (
            estimate(manifest, bucket, manifest.target, kept=kept) for kept in (False, True)
        )
        if needed is None or again is None:
            continue
        words = f"about {needed / 1e9:.2f} GB to open and predict"
        if again != needed and is_worth_keeping(manifest, bucket, find_backend(manifest.target)):
            words += f", {again / 1e9:.2f} GB once its network is kept"
        rows[f"memory {bucket}"] = words
    return rows


def _sources_in_words(manifest: Manifest) -> dict[str, str]:
    """What the weights are, and their licence; of each task where there are several."""
    several = len(manifest.tasks) > 1
    rows = {}
    for task, source in manifest.sources.items():
        of_task = f" {task}" if several else ""
        rows[f"checkpoint{of_task}"] = _checkpoint_in_words(source.checkpoint)
        if source.licence is not None:
            rows[f"licence{of_task}"] = source.licence
    halves = {"encoder": manifest.vae_encoder, "decoder": manifest.vae_decoder}
    small = {half: vae for half, vae in halves.items() if vae is not None}
    return rows | {half: _checkpoint_in_words(vae) for half, vae in small.items()}


def _checkpoint_in_words(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.id} (sha256 {checkpoint.sha256[:12]})"


def _bucket_in_words(bucket: Bucket) -> str:
    if bucket.noises > 1:
        return f"{bucket} (an ensemble of {bucket.noises} at once)"
    return str(bucket) if bucket.batch == 1 else f"{bucket} ({bucket.batch} images at once)"


def _add_opening(parser: argparse.ArgumentParser) -> None:
    """How a bundle is opened."""
    parser.add_argument("--backend", help="default: the bundle's target")
    parser.add_argument("--device", help="OpenVINO: CPU, GPU, NPU; onnxruntime-cuda: a number")
    parser.add_argument(
        "--threads", type=positive, help="of the CPU; default: the cores this process may use"
    )
    parser.add_argument(
        "--deadline",
        type=seconds,
        metavar="SECONDS",
        help="give up a bundle that takes longer to open, or for its golden sample",
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """How pictures are read."""
    parser.add_argument(
        "--max-pixels", type=positive, metavar="N", help="refuse images of more pixels"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        default=None,
        help="refuse images that can be read only in part",
    )
    parser.add_argument(
        "--no-icc",
        dest="icc",
        action="store_false",
        default=None,
        help="ignore colour profiles in images, as the reference does",
    )


def _open(arguments: argparse.Namespace) -> LotusEngine:
    return LotusEngine(
        arguments.bundle,
        arguments.backend,
        device=arguments.device,
        threads=arguments.threads,
        deadline=arguments.deadline,
    )


def _engine_in_words(built: EngineInfo | None) -> str:
    if built is None:
        return "none"
    return f"{built.flavour} {built.version}, for {built.compute_capability or 'any device'}"


if __name__ == "__main__":
    sys.exit(main())
