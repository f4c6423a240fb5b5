"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server. No label holds anything that a client sent."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "crops_requests", "Answered requests", ["route", "status"], registry=self._registry
        )  # fmt: skip
        self.seconds = Histogram(
            "crops_request_seconds", "From a request's head to its answer", ["route"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self.batch = Histogram(
            "crops_batch_queries", "Queries computed together", buckets=_SIZES, registry=self._registry
        )
        self.encode = Histogram(
            "crops_encode_seconds", "Encoding of a batch", buckets=_SECONDS, registry=self._registry
        )
        self.search = Histogram("crops_search_seconds", "Search of a batch", buckets=_SECONDS, registry=self._registry)
        self.in_flight = Gauge("crops_in_flight", "Requests that are being answered", registry=self._registry)
        self.reloads = Counter("crops_reloads", "Bundles taken anew on SIGHUP", ["result"], registry=self._registry)
        self.documents = Gauge(
            "crops_documents", "Documents of a bundle", ["bundle", "sha256"], registry=self._registry
        )

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)
