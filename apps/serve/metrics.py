"""What `/metrics` says, by prometheus_client."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
STAGES = ("read", "queue", "decode", "predict", "encode", "total")
"""Of one prediction: reading the body, waiting for a worker, decoding the picture, the engine,
writing the answer; all of it."""


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "lotus_edge_requests",
            "Answers, by route and status",
            ("route", "status"),
            registry=self._registry,
        )
        self.errors = Counter(
            "lotus_edge_errors",
            "Refusals and failures, by kind",
            ("kind",),
            registry=self._registry,
        )
        self.held = Gauge(
            "lotus_edge_held",
            "Predictions that are held: read, waiting, running, being sent",
            registry=self._registry,
        )
        self.waiting = Gauge(
            "lotus_edge_waiting", "Pictures that wait for a worker", registry=self._registry
        )
        self.ready = Gauge(
            "lotus_edge_ready", "1 since the golden sample passed", registry=self._registry
        )
        self.seconds = Histogram(
            "lotus_edge_seconds",
            "Seconds of each stage of a prediction",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        for stage in STAGES:  # from the first scrape on
            self.seconds.labels(stage)

    def page(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self._registry)
