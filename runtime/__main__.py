"""Command line: `python -m runtime predict|verify|info`.

The installed command `lotus-edge` (apps/__main__.py) has these commands and those of the apps.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from runtime.engine import LotusEngine
from runtime.errors import ImageError, LotusError, OutputError
from runtime.image import IMAGE_SUFFIXES
from runtime.manifest import EngineInfo, Manifest
from runtime.prediction import saved_paths

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
# Adds one subparser, whose default `run` is a function from the parsed arguments to the exit
# status.
AddCommand: TypeAlias = Callable[[Commands], None]


def main(argv: list[str] | None = None) -> int:
    """Run one command of this runtime. Returns the exit status, as `run`."""
    return run(COMMANDS, argv)


def run(commands: Sequence[AddCommand], argv: list[str] | None = None) -> int:
    """Run one of these commands with `argv` (None: the command line's).

    Returns the exit status: 0 done, 1 an error (or an image that could not be used), 2 wrong
    usage.
    """
    parser = argparse.ArgumentParser(prog="lotus-edge", description="Predict with Lotus bundles.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_command in commands:
        add_command(subparsers)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except LotusError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        # Or the flush at exit complains again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def add_predict(commands: Commands) -> None:
    """`predict BUNDLE IMAGE... --output DIR`."""
    predict = commands.add_parser("predict", help="predict for images or folders of images")
    predict.add_argument("bundle", type=Path)
    predict.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="an image, or a folder (with subfolders)",
    )
    predict.add_argument("--output", type=Path, required=True, metavar="DIR")
    predict.add_argument("--backend", help="default: the bundle's target")
    predict.add_argument("--seed", type=int, help="noise seed of mode G; default: the bundle's")
    predict.set_defaults(run=_predict)


def add_verify(commands: Commands) -> None:
    """`verify BUNDLE`."""
    verify = commands.add_parser(
        "verify", help="check the files and run the golden sample on this machine"
    )
    verify.add_argument("bundle", type=Path)
    verify.add_argument("--backend", help="default: the bundle's target")
    verify.set_defaults(run=_verify)


def add_info(commands: Commands) -> None:
    """`info BUNDLE`."""
    info = commands.add_parser("info", help="what a bundle says about itself")
    info.add_argument("bundle", type=Path)
    info.set_defaults(run=_info)


COMMANDS: tuple[AddCommand, ...] = (add_predict, add_verify, add_info)


def _predict(arguments: argparse.Namespace) -> int:
    images = _with_stems(list(_expand(arguments.images, arguments.output)), arguments.output)
    bad: list[str] = []
    try:
        with LotusEngine(arguments.bundle, arguments.backend) as engine:
            for number, (path, stem) in enumerate(images, start=1):
                start = time.perf_counter()
                try:
                    saved = engine(path, seed=arguments.seed).save(stem.parent, stem.name)
                    outcome = f"{time.perf_counter() - start:.2f} s -> {saved[-1]}"
                except ImageError as error:
                    bad.append(str(error))
                    outcome = f"FAILED: {error}"
                _say(f"[{number}/{len(images)}] {path}  {outcome}")
    finally:
        if bad:
            _say(
                f"{len(bad)} of {len(images)} images could not be used:",
                *(f"  {reason}" for reason in bad),
            )
    return 1 if bad else 0


def _verify(arguments: argparse.Namespace) -> int:
    with LotusEngine(arguments.bundle, arguments.backend) as engine:
        result = engine.verify()
    for bucket, error in result.errors.items():
        _print(
            f"{bucket}: differs from the PyTorch reference by {error} "
            f"(tolerance {result.tolerance:g}, {result.backend})"
        )
    _print(f"{arguments.bundle}: files and golden are right on this machine")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    manifest = Manifest.load(arguments.bundle)
    golden, files = manifest.golden, manifest.files
    measured = [f"{run.max_abs_error:.2e} ({run.backend})" for run in golden.measured]
    weights = {
        "checkpoint": manifest.checkpoint,
        "encoder": manifest.vae_encoder,
        "decoder": manifest.vae_decoder,
    }
    rows = {
        "name": manifest.name,
        **{
            part: f"{entry.id} (sha256 {entry.sha256[:12]})"
            for part, entry in weights.items()
            if entry is not None
        },
        **({"licence": manifest.licence} if manifest.licence is not None else {}),
        "mode": manifest.mode.upper(),
        **{f"output {task}": meaning for task, meaning in manifest.outputs.items()},
        "target": f"{manifest.target}, {manifest.precision}, ONNX opset {manifest.opset}",
        "engine": _engine_in_words(manifest.engine),
        "buckets": ", ".join(str(bucket) for bucket in manifest.buckets),
        "golden": f"tolerance {golden.tolerance:g}; at build {', '.join(measured) or 'not run'}",
        "size": f"{sum(file.bytes for file in files) / 1e6:.1f} MB in {len(files)} files",
        "tools": ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()),
        "built": f"{manifest.created} by `{manifest.command}`",
    }
    for key, value in rows.items():
        _print(f"{key:<18}{value}")
    return 0


def _engine_in_words(built: EngineInfo | None) -> str:
    if built is None:
        return "none"
    return f"{built.flavour} {built.version}, for {built.compute_capability or 'any device'}"


def _expand(paths: list[Path], output: Path) -> Iterator[tuple[Path, Path]]:
    """Pairs (image, name without suffix, relative to the output folder). Folders are walked;
    `output` is left out.
    """
    for path in paths:
        if not path.is_dir():
            yield path, Path(path.stem)
            continue
        if path.resolve() == output.resolve():
            raise OutputError(
                f"--output {output} is the folder of the images; name another, or a folder inside "
                "it"
            )
        # An earlier run's results are not images to predict.
        inside = path.resolve() in output.resolve().parents
        for image in sorted(path.rglob("*")):
            if inside and image.resolve().is_relative_to(output.resolve()):
                continue
            if image.suffix.lower() in IMAGE_SUFFIXES and image.is_file():
                yield image, image.relative_to(path).with_suffix("")


def _with_stems(images: list[tuple[Path, Path]], output: Path) -> list[tuple[Path, Path]]:
    """Pairs (image, path to save to, without ending) under which no result overwrites another, or
    an image.

    `a.jpg` beside `a.png` become `a-jpg` and `a-png`. Raises: ImageError without images,
    OutputError.
    """
    if not images:
        raise ImageError("no images found in what was given")
    count = Counter(name for _, name in images)
    stems = [
        (
            path,
            output
            / (name if count[name] == 1 else name.with_name(f"{name.name}-{path.suffix[1:]}")),
        )
        for path, name in images
    ]
    owners = {path.resolve(): f"the image {path}" for path, _ in stems}
    for path, stem in stems:
        for target in saved_paths(stem):
            if owner := owners.get(target.resolve()):
                raise OutputError(
                    f"the result of {path} would overwrite {owner}; choose another --output "
                    "folder, or predict into separate folders"
                )
            owners[target.resolve()] = f"that of {path} ({target})"
    return stems


def _say(*lines: str) -> None:
    """Progress and errors go to stderr."""
    for line in lines:
        sys.stderr.write(f"{line}\n")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
