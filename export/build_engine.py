"""Build a bundle: `python export/build_engine.py CHECKPOINT [CHECKPOINT ...]`, or finish one on the
device: `--from-bundle`.

Progress goes to stderr; the last line on stdout is the bundle's path.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import signal
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # As a script, Python puts export/ first on sys.path; the project's packages lie one level up.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

# Only light imports here: a Jetson runs `--from-bundle` with NumPy and TensorRT alone.
from export.families import FAMILIES
from export.progress import Progress, say
from export.settings import BuildSettings
from export.targets import TARGETS
from export.targets.target import PRECISIONS
from runtime.errors import LotusError
from runtime.extras import explain_missing_packages, require
from runtime.tasks import TASKS

_ON_DEVICE = ("checkpoint", "beside", "target", "output", "overwrite", "command")
"""The settings that --from-bundle can change; the graph in the bundle has the others."""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Exit status: 0 built, 1 an error, 2 wrong usage, 130/143 interrupted."""
    parser = _parser()
    words = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(words)
    if bool(arguments.checkpoints) == (arguments.from_bundle is not None):
        parser.error("name a CHECKPOINT, or --from-bundle BUNDLE")
    command = " ".join(("python export/build_engine.py", shlex.join(map(without_folders, words))))
    if arguments.from_bundle:
        _refuse_build_options(parser, words)
    try:
        with Progress(sys.stderr):
            act = _finish if arguments.from_bundle else _build
            outcome = act(arguments, command)
    except (LotusError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing of the bundle was left behind\n")
        return 130
    sys.stdout.write(f"{outcome}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    """Every option but the last few stands for the field of BuildSettings of its name; the
    checkpoints for `checkpoint` and `beside`.
    """
    parser = argparse.ArgumentParser(
        prog="python export/build_engine.py", description="Turn checkpoints into a bundle."
    )
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="*",
        metavar="CHECKPOINT",
        help="a diffusers folder, a hub id (ID or ID@REVISION), tiny/disparity-d (embedded), or "
        "random/FAMILY (full size, such as random/lotus-d; random/lotus-d@1 has another UNet); "
        "several that share their autoencoder make one bundle, which encodes a picture once for "
        "all tasks",
    )
    add(
        "--task",
        metavar="TASK[,TASK...]",
        help=f"what each predicts; known ids imply it. One of {', '.join(sorted(TASKS))}",
    )
    _add_bucket_options(parser)
    add("--target", default="onnxruntime", choices=sorted(TARGETS))
    add(
        "--opset",
        type=int,
        choices=[20, 23],
        help="ONNX opset; default: what the target's parser reads",
    )
    add("--output", type=Path, metavar="DIR", help="the bundle's folder; default: engines/<name>")
    add("--overwrite", action="store_true", help="replace an old bundle")
    add(
        "--no-engine",
        dest="engine",
        action="store_false",
        help="leave the engine of --target to the device it is for, though it could be built here",
    )
    _add_network_options(parser)
    _add_precision_options(parser)
    add("--dry-run", action="store_true", help="print what would be built, and build nothing")
    add(
        "--from-bundle",
        type=Path,
        metavar="BUNDLE",
        help="build the engine of --target from this bundle; it is completed in place where it "
        "lacks just that, and otherwise stays as it is: the engine comes into BUNDLE-TARGET",
    )
    return parser


def _add_bucket_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--resolution",
        dest="resolutions",
        type=_resolutions,
        default=(),
        metavar="HxW[,HxW...]",
        help="default: the size of training",
    )
    add(
        "--batch",
        dest="batches",
        type=_batches,
        default=(1,),
        metavar="N[,M...]",
        help="pictures that one run takes; each number makes a bucket of every resolution. "
        "Default 1",
    )
    add(
        "--ensemble",
        type=int,
        default=1,
        metavar="N",
        help="mode G: beside these buckets one of every resolution that takes N noises of one "
        "picture, which is encoded once",
    )


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("the network")
    network.add_argument(
        "--family",
        metavar="FAMILY[,FAMILY...]",
        help="which kind of network it is, one for all or one for each; known ids imply it, and "
        f"configs where they can. One of {', '.join(FAMILIES)}",
    )
    network.add_argument(
        "--base",
        metavar="CHECKPOINT2",
        help="for a UNet alone (GenPercept): the folder or hub id of autoencoder and text encoder",
    )
    network.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="noise of mode G, and weights of random/...; default 0",
    )
    network.add_argument(
        "--fixed-noise", action="store_true", help="mode G: make the seed's noise part of the graph"
    )
    network.add_argument(
        "--vae",
        metavar="CHECKPOINT2",
        help="a small autoencoder in place of the checkpoint's: an AutoencoderTiny's folder, a hub "
        "id such as madebyollin/taesd, tiny/taesd (embedded), or random/taesd (full size)",
    )
    for half in ("encoder", "decoder"):
        network.add_argument(
            f"--vae-{half}", metavar="CHECKPOINT2", help=f"the same for the {half} alone"
        )
    network.add_argument(
        "--no-folds", dest="folds", action="store_false", help="the plain graph, for comparison"
    )


def _add_precision_options(parser: argparse.ArgumentParser) -> None:
    precision = parser.add_argument_group("precision")
    precision.add_argument("--precision", default="fp32", choices=PRECISIONS)
    precision.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="images to calibrate with: a folder of them, or a published data set such as "
        "ROOT/nyuv2 (docs/evaluation.md); default: rendered ones",
    )
    precision.add_argument(
        "--calibration-images", type=int, default=8, metavar="N", help="how many; default 8"
    )
    precision.add_argument(
        "--budget",
        type=_numbers,
        metavar="X[,Y...]",
        help="int8: the largest error of each task against the fp32 prediction, as AbsRel after "
        "alignment (default 0.01) or in degrees (default 1)",
    )
    precision.add_argument(
        "--policy", type=Path, metavar="FILE", help="int8: policy.json of another bundle; no search"
    )


def _refuse_build_options(parser: argparse.ArgumentParser, words: list[str]) -> None:
    # What is there already keeps its value where a word does not set it, defaults included.
    untouched = object()
    given = parser.parse_args(
        words, argparse.Namespace(**{action.dest: untouched for action in parser._actions})
    )
    options = {
        action.dest: action.option_strings[-1]
        for action in parser._actions
        if action.option_strings
    }
    changed = [
        options[field.name]
        for field in dataclasses.fields(BuildSettings)
        if field.name not in _ON_DEVICE and getattr(given, field.name) is not untouched
    ]
    if given.dry_run is not untouched:
        parser.error("--dry-run shows no plan with --from-bundle: leave it out")
    if given.engine is not untouched:
        parser.error("--no-engine leaves nothing to do with --from-bundle: leave one of them out")
    if changed:
        parser.error(
            f"{', '.join(changed)} cannot be changed with --from-bundle: the graph in the bundle "
            "has them"
        )


def _build(arguments: argparse.Namespace, command: str) -> str:
    """The new bundle's path, or with --dry-run the plan."""
    from export.plan import make_plan

    if not arguments.dry_run:
        require("torch")  # before anything is downloaded
    fields = {field.name for field in dataclasses.fields(BuildSettings)} - {"command"}
    request = {name: value for name, value in vars(arguments).items() if name in fields}
    first, *others = arguments.checkpoints
    plan = make_plan(
        BuildSettings(checkpoint=first, beside=tuple(others), **request, command=command)
    )
    if arguments.dry_run:
        return "\n".join(plan.lines())
    say("loading PyTorch")
    from export.pipeline import Build

    return str(Build(plan=plan).run())


def _finish(arguments: argparse.Namespace, command: str) -> str:
    """The path of the bundle with the engine."""
    from export.bundle.finalize import finish_on_device

    bundle = finish_on_device(
        arguments.from_bundle,
        target_name=arguments.target,
        output=arguments.output,
        overwrite=arguments.overwrite,
        command=command,
    )
    return str(bundle)


def without_folders(word: str) -> str:
    """A word of a command line with its paths cut down to their last part: bundles and rows travel,
    folders do not.
    """
    is_option = word.startswith("-")
    option, equals, value = word.partition("=") if is_option else ("", "", word)
    if not equals:
        option, value = "", word
    path = Path(value)
    return option + equals + (path.name if path.is_absolute() or ".." in path.parts else value)


def _resolutions(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = (tuple(int(edge) for edge in size.split("x")) for size in text.lower().split(","))
        return tuple((height, width) for height, width in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HxW[,HxW...] in pixels, such as 512x512,384x640"
        ) from None


def _batches(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not N[,M...], such as 1,4")
    return tuple(map(int, text.split(",")))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a non-negative integer below 2^63")
    return int(text)


def command() -> int:
    """The command as a process: a termination becomes an exception, so that a half-built folder is
    removed.
    """
    explain_missing_packages()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return main()


if __name__ == "__main__":
    sys.exit(command())
