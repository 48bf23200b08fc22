"""`--list`: what each set is, where people get it, and what goes where."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from benchmarks.evaluation.dataset import DataSet
from benchmarks.evaluation.sets import SETS

_HEAD = """\
ROOT is the folder given with --data. A tar is read as it is; an unpacked folder of the same name
serves too. The authors' lists of files decide which pictures count: `data_split/` of Marigold's
repository (prs-eth/Marigold) for depth, `SET/split/` of DSINE's (`data/datasets/`, and Lotus's
`evaluation/dataset_normal/`) for normals. Put them under ROOT/data_split, beside the set, or name
their folder with --lists. Without a list all pictures that are there count."""


def listing() -> Iterator[str]:
    """The lines."""
    yield from _HEAD.splitlines()
    for data in SETS:
        yield ""
        yield from _entry(data)


def _entry(data: DataSet) -> Iterator[str]:
    place = data.layout.places[0]
    yield f"{data.name}: {data.title}, {data.kind}, {data.count} pictures"
    parts = {
        "from": data.origin,
        "size": data.size,
        "licence": data.licence,
        "checksum": data.checksum,
        "goes to": f"ROOT/{place}.tar, or the folder ROOT/{place}",
        "holds": " and ".join(data.examples),
        "list": data.list_name,
    }
    for key, text in parts.items():
        yield from textwrap.wrap(
            f"{key}:".ljust(10) + text,
            100,
            initial_indent="  ",
            subsequent_indent=" " * 12,
            break_long_words=False,
            break_on_hyphens=False,
        )
