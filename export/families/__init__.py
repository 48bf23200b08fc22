"""Model families: single-step networks that differ in data only.

A family is a value. Adding one takes a file here and an entry of FAMILIES. Its reference, the
computation of its authors in PyTorch, stands beside it and shares nothing with the exported
network.
"""

from __future__ import annotations

import dataclasses

from export.errors import CheckpointError
from export.families.e2e_ft import E2E_FT
from export.families.family import Configs, Family
from export.families.genpercept import GENPERCEPT
from export.families.lotus import LOTUS_D, LOTUS_G
from export.families.marigold import MARIGOLD
from export.families.others import refuse_by_id, refuse_by_structure
from runtime.tasks import TASKS, Task

__all__ = [
    "FAMILIES",
    "LOTUS_D",
    "LOTUS_G",
    "Configs",
    "Family",
    "find_family",
    "known_ids",
    "named_family",
    "refuse_by_id",
    "resolve_task",
]

FAMILIES: dict[str, Family] = {
    family.name: family for family in (LOTUS_D, LOTUS_G, E2E_FT, MARIGOLD, GENPERCEPT)
}


def known_ids() -> dict[str, tuple[Family, str]]:
    """Family and task by the id of a published or embedded checkpoint."""
    return {
        name: (family, task)
        for family in FAMILIES.values()
        for name, task in family.known_ids.items()
    }


def named_family(name: str, asked: str | None) -> Family | None:
    """The family that was asked for, or that a known id implies; None where neither says it.

    Raises: CheckpointError where they differ, or for an unknown one.
    """
    implied = known_ids()[name][0] if name in known_ids() else None
    if asked is not None and asked not in FAMILIES:
        raise CheckpointError(f"unknown family {asked!r}; known: {sorted(FAMILIES)}")
    if asked is not None and implied is not None and implied.name != asked:
        raise CheckpointError(
            f"{name!r} is known as {implied.name}, but --family {asked} was asked"
        )
    return implied if asked is None else FAMILIES[asked]


def find_family(name: str, configs: Configs, asked: str | None = None) -> Family:
    """The family of a checkpoint, with the timestep and the factors of its scheduler: the one that
    was asked for or that a known id implies, or the only one that fits the configs.

    Raises: CheckpointError, which says for each family what it would have wanted, or which ones
    fit.
    """
    named = named_family(name, asked)
    refuse_by_structure(name, configs)
    candidates = list(FAMILIES.values()) if named is None else [named]
    shapes = {family.name: family.mismatches(configs.unet, configs.vae) for family in candidates}
    doubts = {
        family.name: [] if named is not None or shapes[family.name] else family.doubts(configs)
        for family in candidates
    }
    against = {name: shapes[name] + doubts[name] for name in shapes}
    fitting = [family for family in candidates if not against[family.name]]
    if not fitting:
        lines = [f"  {family}: {'; '.join(reasons)}" for family, reasons in against.items()]
        kind = "a known family" if named is None else f"the family {named.name}"
        possible = [family for family, reasons in doubts.items() if reasons]
        advice = f"\nIf you know that it is one, pass --family with one of {possible}"
        raise CheckpointError(
            f"{name!r} is no checkpoint of {kind}. What each family has:\n"
            + "\n".join(lines)
            + (advice if possible else "")
        )
    if len(fitting) > 1:
        lines = [f"  {family.name}: {family.about}" for family in fitting]
        raise CheckpointError(
            f"the configs of {name!r} do not tell which family it is; pass --family with one of:\n"
            + "\n".join(lines)
        )
    try:
        return fitting[0].derived(configs.scheduler)
    except CheckpointError as error:
        raise CheckpointError(f"{name!r} as {fitting[0].name}: {error}") from error


def resolve_task(name: str, asked: str | None, family: Family | None = None) -> Task:
    """The task of a checkpoint: what was asked for, or what a known id implies, in the words of
    the family.

    Raises: CheckpointError where neither says it, or where they differ.
    """
    implied = known_ids()[name][1] if name in known_ids() else None
    if asked is None and implied is None:
        raise CheckpointError(
            f"the task of {name!r} cannot be read from its weights; pass --task with one of "
            f"{sorted(TASKS)}"
        )
    if asked is not None and implied not in (None, asked) and not name.startswith("random/"):
        raise CheckpointError(
            f"{name!r} is known to predict {implied}, but --task {asked} was asked"
        )
    task = asked or implied
    if task not in TASKS:
        raise CheckpointError(f"unknown task {task!r}; known: {sorted(TASKS)}")
    meaning = None if family is None else family.meanings.get(task)
    return TASKS[task] if meaning is None else dataclasses.replace(TASKS[task], meaning=meaning)
