"""Numbers for Prometheus, at `/metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tunewright.service.entities import Status
from tunewright.service.store import Store

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """Requests of this process, and the jobs of the whole service by where they stand."""

    def __init__(self, store: Store) -> None:
        self.store, self.registry = store, CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("tunewright_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "tunewright_request_seconds", "Until an answer begins", ("route",), registry=self.registry
        )
        self.jobs = Gauge("tunewright_jobs", "Jobs by status", ("status",), registry=self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in METHODS else "other"  # clients may make up as many as they like
        self.requests.labels(known, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        counts = self.store.jobs.counts()
        for status in Status:
            self.jobs.labels(status.value).set(counts.get(status, 0))
        return generate_latest(self.registry)
