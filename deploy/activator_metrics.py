"""Metrics of the activator; the values of every label are in this file, so their number is bounded."""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, generate_latest

State = Literal["asleep", "starting", "awake", "stopping"]
StartOutcome = Literal["ready", "failed", "late"]
StopReason = Literal["idle", "ended", "lost"]
RefusedBecause = Literal["queue_full", "start_failed", "held_too_long", "no_connection", "body_too_large", "upstream_lost"]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600)


class ActivatorMetrics:
    """The metrics of one upstream, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.state = Enum("activator_state", "State of the upstream", states=list(get_args(State)), registry=self.registry)
        self.starts = Counter(
            "activator_starts_total", "Starts of the upstream, by how they ended", ["outcome"], registry=self.registry
        )
        self.start_seconds = Histogram(
            "activator_start_seconds", "From the wish to start until ready", buckets=_SECONDS, registry=self.registry
        )
        self.stops = Counter(
            "activator_stops_total",
            "How it was found down or stopped: idle, ended by itself, or lost (refuses connections)",
            ["reason"],
            registry=self.registry,
        )
        self.waiting = Gauge("activator_waiting_requests", "Requests that wait for a start", registry=self.registry)
        self.in_flight = Gauge("activator_in_flight_requests", "Requests under way, those that wait too", registry=self.registry)
        self.held_seconds = Histogram(
            "activator_held_seconds", "How long requests that waited for a start did", buckets=_SECONDS, registry=self.registry
        )
        self.refused = Counter(
            "activator_refused_requests_total", "Requests that the activator answered itself, and why", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        # All are there from the first scrape on: a rate needs a zero to begin at.
        for counter, values in ((self.starts, StartOutcome), (self.stops, StopReason), (self.refused, RefusedBecause)):
            for value in get_args(values):
                counter.labels(value)

    def page(self) -> bytes:
        """Return them in Prometheus' text format."""
        return generate_latest(self.registry)
