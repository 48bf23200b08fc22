"""`lotus-edge video BUNDLE INPUT --output FILE|DIR`: maps of every frame."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

from apps.video.forms import FORMS, Form
from apps.video.predict import Mode, Predictor
from apps.video.preview import Preview
from apps.video.run import Run
from apps.video.source import Choice, Source, open_source
from apps.video.work import Work
from runtime.console import say, show
from runtime.engine import LotusEngine
from runtime.errors import ImageError, LotusError, OutputError
from runtime.extras import require
from runtime.files import ending, sha256_of
from runtime.tasks import TASKS
from runtime.there import exists, is_dir


def _rate(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a number such as 30 or 30000/1001: {error}"
        ) from error


_FORMS_IN_WORDS = "; ".join(f"{form.name}: {form.meaning}" for form in FORMS.values())
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--task", {"help": "default: the bundle's first for a film, all of them for a folder"}),
    (
        "--steady",
        {
            "choices": ("off", "causal", "clip"),
            "help": "against flicker, by frames before (causal), or before and after (clip); "
            "default: clip, for cameras causal",
        },
    ),
    (
        "--smooth",
        {
            "action": "store_true",
            "help": "after that, smooth the maps along motion, by the frames before (extra flow)",
        },
    ),
    ("--seed", {"type": int, "help": "noise of mode G, the same in each frame"}),
    ("--backend", {"help": "default: the bundle's target"}),
    ("--every", {"type": int, "default": 1, "metavar": "N", "help": "use every N-th frame (1)"}),
    ("--start", {"type": float, "default": 0.0, "metavar": "SECONDS", "help": "leave out before"}),
    ("--duration", {"type": float, "metavar": "SECONDS", "help": "leave out what comes after"}),
    (
        "--max-size",
        {"type": int, "metavar": "PIXELS", "help": "shrink the result to this longer edge"},
    ),
    (
        "--rate",
        {"type": _rate, "default": Fraction(30), "help": "frames/s of a folder's pictures (30)"},
    ),
    ("--resume", {"action": "store_true", "help": "go on with a run that was ended"}),
    ("--overwrite", {"action": "store_true", "help": "begin anew; replace the output"}),
    (
        "--preview",
        {
            "type": int,
            "metavar": "PORT",
            "help": "show frames in a browser on this machine, http://127.0.0.1:PORT",
        },
    ),
)


def add_video(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`video BUNDLE INPUT --output FILE|DIR`."""
    video = commands.add_parser(
        "video",
        help="maps of a film, a folder of pictures or a camera, without flicker",
        description="Predict for every frame. What was done is written beside the result, as "
        "OUTPUT.json, or video.json in the folder. A run that was ended goes on with --resume.",
    )
    video.add_argument("bundle")
    video.add_argument(
        "input",
        metavar="INPUT",
        help="a film, a folder of pictures, a pattern such as 'frames/*.png', or camera:0",
    )
    video.add_argument(
        "--output", type=Path, required=True, help="a film (.mp4, .mov, .mkv) or a folder"
    )
    video.add_argument(
        "--form",
        choices=tuple(FORMS),
        help=f"{_FORMS_IN_WORDS}. Default: color for a film, frames for a folder",
    )
    for name, option in _OPTIONS:
        video.add_argument(name, **option)
    video.set_defaults(run=_video)


def _video(arguments: argparse.Namespace) -> int:
    require("av", *(["cv2"] if arguments.smooth else []))
    _check(arguments)
    form = _form(arguments)
    choice = Choice(
        every=arguments.every,
        start=arguments.start,
        duration=arguments.duration,
        max_size=arguments.max_size,
    )
    source = open_source(arguments.input, choice, arguments.rate)
    _check_apart(source, arguments.output)
    mode: Mode = arguments.steady or ("causal" if source.live else "clip")
    if source.live and (mode == "clip" or arguments.resume):
        what = "--steady clip" if mode == "clip" else "--resume"
        raise ImageError(f"{what} needs a file: what a camera has shown is gone")
    with LotusEngine(arguments.bundle, arguments.backend) as engine:
        engine.check_seed(arguments.seed)
        tasks = _tasks(engine, arguments.task, form)
        job = _job(arguments, engine, source, form, mode, tasks)
        if _is_done(arguments, form, job):
            show(f"{arguments.output}: done already")
            return 0
        with contextlib.ExitStack() as stack:
            preview = None
            if arguments.preview is not None:
                preview = stack.enter_context(Preview(arguments.preview))
                say(f"preview: {preview.url}")
            anew = arguments.overwrite or source.live
            folder = _work_folder(arguments.output, form)
            work = Work(folder, job, resume=arguments.resume, anew=anew)
            run = Run(
                source=source,
                choice=choice,
                form=form,
                mode=mode,
                tasks=tasks,
                output=arguments.output,
                work=work,
                job=job,
                smooth=arguments.smooth,
            )
            predictor = Predictor(
                engine,
                tasks,
                mode,
                seed=arguments.seed,
                smooth=arguments.smooth,
                show=preview.show if preview else None,
            )
            try:
                told = run(predictor)
            except BaseException:
                _leave(run)
                raise
    for note in told["notes"]:
        say(f"warning: {arguments.input}: {note}")
    show(f"{arguments.output}: {told['frames']} frames, {'; '.join(tasks)}; {told['steady']}")
    return 0


