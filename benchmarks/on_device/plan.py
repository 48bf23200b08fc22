"""The steps of a run, in the order of their value."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.baselines import Work
from benchmarks.on_device.contenders import PYTORCH, Contender, why_not

RATES, PLUMBING, ASTRAY, FOLDED = "rates", "plumbing", "plumbing-astray", "folds"


@dataclass(frozen=True, kw_only=True)
class Step:
    """`action` of the worker with `options`.

    `after` are steps without whose result there is no point in this one; `uses` are options that
    are the results of other steps, None where there is none. `why_not` says why it is not even
    tried. `title` is what the report calls it.
    """

    name: str
    title: str
    action: str
    options: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    uses: Mapping[str, str] = field(default_factory=dict)
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured: `image` is a path, `seconds` how long each measurement repeats."""

    work: Work
    image: str
    seconds: float


def plan(contenders: Sequence[Contender], facts: Mapping[str, Any], setting: Setting) -> list[Step]:
    """On a GPU what is quick and sure comes first; on a CPU, where everything takes long, the first
    contender does.
    """
    nvidia = bool(facts["nvidia"])
    possible = [each for each in contenders if not why_not(each, facts)]
    chains = [list(_chain(each, facts, setting)) for each in possible]
    proofs = list(_proofs(setting, nvidia, no_torch=facts["backends"]["pytorch"]))
    references, fold = proofs[3:-1], proofs[-1:]
    if nvidia:
        ordered = [*proofs, *itertools.chain(*chains)]
    else:
        first, later = itertools.chain(*chains[:1]), itertools.chain(*chains[1:])
        ordered = [*proofs[:3], *first, *references, *later, *fold]
    lacking = [
        Step(name=f"{each.name}.lacking", title=each.meaning, action="build", why_not=reason)
        for each in contenders
        if (reason := why_not(each, facts))
    ]
    seen: dict[str, Step] = {}
    for step in (*ordered, *lacking):
        seen.setdefault(step.name, step)  # two contenders may share a source
    return list(seen.values())


def build_name(contender: Contender) -> str:
    """The step that builds its source; contenders that share it share the step."""
    return f"{contender.kind}.build"


def _proofs(setting: Setting, nvidia: bool, no_torch: str) -> Iterator[Step]:
    """What belongs to no contender: two proofs of the plumbing, the rates, the references, and last
    the folds. `no_torch` says why there is no PyTorch, or is "".
    """
    work = setting.work
    edge = int(work.resolution.split("x")[0])
    no_gpu = "" if nvidia else "there is no NVIDIA GPU"
    if not work.checkpoint:
        no_torch = (
            "the bundle's checkpoint is not here, or it has several: name one with --checkpoint"
        )
    same = {
        "checkpoint": work.checkpoint,
        "task": work.task,
        "resolution": work.resolution,
        "image": setting.image,
        "seconds": setting.seconds,
    }
    yield Step(
        name=PLUMBING,
        title="CUDA plumbing of the TensorRT backend",
        action="plumbing",
        options={"edge": edge},
        why_not=no_gpu,
    )
    yield Step(
        name=ASTRAY,
        title="CUDA plumbing: a kernel astray",
        action="astray",
        options={"edge": edge},
        after=() if no_gpu else (PLUMBING,),
        why_not=no_gpu,
    )
    yield Step(
        name=RATES,
        title="rates of this machine",
        action="rates",
        options={"seconds": setting.seconds},
    )
    for name in PYTORCH:
        half = name != PYTORCH[0]
        yield Step(
            name=f"{name}.latency",
            title=f"{name}: latency",
            action="reference",
            options={"name": name} | same,
            why_not=no_torch or (no_gpu if half else ""),
        )
    yield Step(
        name=FOLDED,
        title="folds in PyTorch",
        action="folded",
        options=same | {"target": "tensorrt"},
        why_not=no_torch,
    )


def _chain(contender: Contender, facts: Mapping[str, Any], setting: Setting) -> Iterator[Step]:
    """Build, verify and measure one contender."""
    name, built = contender.name, build_name(contender)
    yield Step(
        name=built,
        title=f"{contender.kind}: build",
        action="build",
        options={"bundle": contender.source, "words": list(contender.words)},
    )
    if contender.needs_engine:
        yield Step(
            name=(finished := f"{name}.engine"),
            title=f"{name}: engine",
            action="engine",
            options={
                "source": contender.source,
                "bundle": contender.bundle,
                "target": contender.target,
            },
            after=(built,),
        )
        built = finished
    yield from _measured(contender, built, facts, setting)


def _measured(
    contender: Contender, built: str, facts: Mapping[str, Any], setting: Setting
) -> Iterator[Step]:
    """Verify and measure one whose bundle is there after the step `built`."""
    name = contender.name
    opened = {
        "bundle": contender.bundle,
        "backend": contender.backend,
        "device": contender.device,
    }
    timed = opened | {"seconds": setting.seconds}
    yield Step(
        name=(verified := f"{name}.verify"),
        title=f"{name}: verify",
        action="verify",
        options=opened,
        after=(built,),
    )
    yield Step(
        name=f"{name}.latency",
        title=f"{name}: latency",
        action="latency",
        options=timed | {"image": setting.image},
        after=(built, verified),
    )
    yield Step(
        name=f"{name}.bound",
        title=f"{name}: roofline",
        action="bound",
        options={
            "bundle": contender.bundle,
            "precision": contender.precision,
            "device": facts["device"],
            "on_gpu": contender.backend.startswith("tensorrt")
            or contender.backend == "onnxruntime-cuda",
        },
        after=(built,),
        uses={"measured": RATES},
    )
    yield Step(
        name=f"{name}.stages",
        title=f"{name}: stages",
        action="stages",
        options=timed,
        after=(built, verified),
        uses={"latency": f"{name}.latency"},
    )
