"""The folder of an unfinished run: what is done of it, so that another process can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.video.forms import ChunkWriter, save_arrays
from apps.video.frames import Answer
from runtime.errors import OutputError
from runtime.steady import Step
from runtime.there import exists
from runtime.writing import write_together

LONGEST = 24  # frames of a chunk: so many are done again at most after a kill
_MOST_BYTES = 96_000_000  # of a chunk of arrays, which is held in memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """What is known of N frames: `numbers`, `pts`, `times` [N], and `steps` [N,5] by task: scale,
    shift, low, high, cut.
    """

    numbers: NDArray[np.int64]
    pts: NDArray[np.int64]
    times: NDArray[np.float64]
    steps: dict[str, NDArray[np.float64]]


class Work:
    """Chunks of several kinds in one folder; a chunk is done where its record lies there.

    Raises: OutputError where another run's work lies there, or this one's without `resume`.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any], *, resume: bool, anew: bool) -> None:
        self.folder = folder
        path = folder / "job.json"
        if anew and exists(folder):
            shutil.rmtree(folder)
        if exists(folder):
            if not resume:
                raise OutputError(
                    f"an unfinished run lies in {folder}: go on with --resume, or begin anew with "
                    "--overwrite"
                )
            different = _differences(path, job)
            if different:
                raise OutputError(
                    f"the unfinished run in {folder} is another one: {different}. Repeat its "
                    "command to go on with it, or begin anew with --overwrite"
                )
        else:
            write_together({path: json.dumps(job, indent=2).encode()})
        for partial in folder.glob("*.partial"):  # also those that begin with a dot
            partial.unlink()

    def path(self, kind: str, chunk: int) -> Path:
        """The record of a chunk."""
        return self.folder / f"{kind}-{chunk:06d}.npz"

    def chunks(self, kind: str) -> int:
        """How many are done, one after the other from the first on."""
        done = 0
        while exists(self.path(kind, done)):
            done += 1
        return done

    def records(self, kind: str) -> Records:
        """Those of all frames that are done."""
        read = [_read(self.path(kind, chunk)) for chunk in range(self.chunks(kind))]

        def joined(name: str, dtype: Any) -> NDArray[Any]:
            return np.concatenate([np.empty(0, dtype), *(each[name] for each in read)])

        names = [name for name in (read[0] if read else ()) if name.startswith("steps/")]
        return Records(
            numbers=joined("numbers", np.int64),
            pts=joined("pts", np.int64),
            times=joined("times", np.float64),
            steps={
                name.partition("/")[2]: np.concatenate([each[name] for each in read])
                for name in names
            },
        )

    def state(self, kind: str) -> dict[str, dict[str, NDArray[Any]]]:
        """What was remembered after the last frame that is done, by task."""
        last = self.chunks(kind) - 1
        states: dict[str, dict[str, NDArray[Any]]] = {}
        for name, array in (_read(self.state_path(kind, last)) if last >= 0 else {}).items():
            task, what = name.split("/")
            states.setdefault(task, {})[what] = array
        return states

    def state_path(self, kind: str, chunk: int) -> Path:
        """What was remembered after a chunk. Only that of the last one is kept: it may be as large
        as a frame.
        """
        return self.path(f"state-{kind}", chunk)

    def remove(self) -> None:
        """All of it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Chunks:
    """Writes frames in chunks, and the record of each when it is finished."""

    def __init__(self, work: Work, kind: str, open_chunk: Callable[[int], ChunkWriter]) -> None:
        self._work, self._kind, self._open = work, kind, open_chunk
        self._number = work.chunks(kind)
        self._answers: list[_Noted] = []
        self._state: dict[str, NDArray[Any]] = {}
        self._writer: ChunkWriter | None = None
        self.count = 0

    def __call__(self, answer: Answer) -> None:
        if self._writer is None:
            self._writer = self._open(self._number)
        self._writer.add(answer)
        self._answers.append(_Noted.of(answer))
        self._state = answer.state
        self.count += 1
        if len(self._answers) >= _length(answer):
            self.finish()

    def finish(self) -> None:
        """Close the chunk that is begun, if there is one."""
        if self._writer is None:
            return
        self._writer.close()
        # The state before the record: a chunk with a record is done.
        save_arrays(self._work.state_path(self._kind, self._number), self._state)
        save_arrays(self._work.path(self._kind, self._number), _record(self._answers))
        self._work.state_path(self._kind, self._number - 1).unlink(missing_ok=True)
        self._number, self._answers, self._writer = self._number + 1, [], None

    def abandon(self) -> None:
        """Leave out the chunk that is begun."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Noted:
    """Of an answer all but what is large."""

    number: int
    pts: int
    time: float
    steps: dict[str, Step]

    @classmethod
    def of(cls, answer: Answer) -> _Noted:
        return cls(
            number=answer.number,
            pts=answer.pts,
            time=answer.time,
            steps=answer.steps,
        )


