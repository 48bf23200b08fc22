"""What is done for one picture: decode, predict, encode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from apps.serve.answers import Form
from apps.serve.metrics import Metrics
from runtime.engine import LotusEngine
from runtime.image import load
from runtime.tasks import Resize


@dataclass(kw_only=True)
class Work:
    """One picture, its `body` as it came. `seconds` are those of its stages so far."""

    body: bytes
    form: Form
    task: str | None
    seed: int | None
    resize: Resize | None
    max_pixels: int
    metrics: Metrics
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, engine: LotusEngine) -> bytes:
        """The answer's body. Raises: what `runtime.image.load` and the engine raise."""
        with self.stage("decode"):
            rgb = load(self.body, max_pixels=self.max_pixels)
        self.drop()
        with self.stage("predict"):
            prediction = engine(rgb, self.seed, resize=self.resize)
        with self.stage("encode"):
            about = {
                "bundle": engine.manifest.name,
                "height": rgb.shape[0],
                "width": rgb.shape[1],
                "seconds": dict(self.seconds),
            }
            return self.form.encode(prediction, self.task, about)

    def drop(self) -> None:
        """Keep the picture no longer."""
        self.body = b""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        start = time.perf_counter()
        yield
        self.note(name, time.perf_counter() - start)

    def note(self, name: str, seconds: float) -> None:
        """A stage took so long."""
        self.seconds[name] = seconds
        self.metrics.seconds.labels(name).observe(seconds)
