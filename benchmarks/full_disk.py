"""Build and predict onto disks that are full after so many bytes, and check what is left.

    python -m benchmarks.full_disk

The disk is a tmpfs of each size at which a write fails: around the beginning and the end of every
file that is written, and half way. A build must fail with our own error, leave the old bundle as it
was and nothing else; a prediction must fail, and what it has written must be whole. Needs Linux and
the right to mount.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.kill_build import build_tiny, in_child
from export.bundle.write import staged
from runtime.errors import LotusError
from runtime.manifest import sha256_of

_PAGE = 4096  # bytes: what a tmpfs hands out at once
_OURS = 3  # exit status of a child that ended with an error of our own
_SAMPLE = Path(__file__).resolve().parents[1] / "tiny" / "samples" / "room.png"


@contextlib.contextmanager
def disk(size: int, folder: Path) -> Iterator[Path]:
    """A file system of so many bytes. Raises: SystemExit where it cannot be mounted."""
    folder.mkdir(exist_ok=True)
    options = f"size={size},nr_inodes=1000"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def pages(path: Path) -> int:
    """The bytes that a file takes on the disk."""
    return -(-path.stat().st_size // _PAGE) * _PAGE


def sizes(files: list[Path]) -> list[int]:
    """Bytes after which the disk is full: at the edges of each file, in this order, and inside."""
    ends = [sum(map(pages, files[: number + 1])) for number in range(len(files))]
    starts = [0, *ends[:-1]]
    inside = [(start + end) // 2 // _PAGE * _PAGE for start, end in zip(starts, ends, strict=True)]
    edges = [max(edge + _PAGE * step, _PAGE) for edge in ends for step in (-1, 0)]
    return sorted({*edges, *inside} - {0, ends[-1]})


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by name of everything in a folder."""
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def outcome(work: Callable[[], None]) -> str:
    """How `work` ends, in a child: "done", "our error" or "fault"."""

    def child() -> None:
        try:
            work()
        except LotusError as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.stderr.flush()
            os._exit(_OURS)

    return {0: "done", _OURS: "our error"}.get(in_child(child), "fault")


def try_build(size: int, old: Path, mount: Path) -> str:
    """Replace the old bundle on a disk that has `size` bytes left."""
    room = sum(map(pages, old.iterdir()))
    with disk(room + size, mount):
        output = mount / "bundle"
        with staged(output, overwrite=False) as stage:
            for path in old.iterdir():
                shutil.copy(path, stage / path.name)

        def build() -> None:
            usage = shutil.disk_usage(mount)._replace(free=1 << 60)
            shutil.disk_usage = lambda path: usage  # else it is refused before the first write
            build_tiny(output, "new")

        found = outcome(build)
        whole = os.listdir(mount) == ["bundle"] and hashes(output) == hashes(old)
        return found if whole == (found == "our error") else f"{found}, and not whole"


def try_predict(size: int, bundle: Path, right: dict[str, str], mount: Path) -> str:
    """Predict into a folder on a disk of `size` bytes."""
    from runtime.__main__ import main

    with disk(size, mount):
        output = mount / "out"

        def predict() -> None:
            if main(["predict", str(bundle), str(_SAMPLE), "--output", str(output)]) == 1:
                raise LotusError("status 1")

        found = outcome(predict)
        left = hashes(output) if output.is_dir() else {}
        return found if left.items() <= right.items() else f"{found}, and not whole: {sorted(left)}"


def main() -> int:
    """Run the command. Exit status: 0 where every full disk was met as it should be, else 1."""
    import export.pipeline  # noqa: F401  # once, for all children

    table: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        mount, old, right = (Path(scratch, name) for name in ("disk", "old", "right"))
        if in_child(lambda: build_tiny(old, "old")) != 0:
            raise SystemExit("the build fails on a disk that is not full")
        order = ["golden.npz", "model.onnx.data", "model-64x64.onnx", "manifest.json"]
        for size in sizes([old / name for name in order]):
            table["build", try_build(size, old, mount)] += 1
            print(f"build with {size} bytes: {table}", flush=True)
        if outcome(lambda: _predict_all(old, right)) != "done":
            raise SystemExit("the prediction fails on a disk that is not full")
        for size in sizes(sorted(right.iterdir())):
            table["predict", try_predict(size, old, hashes(right), mount)] += 1
            print(f"predict with {size} bytes: {table}", flush=True)
    for (what, found), times in sorted(table.items()):
        print(f"| {what} | {found} | {times} |")
    return 0 if {found for _, found in table} == {"our error"} else 1


def _predict_all(bundle: Path, output: Path) -> None:
    from runtime.__main__ import main as predict

    predict(["predict", str(bundle), str(_SAMPLE), "--output", str(output)])


if __name__ == "__main__":
    sys.exit(main())