def _record(answers: list[_Noted]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "numbers": np.array([answer.number for answer in answers], np.int64),
        "pts": np.array([answer.pts for answer in answers], np.int64),
        "times": np.array([answer.time for answer in answers], np.float64),
    }
    for task in answers[0].steps:
        rows = [astuple(answer.steps[task]) for answer in answers]
        arrays[f"steps/{task}"] = np.array(rows, np.float64)
    return arrays


def _length(answer: Answer) -> int:
    """Frames of a chunk: as many as fit into memory as arrays. The same for all frames of a run."""
    height, width = answer.size
    channels = sum(values[0, 0].size for values in answer.maps.values())
    return max(1, min(LONGEST, int(_MOST_BYTES // (4 * height * width * channels))))


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(
            f"cannot read {path} of the unfinished run: {error}. Begin anew with --overwrite"
        ) from error


class SpoolChunk:
    """Maps of some frames as the network gave them, for a later pass."""

    def __init__(self, work: Work, chunk: int) -> None:
        self._path = work.path("maps", chunk)
        self._answers: list[Answer] = []

    def add(self, answer: Answer) -> None:
        self._answers.append(answer)

    def close(self) -> None:
        answers = self._answers
        arrays: dict[str, NDArray[Any]] = {
            "numbers": np.array([answer.number for answer in answers], np.int64),
            "pts": np.array([answer.pts for answer in answers], np.int64),
            "times": np.array([answer.time for answer in answers], np.float64),
            "sizes": np.array([answer.size for answer in answers], np.int64),
            "thumb": np.stack([answer.thumb for answer in answers if answer.thumb is not None]),
        }
        greys = [answer.grey for answer in answers if answer.grey is not None]
        if greys:
            arrays["grey"] = np.stack(greys)
        for task in answers[0].maps:
            arrays[f"maps/{task}"] = np.stack([answer.maps[task] for answer in answers])
        save_arrays(self._path, arrays)

    def abandon(self) -> None:
        pass


def spooled(work: Work, skip: int = 0) -> Iterator[Answer]:
    """The frames of the spool, one after the other, without the first `skip`."""
    for chunk in range(work.chunks("spooled")):
        arrays = _read(work.path("maps", chunk))
        maps = {name[5:]: arrays[name] for name in arrays if name.startswith("maps/")}
        for index, number in enumerate(arrays["numbers"]):
            if number < skip:
                continue
            height, width = map(int, arrays["sizes"][index])
            yield Answer(
                number=int(number),
                time=float(arrays["times"][index]),
                pts=int(arrays["pts"][index]),
                size=(height, width),
                maps={task: values[index] for task, values in maps.items()},
                steps={},
                thumb=arrays["thumb"][index],
                grey=arrays["grey"][index] if "grey" in arrays else None,
            )


def _differences(path: Path, job: Mapping[str, Any]) -> str:
    """In what the run of a folder differs from this one; empty where it is the same."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{path.name} cannot be read ({error})"
    now = json.loads(json.dumps(job))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in names)