def _leave(run: Run) -> None:
    """Keep what is done of a run that was ended; where that is nothing, leave nothing."""
    if run.work.chunks("done") or run.work.chunks("spooled"):
        say(f"what is done lies in {run.work.folder}: go on with --resume")
        return
    run.work.remove()
    if not run.form.film:
        with contextlib.suppress(OSError):  # something else is in it
            run.output.rmdir()


def _check(arguments: argparse.Namespace) -> None:
    """Refuse numbers that make no sense before anything is opened. Raises: ImageError."""
    for name, least in (("every", 1), ("max_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ImageError(f"--{name.replace('_', '-')} is 1, 2, 3, ..., found {value}")
    if not 0 <= arguments.start < math.inf:
        raise ImageError(f"--start is a time in seconds, found {arguments.start}")
    if arguments.duration is not None and not 0 < arguments.duration < math.inf:
        raise ImageError(f"--duration is a time in seconds, found {arguments.duration}")
    if not 0 < arguments.rate <= 1000:
        raise ImageError(f"--rate is a number of frames a second, found {arguments.rate}")
    if arguments.preview is not None and not 0 <= arguments.preview < 65536:
        raise ImageError(f"--preview is a port from 1 to 65535, found {arguments.preview}")


def _form(arguments: argparse.Namespace) -> Form:
    """The form that was asked for, or that the output's name speaks of. Raises: OutputError."""
    output: Path = arguments.output
    kind = ending(output).lower()
    looks_like_film = kind in FORMS["color"].suffixes and not is_dir(output)
    form = FORMS[arguments.form or ("color" if looks_like_film else "frames")]
    if form.film and kind not in form.suffixes:
        raise OutputError(
            f"--form {form.name} is a file that ends with {', '.join(form.suffixes)}, "
            f"found {output}"
        )
    if form.film and is_dir(output):
        raise OutputError(f"cannot write {output}: there is a folder of this name")
    if not form.film and looks_like_film:
        raise OutputError(f"--form {form.name} fills a folder, and {output} has the name of a film")
    if not form.film and exists(output) and not is_dir(output):
        raise OutputError(f"--form {form.name} fills a folder, and {output} is a file")
    return form


def _check_apart(source: Source, output: Path) -> None:
    """Refuse an output that is the input, or a folder above it. Raises: OutputError."""
    folders = {file.parent.resolve() for file in source.files}
    read = {*source.files, *folders, *(above for folder in folders for above in folder.parents)}
    if exists(output) and any(map(output.samefile, read)):
        raise OutputError(f"{source.name} is, or lies in, the output {output}: choose another name")


def _tasks(engine: LotusEngine, asked: str | None, form: Form) -> tuple[str, ...]:
    there = tuple(engine.manifest.tasks)
    if asked is None:
        return there[:1] if form.film else there
    if asked not in there:
        raise LotusError(f"this bundle answers {', '.join(there)}, not {asked!r}")
    return (asked,)


def _job(
    arguments: argparse.Namespace,
    engine: LotusEngine,
    source: Source,
    form: Form,
    mode: Mode,
    tasks: tuple[str, ...],
) -> dict[str, Any]:
    """All that the result depends on."""
    return {
        "input": Path(arguments.input).name,
        "input_known_by": source.fingerprint(),
        "bundle": engine.manifest.name,
        "manifest_sha256": sha256_of(engine.folder / "manifest.json"),
        "backend": engine.backend,
        "tasks": list(tasks),
        "form": form.name,
        "steady": mode,
        "smooth": arguments.smooth,
        "seed": arguments.seed,
        "every": arguments.every,
        "start": arguments.start,
        "duration": arguments.duration,
        "max_size": arguments.max_size,
        "rate": str(arguments.rate),
    }


def _work_folder(output: Path, form: Form) -> Path:
    if form.film:
        return output.with_name(f".{output.name}.lotus-video")
    return output / ".lotus-video"


def _is_done(arguments: argparse.Namespace, form: Form, job: dict[str, Any]) -> bool:
    """Whether the output of this very run is there. Raises: OutputError for another one."""
    output: Path = arguments.output
    work = _work_folder(output, form)
    if form.film:
        beside, there = output.with_name(f"{output.name}.json"), exists(output)
    else:
        beside = output / "video.json"
        there = is_dir(output) and any(path != work for path in output.iterdir())
    if not there or arguments.overwrite or (arguments.resume and exists(work)):
        if arguments.overwrite and not form.film:
            _remove_results(output)
        return False
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    if arguments.resume and isinstance(before, dict) and before.get("job") == job:
        return True
    if exists(work) and not form.film:
        return False  # an unfinished run, of which `Work` says what to do
    what = "exists" if form.film else "is not empty"
    raise OutputError(f"{output} {what}: choose another name, or replace it with --overwrite")


def _remove_results(folder: Path) -> None:
    """The results of an earlier run that `video.json` or our unfinished work stands for: all else
    stays. Names are those that `apps.video.forms` gives.
    """
    ours = exists(folder / "video.json") or exists(folder / ".lotus-video")
    if not ours:
        return
    numbered = "[0-9]" * 6
    for task in TASKS:
        for pattern in (f"{task}/{numbered}.png", f"{task}-{numbered}.npz"):
            for path in folder.glob(pattern):
                path.unlink()
    (folder / "video.json").unlink(missing_ok=True)
