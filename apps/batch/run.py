"""A run: what is missing goes through a pool of engines on Ray Data, until nothing is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from pyarrow import compute as pc

from apps.batch.ledger import BAD, DONE, FATAL, PARTS, Ledger, missing, rows, table_bytes, without
from apps.batch.sources import Found
from apps.batch.summary import Progress, summarize
from apps.batch.worker import TRIES, Job, Labeller, part_name
from runtime.backends import BACKENDS
from runtime.console import one_line, say
from runtime.errors import BackendError, LotusError

_OURS = "LOTUS_EDGE_"  # environment variables that every process of the cluster gets


class BatchError(LotusError):
    """The work cannot go on: the cluster cannot do it, or a process of it said so."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Where the work is done. `address` of a cluster (None: this machine alone), number of
    `engines` (None: as many as fit), `cpus` that each has for itself, `part`: pictures in a part of
    the ledger, and so in a shard.
    """

    address: str | None = None
    engines: int | None = None
    cpus: int = 2
    part: int = 32


def run(job: Job, found: Found, ledger: Ledger, pool: Pool) -> dict[str, Any]:
    """Do what is missing. Returns the summary, which is written too.

    Raises: BatchError, OutputError, and what the bundle or its backend have to say.
    """
    start = time.perf_counter()
    before = ledger.merge()
    left = missing(found.table, before)
    progress = Progress(len(left), len(found.table))
    if len(left):
        # Ray says on stdout that a process died; that is no result.
        with contextlib.redirect_stdout(sys.stderr), _Cluster(job, pool) as cluster:
            left = _try_all(cluster, found, ledger, progress, left, pool.part)
            if len(left) and not (progress.kept or DONE in before["status"].to_pylist()):
                raise _all_died(left)
            _give_up(job, left)
    merged = ledger.merge()
    asked = merged.filter(pc.is_in(merged["picture"], found.table["picture"].combine_chunks()))
    asked = without(asked, progress.unread)  # a row may be of what the picture was before
    summary = summarize(asked, before, time.perf_counter() - start, progress.unread)
    ledger.finish(asked, summary, progress.unread)
    return summary


def _try_all(
    cluster: _Cluster, found: Found, ledger: Ledger, progress: Progress, left: pa.Table, part: int
) -> pa.Table:
    """Do what is left, in parts, and then what is left of those each alone: a picture that kills
    its process takes no others along. Returns the pictures that killed it alone too.

    Raises: BatchError where processes died and nothing came out of many.
    """
    for size in (part, 1):
        for table in cluster.label(left, size):
            progress.add(table)
        left = without(missing(found.table, ledger.merge()), progress.unread)
        if len(left) > part and not progress.kept:
            raise _all_died(left)
        if not len(left):
            break
    return left


def _all_died(left: pa.Table) -> BatchError:
    return BatchError(
        f"every process died before it had done any picture of {len(left)}, {left['picture'][0]} "
        "for one: too little memory for so many engines? Ask for fewer with --engines. None is "
        "marked bad."
    )


class _Cluster:
    """Ray, started or joined for the time of a `with`."""

    def __init__(self, job: Job, pool: Pool) -> None:
        self._job, self._pool = job, pool

    def __enter__(self) -> _Cluster:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what it says, its log files have
        ours = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
        here = {"include_dashboard": False} if self._pool.address is None else {}
        try:
            ray.init(
                address=self._pool.address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": ours} if ours else None,
                **here,
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            where = self._pool.address or "this machine"
            raise BatchError(f"no Ray at {where}: {error}") from error
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def label(self, pictures: pa.Table, size: int) -> Iterator[pa.Table]:
        """Rows of the ledger, as parts of `size` pictures are finished."""
        parts = [pictures.slice(at, size) for at in range(0, len(pictures), size)]
        engines, resources = self._resources()
        threads = int(resources["num_cpus"]) if BACKENDS[self._job.backend].threads else None
        dataset = ray.data.from_arrow(parts).map_batches(
            Labeller,
            fn_constructor_args=(dataclasses.replace(self._job, threads=threads),),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(engines, len(parts))),
            **resources,
        )
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for said in table.filter(pc.equal(table["status"], FATAL))["note"].to_pylist():
                    raise BatchError(said)
                yield table
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1:]
            raise BatchError(
                f"a process of the pool failed: {''.join(reason)}. (On a cluster every machine "
                "needs lotus-edge with the extra `cluster`, and the bundle.)"
            ) from error

    def _resources(self) -> tuple[int, dict[str, float]]:
        """The number of engines, and what Ray keeps free for each. Raises: BackendError."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if BACKENDS[self._job.backend].on_gpu:
            gpus = int(sum(node.get("GPU", 0) for node in nodes))
            if not gpus:
                raise BackendError(
                    f"backend {self._job.backend!r} needs a GPU, and Ray knows of none here"
                )
            return self._pool.engines or gpus, {"num_gpus": 1, "num_cpus": 1}
        cpus = min(self._pool.cpus, int(max(node.get("CPU", 0) for node in nodes)))
        fit = sum(int(node.get("CPU", 0) // cpus) for node in nodes)
        if self._pool.engines is None or self._pool.engines <= fit:
            return self._pool.engines or fit, {"num_cpus": cpus}
        raise BatchError(
            f"{self._pool.engines} engines with {cpus} CPUs each do not fit: Ray has room for "
            f"{fit}. Ask for fewer with --engines, or for less with --cpus."
        )


def _give_up(job: Job, left: pa.Table) -> None:
    """Pictures that killed their process whenever they were tried are bad ones."""
    note = f"the process that predicted it died, {TRIES} times"
    known = left.select(["picture", "size", "modified"]).to_pylist()
    fate = {"status": BAD, "note": note, "seconds": 0.0, "worker": "", "finished": time.time()}
    table = rows([row | fate for row in known])
    if len(table):
        say(*(one_line(f"BAD {row['picture']}: {note}") for row in known))
        job.store.write({f"{PARTS}/{part_name(table)}.parquet": table_bytes(table)})
