"""Build a bundle: `python export/build_engine.py CHECKPOINT [...]`, or finish one on the device: `--from-bundle`.

Progress goes to stderr; the last line on stdout is the bundle's path.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    # As a script, Python puts export/ first on sys.path; the project's packages lie one level up.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

# Only light imports here: a Jetson runs `--from-bundle` with NumPy and TensorRT alone.
from export.targets import TARGETS
from runtime.errors import LotusError
from runtime.tasks import TASKS

# What the graph in a bundle already has.
_BUILD_ONLY = (
    *("task", "resolution", "precision", "opset", "seed", "fixed_noise", "no_folds"),
    *("calibration", "calibration_images", "budget", "policy"),
    *("vae", "vae_encoder", "vae_decoder"),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command. Exit status: 0 built, 1 an error, 2 wrong usage, 130/143 interrupted."""
    parser = _parser()
    words = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(words)
    if (arguments.checkpoint is None) == (arguments.from_bundle is None):
        parser.error("name a CHECKPOINT, or --from-bundle BUNDLE")
    changed = [name for name in _BUILD_ONLY if getattr(arguments, name) != parser.get_default(name)]
    ignored = [f"--{name.replace('_', '-')}" for name in changed]
    if arguments.from_bundle and ignored:
        parser.error(f"{', '.join(ignored)} cannot be changed with --from-bundle: the graph in the bundle has them")
    command = shlex.join(["python", "export/build_engine.py", *map(without_folders, words)])
    try:
        bundle = _finish(arguments, command) if arguments.from_bundle else _build(arguments, command)
    except LotusError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing of the bundle was left behind\n")
        return 130
    sys.stdout.write(f"{bundle}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="build_engine.py", description="Turn a Lotus checkpoint into a bundle.")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="a diffusers folder, a hub id, tiny/disparity-d (embedded), or random/lotus-d, random/lotus-g (full size)",
    )
    parser.add_argument("--task", choices=sorted(TASKS), help="what it predicts; known ids imply it")
    parser.add_argument(
        "--resolution", type=_resolutions, default=(), metavar="HxW[,HxW...]", help="default: the size of training"
    )
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16", "int8"])
    parser.add_argument("--target", default="onnxruntime", choices=sorted(TARGETS))
    parser.add_argument(
        "--opset", type=int, choices=[20, 23], help="ONNX opset; default: what the target's parser reads"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="the bundle's folder; default: engines/<name>")
    parser.add_argument("--seed", type=_seed, default=0, help="noise of mode G, and weights of random/...; default 0")
    parser.add_argument("--fixed-noise", action="store_true", help="mode G: make the seed's noise part of the graph")
    parser.add_argument(
        "--vae",
        metavar="CHECKPOINT2",
        help="a small autoencoder in place of the checkpoint's: an AutoencoderTiny's folder, a hub id such as "
        "madebyollin/taesd, tiny/taesd (embedded), or random/taesd (full size)",
    )
    for half in ("encoder", "decoder"):
        parser.add_argument(f"--vae-{half}", metavar="CHECKPOINT2", help=f"the same for the {half} alone")
    parser.add_argument("--no-folds", action="store_true", help="the plain graph, for comparison")
    lower = parser.add_argument_group("fp16, bf16, int8")
    lower.add_argument(
        "--calibration", type=Path, metavar="DIR", help="images to calibrate with; default: rendered ones"
    )
    lower.add_argument("--calibration-images", type=int, default=8, metavar="N", help="how many; default 8")
    lower.add_argument(
        "--budget",
        type=float,
        help="int8: largest distance from the fp32 prediction, as AbsRel after alignment (default 0.01) or degrees "
        "(default 1)",
    )
    lower.add_argument("--policy", type=Path, metavar="FILE", help="int8: policy.json of another bundle; no search")
    parser.add_argument("--overwrite", action="store_true", help="replace an old bundle")
    parser.add_argument(
        "--from-bundle", type=Path, metavar="BUNDLE", help="build the engine of --target from this bundle"
    )
    return parser


def _build(arguments: argparse.Namespace, command: str) -> Path:
    progress = _Progress()
    progress("loading PyTorch")
    from export.assemble import BuildSettings, build

    settings = BuildSettings(
        checkpoint=arguments.checkpoint,
        task=arguments.task,
        resolutions=arguments.resolution,
        precision=arguments.precision,
        target=arguments.target,
        opset=arguments.opset,
        output=arguments.output,
        seed=arguments.seed,
        folds=not arguments.no_folds,
        fixed_noise=arguments.fixed_noise,
        vae_encoder=arguments.vae_encoder or arguments.vae,
        vae_decoder=arguments.vae_decoder or arguments.vae,
        overwrite=arguments.overwrite,
        calibration=arguments.calibration,
        calibration_images=arguments.calibration_images,
        budget=arguments.budget,
        policy=arguments.policy,
        command=command,
    )
    return build(settings, progress)


def _finish(arguments: argparse.Namespace, command: str) -> Path:
    from export.bundle import finish_on_device

    return finish_on_device(
        arguments.from_bundle,
        target=arguments.target,
        output=arguments.output,
        overwrite=arguments.overwrite,
        command=command,
        progress=_Progress(),
    )


class _Progress:
    """One line on stderr for each step, with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self, line: str) -> None:
        sys.stderr.write(f"[{time.perf_counter() - self._start:6.1f} s] {line}\n")


def without_folders(word: str) -> str:
    """A word of a command line with its paths cut down to their last part: bundles and rows travel, folders do not."""
    option, equals, value = word.rpartition("=")
    path = Path(value)
    return option + equals + (path.name if path.is_absolute() or ".." in path.parts else value)


def _resolutions(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = tuple(tuple(int(edge) for edge in size.split("x")) for size in text.lower().split(","))
        return tuple((height, width) for height, width in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW[,HxW...] in pixels, such as 512x512,384x640") from None


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a non-negative integer below 2^63")
    return int(text)


def command() -> int:
    """The command as a process: a termination becomes an exception, so that a half-built folder is removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return main()


if __name__ == "__main__":
    sys.exit(command())
