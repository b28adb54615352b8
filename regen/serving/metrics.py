"""Counters and timings of a running service, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Metrics of one service, in its own registry.

    Args:
        under_way: Returns the number of places that are taken.
    """

    def __init__(self, under_way: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "regen_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.narratives = Counter("regen_narratives", "Narratives written.", ["feature"], registry=self.registry)
        self.left = Counter("regen_clients_left", "Requests whose client left before the end.", registry=self.registry)
        self.seconds = Histogram(
            "regen_narrative_seconds", "From its request to its end.", buckets=SECONDS, registry=self.registry
        )
        self.first = Histogram(
            "regen_first_piece_seconds", "From its request to its first piece.", buckets=SECONDS, registry=self.registry
        )
        Gauge("regen_under_way", "Narratives waiting or being written.", registry=self.registry).set_function(under_way)
