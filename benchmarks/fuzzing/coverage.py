"""Inputs found by coverage: `python -m benchmarks.fuzzing.coverage pictures|manifests FOLDER`.

Needs `pip install atheris` (Linux and macOS). FOLDER keeps the inputs that reached new code; an
empty one is filled with the undamaged inputs first. Options of libFuzzer follow, for example
`-max_total_time=300`. It ends at the first input that raises what is no error of ours.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    if len(sys.argv) < 3 or sys.argv[1] not in ("pictures", "manifests"):
        sys.exit(f"usage: {__doc__}")
    target, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp())
    with atheris.instrument_imports(include=["runtime", "PIL"]):
        test, seeds = _pictures(place) if target == "pictures" else _manifests(place)
    if not any(folder.iterdir()):
        for name, content in seeds.items():
            (folder / name).write_bytes(content)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], test)
    atheris.Fuzz()


def _pictures(place: Path) -> tuple[Callable[[bytes], None], dict[str, bytes]]:
    """A test of a picture's bytes, and the pictures to begin with."""
    from benchmarks.fuzzing.originals import originals
    from runtime.errors import LotusError
    from runtime.image import load

    path = place / "picture.jpg"
    warnings.simplefilter("ignore")

    def test(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(LotusError):
            load(path)

    return test, originals()


def _manifests(place: Path) -> tuple[Callable[[bytes], None], dict[str, bytes]]:
    """A test of a manifest's bytes, and one to begin with. The checksum is compared last."""
    os.environ["LOTUS_EDGE_CACHE"] = "off"
    from benchmarks.fuzzing.bundles import write_bundle
    from runtime.errors import LotusError
    from runtime.manifest import MANIFEST, Manifest

    bundle = write_bundle(place / "bundle", target="null")
    manifest = (bundle / MANIFEST).read_bytes()

    def test(data: bytes) -> None:
        (bundle / MANIFEST).write_bytes(data)
        with contextlib.suppress(LotusError):
            Manifest.load(bundle)

    return test, {MANIFEST: manifest}


if __name__ == "__main__":
    main()
