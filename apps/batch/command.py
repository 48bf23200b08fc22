"""`lotus-edge batch BUNDLE SOURCE --output DEST`: many pictures, on one machine or a cluster."""

from __future__ import annotations

import argparse
import os
from typing import Any

from runtime.extras import require
from runtime.options import named, natural, positive

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""With this in the environment when it is imported, a Ray that `ray.init` starts has the address
127.0.0.1 on any system, and listens there alone. `ray.init(_node_ip_address="127.0.0.1")` does not
do: it takes an address that others reach in its place.
"""


def add_batch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`batch BUNDLE SOURCE --output DEST`."""
    batch = commands.add_parser(
        "batch",
        help="predict for very many pictures, on one machine or a Ray cluster",
        description="Predict for all pictures of a source with a pool of engines on Ray. What is "
        "done is written down: the same command goes on where it was ended, whatever ended it. "
        "The exit status is 0 if every picture was done, 1 if some are bad (see bad.csv) or could "
        "not be read.",
    )
    batch.add_argument(
        "bundle", type=named, help="a folder, or the id of a bundle on the Hugging Face hub"
    )
    batch.add_argument(
        "source",
        type=named,
        help="a folder, a list (.txt, a path in each line), or a table (.parquet, .csv, .jsonl) "
        "of paths; Parquet may hold the pictures themselves. s3:// and gs:// work too",
    )
    batch.add_argument(
        "--output", type=named, required=True, metavar="DEST", help="a folder, or s3://, gs://"
    )
    batch.add_argument(
        "--format",
        choices=("files", "parquet"),
        default="files",
        help="the files that `predict` writes, or shards in Parquet (files)",
    )
    batch.add_argument("--column", help="of a table: the one with the paths or pictures")
    batch.add_argument("--name", help="of a table with pictures: the column with their names")
    batch.add_argument(
        "--network-size",
        action="store_true",
        help="maps as large as the network saw the picture, not as the picture",
    )
    batch.add_argument(
        "--retry-bad", action="store_true", help="try again what earlier runs found bad"
    )
    _add_pool(batch.add_argument_group("the pool of engines"))
    batch.add_argument("--backend", help="default: the bundle's target")
    batch.add_argument("--seed", type=natural, help="noise seed of mode G; default: the bundle's")
    batch.add_argument(
        "--max-pixels", type=positive, metavar="N", help="refuse images of more pixels"
    )
    batch.add_argument(
        "--strict", action="store_true", help="refuse images that can be read only in part"
    )
    batch.set_defaults(run=_batch)


def _add_pool(pool: argparse._ArgumentGroup) -> None:
    pool.add_argument("--address", help="of a Ray cluster; default: this machine alone")
    pool.add_argument("--engines", type=positive, metavar="N", help="default: as many as fit")
    pool.add_argument(
        "--cpus", type=positive, default=2, metavar="N", help="for each engine on CPUs (2)"
    )
    pool.add_argument(
        "--part", type=positive, default=32, metavar="N", help="pictures of a part, or shard (32)"
    )


def _batch(arguments: argparse.Namespace) -> int:
    require("ray", "pyarrow")
    if arguments.address is None:
        os.environ.update(LOOPBACK)
    from apps.batch.ledger import Ledger
    from apps.batch.run import Pool, run
    from apps.batch.sources import find
    from apps.batch.store import Store, without_secrets
    from apps.batch.summary import skipped_in_words, tell
    from apps.batch.worker import Job
    from runtime.console import say
    from runtime.engine import LotusEngine
    from runtime.manifest import MANIFEST, sha256_of

    source, output = _place(arguments.source), _place(arguments.output)
    # Nothing is loaded yet: the manifest and the backend are checked before anything else.
    with LotusEngine(arguments.bundle, arguments.backend) as engine:
        engine.check_seed(arguments.seed)
        backend, manifest = engine.backend, sha256_of(engine.folder / MANIFEST)
    bundle = arguments.bundle
    if os.path.lexists(bundle):
        bundle = _place(bundle)
    options = _options(arguments)
    found = find(source, output, column=arguments.column, name=arguments.name)
    say(*skipped_in_words(found.skipped))
    job = Job(
        bundle=bundle,
        backend=backend,
        store=Store(output),
        shards=arguments.format == "parquet",
        column=found.column,
        options=options,
    )
    identity = {
        "generator": "lotus-edge batch",
        "bundle": manifest,
        "source": without_secrets(source),
        "format": arguments.format,
        "column": found.column,
        "name": arguments.name,
        "options": options,
    }
    pool = Pool(
        address=arguments.address,
        engines=arguments.engines,
        cpus=arguments.cpus,
        part=arguments.part,
    )
    ledger = Ledger(job.store)
    with ledger.of(identity):
        if arguments.retry_bad:
            ledger.forget_bad()
        summary = run(job, found, ledger, pool)
    tell(summary, without_secrets(output))
    return 1 if summary["bad"] or summary["unread"] else 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of a call of the engine."""
    options: dict[str, Any] = {"strict": arguments.strict}
    if arguments.network_size:
        options["resize"] = None
    for name in ("seed", "max_pixels"):
        if getattr(arguments, name) is not None:
            options[name] = getattr(arguments, name)
    return options


def _place(text: str) -> str:
    """A place as every process finds it: a URI, or a path from the root."""
    if "://" in text:
        return text.rstrip("/")
    return os.path.abspath(text)  # noqa: PTH100  (keeps a link)
