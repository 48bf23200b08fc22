"""The networks' maps of each view, kept on the disk: a run that was killed goes on with them.

A map is known by all that it comes from: the bundles, the backend, the picture's content, its
camera, the size. So nothing that changed is ever taken for done.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.scene.maps import ask
from apps.views.model import View
from apps.views.pictures import Prepared
from runtime.engine import LotusEngine
from runtime.files import sha256_of
from runtime.writing import write_together

Maps = Mapping[str, NDArray[np.float32]]
_FORMAT = 1  # of what is stored; another one is another key


@dataclass(frozen=True, kw_only=True, eq=False)
class MapStore:
    """The maps of views, in `folder`, of these engines, at this size; `ensemble` and `tiles` are
    those of a call of an engine.
    """

    folder: Path
    engines: Sequence[LotusEngine]
    size: int
    ensemble: int
    tiles: bool

    def maps(self, view: View, prepared: Prepared) -> tuple[Maps, bool]:
        """The maps of a view by task, and whether they were there already.

        Raises: ImageError; BackendError and BundleError of the engines; OutputError.
        """
        path = self.folder / f"{self._key(view)}.npz"
        if (found := _read(path, prepared)) is not None:
            return found, True
        answers = ask(self.engines, prepared.rgb, ensemble=self.ensemble, tiles=self.tiles)
        maps = {task: each.values for task, each in answers.items()}
        file = io.BytesIO()
        np.savez(file, **maps)  # type: ignore[arg-type]
        write_together({path: file.getvalue()})
        return maps, False

    def _key(self, view: View) -> str:
        bundles = [
            [sha256_of(engine.folder / "manifest.json"), engine.backend] for engine in self.engines
        ]
        lens = [view.lens.model, *view.lens.params, view.lens.width, view.lens.height]
        told = [_FORMAT, bundles, sha256_of(view.picture), lens, self.size]
        told += [self.ensemble, self.tiles]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _read(path: Path, prepared: Prepared) -> Maps | None:
    """What was stored; None where there is nothing, or nothing whole."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            maps = {task: np.asarray(stored[task], np.float32) for task in stored.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    size = prepared.rgb.shape[:2]
    return maps if maps and all(each.shape[:2] == size for each in maps.values()) else None
