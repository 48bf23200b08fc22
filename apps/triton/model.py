"""What Triton's Python backend runs: a bundle, opened with the runtime.

A repository's `model.py` names this class. Triton brings `triton_python_backend_utils`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engine import LotusEngine
from runtime.errors import ImageError, LotusError
from runtime.image import ImageLike
from runtime.prediction import Prediction
from runtime.writing import scratch_folder

BUNDLE, ARRAY, ENCODED, SEED = "bundle", "image", "encoded", "seed"


@dataclass(kw_only=True)
class _Asked:
    """A request: its pictures, its seed, and what came out for each picture."""

    pictures: list[ImageLike] = field(default_factory=list)
    seed: int | None = None
    answers: list[Prediction | ImageError] = field(default_factory=list)
    problem: LotusError | None = None


class TritonPythonModel:
    """One instance: one engine. Triton calls the methods, one at a time."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle in the model's folder, every bucket of it; each proves itself.

        A failure is the reason for which Triton does not load the model.
        """
        parameters = json.loads(args["model_config"]).get("parameters", {})
        backend = parameters.get("backend", {}).get("string_value")
        bundle = Path(args["model_repository"], args["model_version"], BUNDLE)
        most = len(json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["buckets"])
        self._engine = LotusEngine(bundle, backend, max_open=most)
        for bucket in self._engine.manifest.buckets:
            grey = np.full((bucket.height, bucket.width, 3), 127, np.uint8)
            self._engine([grey] * bucket.batch)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request: its maps, or an error that says what is wrong with it."""
        with scratch_folder() as scratch:
            asked = [self._read(each, scratch, at) for at, each in enumerate(requests)]
            for seed in {each.seed for each in asked}:
                self._predict([each for each in asked if each.seed == seed], seed)
        return [self._response(each) for each in asked]

    def finalize(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _read(self, request: Any, scratch: Path, number: int) -> _Asked:
        given = {each.name(): each.as_numpy() for each in request.inputs()}
        asked = _Asked()
        try:
            if (ARRAY in given) == (ENCODED in given):
                raise ImageError(
                    f"give the pictures as {ARRAY!r} (uint8 [N,H,W,3]) or as {ENCODED!r} (bytes of "
                    f"a file, [N,1]), found {sorted(given) or 'nothing'}"
                )
            if SEED in given:
                seeds = {int(seed) for seed in given[SEED].ravel()}
                if len(seeds) != 1:
                    raise ImageError(f"the pictures of a request have one seed, found {seeds}")
                self._engine.check_seed(asked_seed := seeds.pop())
                asked.seed = asked_seed
            if ARRAY in given:
                asked.pictures = [*given[ARRAY]]
            else:
                for at, content in enumerate(given[ENCODED].ravel()):
                    path = scratch / f"{number}-{at}"
                    path.write_bytes(content)
                    asked.pictures.append(path)
        except ImageError as error:
            return _Asked(problem=error)
        return asked

    def _predict(self, group: list[_Asked], seed: int | None) -> None:
        """All pictures of requests with one seed together, so that buckets with a batch fill."""
        pictures = [picture for each in group for picture in each.pictures]
        try:
            found = self._engine(pictures, seed, on_error="return") if pictures else []
        except (LotusError, MemoryError) as error:
            for each in group:
                if each.problem is None:
                    each.problem = LotusError(str(error) or "not enough memory")
            return
        answers = iter(found)
        for each in group:
            each.answers = [next(answers) for _ in each.pictures]

    def _response(self, asked: _Asked) -> Any:
        import triton_python_backend_utils as triton

        try:
            maps = _stacked(asked)
        except LotusError as error:
            wrong = isinstance(error, ImageError)
            code = triton.TritonError.INVALID_ARG if wrong else triton.TritonError.INTERNAL
            return triton.InferenceResponse(error=triton.TritonError(str(error), code))
        return triton.InferenceResponse(
            output_tensors=[triton.Tensor(task, array) for task, array in maps.items()]
        )


def _stacked(asked: _Asked) -> dict[str, Any]:
    """For each task the maps of a request's pictures, [N,H,W] or [N,H,W,3]. Raises: LotusError."""
    if asked.problem is not None:
        raise asked.problem
    predictions = []
    for number, (picture, answer) in enumerate(zip(asked.pictures, asked.answers, strict=True)):
        if isinstance(answer, ImageError):
            reason = str(answer).removeprefix(f"{picture}: ")
            raise ImageError(f"picture {number}: {reason}")
        predictions.append(answer)
    maps = {task: [each[task].values for each in predictions] for task in predictions[0]}
    sizes = {array.shape[:2] for array in next(iter(maps.values()))}
    if len(sizes) > 1:
        raise ImageError(
            "the pictures of one request have one size, found "
            + ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
            + "; send them as requests of their own, which are batched all the same"
        )
    return {task: np.stack(arrays) for task, arrays in maps.items()}
