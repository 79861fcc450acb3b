"""Metrics count what was answered, by names Prometheus can sum, and never let callers' inventions multiply."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from maasdam.telemetry.metrics import Metrics


@dataclass
class Receipt:
    model: str = "digits"
    version: int | None = 3
    task: str | None = "image-classification"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    audio_seconds: float | None = None
    seconds: float = 0.02
    compute_seconds: float | None = None
    joules: float | None = None
    status: int = 200


def values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return {
        (
            sample.name,
            *(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key in ("model", "status", "kind")),
        ): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_answers_are_counted_by_model_and_status() -> None:
    metrics = Metrics()
    metrics.answered([Receipt(), Receipt(), Receipt(status=400)])
    metrics.answered([Receipt()], 503)
    found = values(metrics)
    assert found["maasdam_requests_total", "model=digits", "status=200"] == 2
    assert found["maasdam_requests_total", "model=digits", "status=400"] == 1
    assert found["maasdam_requests_total", "model=digits", "status=503"] == 1
    assert found["maasdam_request_duration_seconds_count", "model=digits", "status=200"] == 2


def test_what_was_not_measured_is_not_counted_as_nought() -> None:
    metrics = Metrics()
    metrics.answered([Receipt()])
    assert not any(key[0] in ("maasdam_joules_total", "maasdam_tokens_total") for key in values(metrics))
    metrics.answered([Receipt(joules=2.0, prompt_tokens=3), Receipt(joules=0.5, prompt_tokens=4, completion_tokens=9)])
    found = values(metrics)
    assert found["maasdam_joules_total", "model=digits"] == 2.5
    assert found["maasdam_tokens_total", "kind=prompt", "model=digits"] == 7
    assert found["maasdam_tokens_total", "kind=completion", "model=digits"] == 9


def test_names_that_callers_invent_make_one_series() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.answered([Receipt(f"ghost{number}", None, None, status=404)])
    requests = {key: value for key, value in values(metrics).items() if key[0] == "maasdam_requests_total"}
    assert requests == {("maasdam_requests_total", "model=", "status=404"): 100}


def test_two_services_in_one_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    first.answered([Receipt()])
    assert not any(key[0] == "maasdam_requests_total" for key in values(second))


def test_copies_that_are_gone_leave_the_gauges() -> None:
    metrics = Metrics()
    assert 'maasdam_queue_depth{model="digits",version="1"} 3.0' in metrics.text({("digits", 1): (4, 3)}).decode()
    text = metrics.text({("digits", 2): (1, 0)}).decode()
    assert 'maasdam_queue_depth{model="digits",version="2"} 0.0' in text
    assert 'version="1"' not in text


COUNTING = """
import sys
from pathlib import Path
from maasdam.telemetry.metrics import Metrics, count_in
from tests.telemetry.test_metrics import Receipt
folder = Path(sys.argv[1])
count_in(folder, sys.argv[2])
metrics = Metrics(folder)
metrics.answered([Receipt(), Receipt(status=503)])
sys.stdout.write(metrics.text({}).decode())
print(metrics.asked()["digits", "3"]["200"][0])
import os, signal
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_counted_stays_and_its_successor_and_its_neighbours_go_on_from_there(tmp_path: Path) -> None:
    told = []
    for name in ("0", "1", "0"):
        words = [sys.executable, "-c", COUNTING, str(tmp_path), name]
        told.append(subprocess.run(words, capture_output=True, text=True, check=False).stdout)
    for count, text in enumerate(told, 1):
        exposition, _, asked = text.rstrip().rpartition("\n")
        labels = 'model="digits",status="200",task="image-classification",version="3"'
        assert f"maasdam_requests_total{{{labels}}} {count}.0" in exposition
        assert f"maasdam_request_duration_seconds_count{{{labels}}} {count}.0" in exposition
        assert int(asked) == count
