"""Model families: single-step networks that differ in data only.

A family is a value. Adding one takes a file here and an entry of FAMILIES. Its reference, the
computation of its authors in PyTorch, stands beside it and shares nothing with the exported
network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.errors import CheckpointError
from export.families.family import Family
from export.families.lotus import LOTUS_D, LOTUS_G
from runtime.tasks import TASKS, Task

__all__ = ["FAMILIES", "LOTUS_D", "LOTUS_G", "Family", "find_family", "known_ids", "resolve_task"]

FAMILIES: dict[str, Family] = {family.name: family for family in (LOTUS_D, LOTUS_G)}


def known_ids() -> dict[str, tuple[Family, str]]:
    """Family and task by the id of a published or embedded checkpoint."""
    return {
        name: (family, task)
        for family in FAMILIES.values()
        for name, task in family.known_ids.items()
    }


def find_family(name: str, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Family:
    """The family that the configs of a checkpoint belong to.

    Raises: CheckpointError, which says for each family what it would have wanted.
    """
    mismatches = {family.name: family.mismatches(unet, vae) for family in FAMILIES.values()}
    fitting = [FAMILIES[family] for family, reasons in mismatches.items() if not reasons]
    if len(fitting) != 1:
        lines = [f"  {family}: {'; '.join(reasons)}" for family, reasons in mismatches.items()]
        raise CheckpointError(
            f"{name!r} is no checkpoint of a known family. What each family has:\n"
            + "\n".join(lines)
        )
    return fitting[0]


def resolve_task(name: str, asked: str | None) -> Task:
    """The task of a checkpoint: what was asked for, or what a known id implies.

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
    return TASKS[task]
