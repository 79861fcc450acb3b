"""Prometheus counters and histograms of one service, in base units. Knows labels; refuses to know requests and money.

The registry belongs to the object, not to the process, so that two services in one process don't mix. Where a service has
several processes they count in files of one folder, each in its own, and every one tells the sums of all: what a process
counted that has ended is in its file, where its successor goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BY = ("model", "version", "task")
DURATION = "maasdam_request_duration_seconds"
NOTHING = Metric(DURATION, "nothing was asked yet", "histogram")

Busyness = Mapping[tuple[str, int], tuple[int, int]]
"""(model, version) -> requests in flight, and of them those that wait for an engine."""


class Measured(Protocol):
    """What is counted of a request; None is unmeasured."""

    @property
    def status(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def version(self) -> int | None: ...
    @property
    def task(self) -> str | None: ...
    @property
    def prompt_tokens(self) -> int | None: ...
    @property
    def completion_tokens(self) -> int | None: ...
    @property
    def audio_seconds(self) -> float | None: ...
    @property
    def seconds(self) -> float: ...
    @property
    def compute_seconds(self) -> float | None: ...
    @property
    def joules(self) -> float | None: ...


class Metrics:
    """What a service counts."""

    def __init__(self, shared: Path | None = None) -> None:
        """`shared`: the folder that `count_in` was told."""
        made = CollectorRegistry()
        self._source: Any = made if shared is None else MultiProcessCollector(None, str(shared))  # type: ignore[no-untyped-call]  # it has none
        self._requests = Counter(
            "maasdam_requests_total", "Requests, answered or refused, by HTTP status", (*BY, "status"), registry=made
        )
        self._refusals = Counter(
            "maasdam_refusals_total", "Requests refused, by the error's code", ("reason", "status"), registry=made
        )
        self._duration = Histogram(DURATION, "Door to last byte", (*BY, "status"), buckets=SECONDS, registry=made)
        self._first = Histogram(
            "maasdam_time_to_first_token_seconds", "Door to first piece of a stream", BY, buckets=SECONDS, registry=made
        )
        self._tokens = Counter("maasdam_tokens_total", "Tokens, by kind (prompt, completion)", (*BY, "kind"), registry=made)
        self._audio = Counter("maasdam_audio_seconds_total", "Seconds of audio heard", BY, registry=made)
        self._compute = Counter("maasdam_compute_seconds_total", "CPU-seconds of engines", BY, registry=made)
        self._joules = Counter("maasdam_joules_total", "Joules of engines, where they are known", BY, registry=made)
        self._loads = Histogram(
            "maasdam_model_load_seconds",
            "Loads of models, at the start or to wake one, by phase; `all` is the whole",
            ("how", "phase"),
            buckets=SECONDS,
            registry=made,
        )
        self._of = lru_cache(maxsize=4096)(lambda counter, *labels: counter.labels(*labels))
        """A counter's child, which costs more to look up than to count with."""
        self._sums: tuple[tuple[Counter, Callable[[Measured], float | None], tuple[str, ...]], ...] = (
            (self._tokens, attrgetter("prompt_tokens"), ("prompt",)),
            (self._tokens, attrgetter("completion_tokens"), ("completion",)),
            (self._audio, attrgetter("audio_seconds"), ()),
            (self._compute, attrgetter("compute_seconds"), ()),
            (self._joules, attrgetter("joules"), ()),
        )
        """What is added up of requests."""

    def answered(self, group: Iterable[Measured], status: int | None = None) -> None:
        """Requests have ended: as what each says of itself, or all as `status`.

        A request for a model that does not exist counts under the model "" (names are endless).
        """
        alike: dict[tuple[str, int | None, str | None, int], list[Measured]] = {}
        for receipt in group:
            kind = receipt.model, receipt.version, receipt.task, status or receipt.status
            those = alike.get(kind)
            if those is None:
                alike[kind] = [receipt]
            else:
                those.append(receipt)
        for (_, _, _, ended), those in alike.items():
            by = _labels(those[0])
            how = (*by, str(ended))
            observe = self._of(self._duration, *how).observe
            for receipt in those:
                observe(receipt.seconds)
            self._of(self._requests, *how).inc(len(those))
            for counter, name, more in self._sums:
                known = [count for receipt in those if (count := name(receipt)) is not None]
                if known:
                    self._of(counter, *by, *more).inc(sum(known))

    def passed(self, status: int) -> None:
        """One request has ended that reached no model: refused at the door, or about something else."""
        self._of(self._requests, "", "", "", str(status)).inc()

    def refused(self, reason: str, status: int) -> None:
        """One request was refused; it is counted among the others too."""
        self._refusals.labels(reason, str(status)).inc()

    def first_chunk(self, receipt: Measured, seconds: float) -> None:
        """The first piece of a streamed answer left after `seconds`."""
        self._first.labels(*_labels(receipt)).observe(seconds)

    def loaded(self, how: str, seconds: Mapping[str, float]) -> None:
        """A model was loaded, by phase."""
        for phase, took in {**seconds, "all": sum(seconds.values())}.items():
            self._loads.labels(how, phase).observe(took)

    def asked(self) -> dict[tuple[str, str], dict[str, tuple[int, float]]]:
        """Requests and their seconds by (model, version), then by HTTP status."""
        found: dict[tuple[str, str], dict[str, tuple[int, float]]] = {}
        for sample in next((one for one in self._source.collect() if one.name == DURATION), NOTHING).samples:
            by = found.setdefault((sample.labels["model"], sample.labels["version"]), {})
            count, seconds = by.get(sample.labels["status"], (0, 0.0))
            if sample.name.endswith("_count"):
                by[sample.labels["status"]] = count + int(sample.value), seconds
            elif sample.name.endswith("_sum"):
                by[sample.labels["status"]] = count, seconds + sample.value
        return found

    def text(
        self, busy: Busyness | None = None, memory: Mapping[tuple[str, int], int] | None = None, budget: int | None = None
    ) -> bytes:
        """The exposition, as /metrics answers; `busy` is how busy each version is now, `memory` the bytes that those hold
        which have processes of their own, `budget` what they may hold together."""
        shown = CollectorRegistry()
        shown.register(self._source)
        shown.register(_Now(busy or {}, memory or {}, budget))
        return generate_latest(shown)


class _Now(Collector):
    """What is neither counted nor kept."""

    def __init__(self, busy: Busyness, memory: Mapping[tuple[str, int], int], budget: int | None) -> None:
        self._busy = busy
        self._memory = memory
        self._budget = budget

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        in_flight = GaugeMetricFamily("maasdam_requests_in_flight", "Requests being answered", labels=BY[:2])
        queued = GaugeMetricFamily("maasdam_queue_depth", "Requests waiting for an engine", labels=BY[:2])
        for (model, version), (answering, waiting) in self._busy.items():
            in_flight.add_metric((model, str(version)), answering)
            queued.add_metric((model, str(version)), waiting)
        held = GaugeMetricFamily("maasdam_model_memory_bytes", "Memory of the processes of a model, measured", labels=BY[:2])
        for (model, version), size in self._memory.items():
            held.add_metric((model, str(version)), size)
        yield from (in_flight, queued, held)
        if self._budget is not None:
            yield GaugeMetricFamily("maasdam_memory_budget_bytes", "What models may hold together", self._budget)


def count_in(folder: Path, name: str) -> None:
    """Let what is made from now on in this process count in files of this name: one process at a time has a name.

    Who has it after another goes on with what that one counted.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]  # it has none; what the library says to do


def _labels(receipt: Measured) -> tuple[str, str, str]:
    if receipt.version is None:
        return "", "", receipt.task or ""
    return receipt.model, str(receipt.version), receipt.task or ""
