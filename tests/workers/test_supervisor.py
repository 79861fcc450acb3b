"""Several workers are one service: they agree, they replace each other, and nothing that was answered is lost.

The full run of kills is `python -m benchmarks.kill9 --workers 2`.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import psutil
import pytest
from benchmarks.kill9 import TENSOR, one_round, prepare
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maasdam.api.listening import bound_socket
from maasdam.errors import InvalidInput
from tests.field.test_hanging import add_counter, count
from tests.served import Process, add_mlp, open_home, serving, start
from tests.service import free_port
from tests.waiting import wait_until

CALLS = 12
"""Connections of their own that are asked: that all come to one of two workers happens once in two thousand times."""


def everywhere(running: Process, method: str, path: str, key: str = "", **more: object) -> set[int]:
    """The statuses that callers get, each on a connection of its own."""
    headers = {"Authorization": f"Bearer {key or running.key}"}
    return {httpx.request(method, running.url + path, headers=headers, timeout=60, **more).status_code for _ in range(CALLS)}  # type: ignore[arg-type]  # whatever httpx takes


def infer(running: Process, model: str = "one", key: str = "") -> set[int]:
    return everywhere(running, "POST", f"/v2/models/{model}/infer", key, json=TENSOR)


def counted(running: Process, start_of_line: str) -> float:
    text = httpx.get(f"{running.url}/metrics", headers=running.headers, timeout=30).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(start_of_line))


ANSWERED = 'maasdam_requests_total{model="one",status="200"'
OBSERVED = 'maasdam_request_duration_seconds_count{model="one",status="200"'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("workers")
    workspace = open_home(home)
    add_mlp(workspace, "one")
    add_mlp(workspace, "two")
    add_mlp(workspace, "two", width=32)
    workspace.catalog.undeploy("two")
    workspace.close()
    return home


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Process]:
    workspace = open_home(home)
    _, key = workspace.keys.create("all", ["infer", "deploy", "admin"])
    workspace.close()
    with serving(home, key, "--workers", "2", "--grpc-port", "0") as running:
        yield running


def test_what_is_changed_through_one_worker_holds_for_every_one_when_it_returns(running: Process) -> None:
    with running.client() as client:
        assert infer(running, "two") == {404}
        assert client.post("/v2/repository/models/two:1/load").status_code == 200
        assert infer(running, "two") == {200}
        assert everywhere(running, "GET", "/v2/models/two/versions/1/ready") == {200}
        rows = client.post("/v2/repository/index", json={"ready": True}).json()
        assert [(row["name"], row["version"]) for row in rows] == [("one", "1"), ("two", "1")]

        traffic = {"version": 1, "traffic": {"2": 50}}
        assert client.put("/admin/deployments/two", json=traffic).status_code == 200
        wait_until(lambda: everywhere(running, "GET", "/v2/models/two/versions/2/ready") == {200})
        assert client.put("/admin/deployments/two", json={"version": 2}).status_code == 200
        assert infer(running, "two/versions/1") == {404}, "the version that has no share any more"
        assert infer(running, "two/versions/2") == {200}

        assert client.post("/v2/repository/models/two/unload").status_code == 200
        assert infer(running, "two") == {404}
        assert client.put("/admin/deployments/two", json={}).status_code == 200
        assert client.delete("/admin/deployments/two").status_code == 204
        assert infer(running, "two") == {404}


def test_a_revoked_key_is_refused_by_every_worker_once_that_returned(running: Process) -> None:
    with running.client() as client:
        made = client.post("/admin/keys", json={"name": "short", "scopes": ["infer"]}).json()
        assert infer(running, key=made["secret"]) == {200}, "now all of them have it in mind"
        assert client.delete(f"/admin/keys/{made['id']}").status_code == 204
        assert infer(running, key=made["secret"]) == {401}


IDS = """
import os
from maasdam.api.entrance import new_request_id
for _ in range(2):
    if os.fork() == 0:
        print(*(new_request_id()[12:] for _ in range(3)), flush=True)
        os._exit(0)
    os.wait()
"""


def test_forks_of_one_process_give_no_two_requests_one_id() -> None:
    ids = subprocess.run([sys.executable, "-c", IDS], capture_output=True, text=True, check=True).stdout.split()
    assert len(ids) == len(set(ids)) == 6


def test_what_is_logged_is_set_for_all(running: Process) -> None:
    with running.client() as client:
        before = client.get("/v2/logging").json()
        assert client.post("/v2/logging", json={"log_info": False}).json()["log_info"] is False
        told = {httpx.get(f"{running.url}/v2/logging", headers=running.headers).json()["log_info"] for _ in range(CALLS)}
        assert told == {False}
        client.post("/v2/logging", json={"log_info": before["log_info"]})


def test_counts_are_of_all_workers_and_outlive_one_that_is_killed(running: Process) -> None:
    before = counted(running, ANSWERED), counted(running, OBSERVED)
    for _ in range(5):
        assert infer(running) == {200}
    after = before[0] + 5 * CALLS, before[1] + 5 * CALLS
    assert (counted(running, ANSWERED), counted(running, OBSERVED)) == after
    stats = httpx.get(f"{running.url}/v2/models/one/stats", headers=running.headers).json()["model_stats"][0]
    assert stats["inference_stats"]["success"]["count"] == after[0]
    assert stats["inference_stats"]["compute_infer"]["count"] >= 5 * CALLS, "what the engines of both ran"

    victim = running.workers[0]
    os.kill(victim, signal.SIGKILL)
    for _ in range(20):
        assert counted(running, ANSWERED) >= after[0], "counters never fall"
    wait_until(lambda: victim not in running.workers and len(running.workers) == 2)
    assert infer(running) == {200}, "who connects while one is dead or begins is answered by the other"
    wait_until(lambda: "process" in _newest(running, "worker 1 is"))
    assert counted(running, ANSWERED) == after[0] + CALLS and counted(running, OBSERVED) == after[1] + CALLS


def test_a_worker_that_is_told_to_stop_finishes_what_it_has_and_is_replaced(running: Process) -> None:
    pids = running.workers
    outcome: list[set[int]] = []
    callers = [threading.Thread(target=lambda: outcome.append(infer(running))) for _ in range(4)]
    for caller in callers:
        caller.start()
    os.kill(pids[0], signal.SIGTERM)
    for caller in callers:
        caller.join()
    assert outcome == [{200}] * 4
    wait_until(lambda: pids[0] not in running.workers and len(running.workers) == 2)
    assert infer(running) == {200}


def test_a_change_waits_for_no_worker_that_hangs_and_holds_for_it_when_it_goes_on(running: Process) -> None:
    stopped = running.workers[1]
    clients = [running.client() for _ in range(CALLS)]
    wait_until(lambda: {client.get("/v2/health/ready").status_code for client in clients} == {200})
    made = clients[0].post("/admin/keys", json={"name": "soon gone", "scopes": ["infer"]}).json()
    os.kill(stopped, signal.SIGSTOP)
    try:
        other = next(client for client in clients if _answers(client))
        assert other.delete(f"/admin/keys/{made['id']}").status_code == 204
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert infer(running, key=made["secret"]) == {401}
    for client in clients:
        client.close()


def test_log_lines_say_which_worker_and_a_request_is_found_whoever_answered(running: Process) -> None:
    answers = [httpx.get(f"{running.url}/v2/models/one", headers=running.headers) for _ in range(CALLS)]
    with running.client() as client:
        for answer in answers:
            request_id = answer.headers["x-request-id"]
            wait_until(lambda: client.get(f"/admin/requests/{request_id}").status_code == 200)  # noqa: B023  it is called here
            told = client.get(f"/admin/requests/{request_id}").json()["log"]
            assert {line["worker"] for line in told} <= {1, 2} and len(told) == 1
    assert {int(number) for number in re.findall('"worker": ([0-9])', running.log.read_text())} == {1, 2}


def test_a_second_service_does_not_share_the_address(running: Process, tmp_path: Path) -> None:
    port = running.url.rsplit(":", 1)[1]
    with pytest.raises(AssertionError, match="in use"):
        start(tmp_path, "", "--workers", "2", "--port", port)


def test_grpc_is_answered_by_all_workers_at_one_port_that_no_other_program_gets(tmp_path: Path) -> None:
    workspace = open_home(tmp_path)
    add_mlp(workspace, "one")
    workspace.close()
    port = free_port()
    with serving(tmp_path, "", "--workers", "2", "--grpc-port", str(port), "--no-auth") as running:

        def calls() -> set[int]:
            found = set()
            for i in range(CALLS):
                with grpc.insecure_channel(
                    f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1), ("n", i)]
                ) as channel:
                    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
                    found.add(answer.status)
            return found

        wait_until(lambda: calls() == {health_pb2.HealthCheckResponse.SERVING})
        with pytest.raises(InvalidInput, match="in use"):
            bound_socket("127.0.0.1", port)
        victim = running.workers[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in running.workers and len(running.workers) == 2)
        with pytest.raises(InvalidInput, match="in use"):
            bound_socket("127.0.0.1", port)
        wait_until(lambda: len(_listening(running, port)) == 2)
        wait_until(lambda: calls() == {health_pb2.HealthCheckResponse.SERVING})  # ready once its supervisor knows it


def test_workers_share_an_engine_host_which_outlives_one_that_is_killed(tmp_path: Path) -> None:
    workspace = open_home(tmp_path)
    add_mlp(workspace, "one")
    workspace.catalog.deploy("one", isolate=True)
    _, key = workspace.keys.create("all", ["infer", "deploy"])
    workspace.close()

    def hosts(running: Process) -> list[int]:
        return [int(pid) for pid in re.findall(r"model one:1 is up in process (\d+)", running.log.read_text())]

    with serving(tmp_path, key, "--workers", "2", "--grpc-port", "0") as running:
        assert infer(running) == {200} and len(hosts(running)) == 2
        (host,) = set(hosts(running))
        victim = running.workers[0]
        os.kill(victim, signal.SIGKILL)
        assert infer(running) == {200}
        wait_until(lambda: len(hosts(running)) == 3)
        assert set(hosts(running)) == {host}
        with running.client() as client:
            assert client.post("/v2/repository/models/one/unload").status_code == 200
        wait_until(lambda: not psutil.pid_exists(host))


def test_a_worker_that_dies_again_and_again_is_tried_more_and_more_slowly_and_the_others_go_on(tmp_path: Path) -> None:
    workspace = open_home(tmp_path)
    add_mlp(workspace, "one")
    workspace.close()
    with serving(tmp_path, "", "--workers", "2", "--grpc-port", "0", "--no-auth") as running:
        other = running.workers[0]
        for _ in range(4):
            wait_until(lambda: len(running.workers) == 2)
            victim = next(pid for pid in running.workers if pid != other)
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: victim not in running.workers)  # noqa: B023  it is called here
            with httpx.Client(base_url=running.url) as client:
                assert client.post("/v2/models/one/infer", json=TENSOR).status_code == 200
        wait_until(lambda: "time within a minute: it is tried again in 1 s" in running.log.read_text())
        assert other in running.workers


def test_stopping_answers_all_that_was_sent_whoever_has_it_and_whether_he_had_looked(tmp_path: Path) -> None:
    workspace = open_home(tmp_path)
    add_counter(workspace)
    _, key = workspace.keys.create("k", ["infer"])
    workspace.close()
    body = json.dumps({"inputs": [{"name": "n", "shape": [1, 1], "datatype": "INT64", "data": [200_000]}]})
    with serving(tmp_path, key, "--workers", "2", "--grpc-port", "0") as running:
        assert count(running, 3).status_code == 200
        place = urlsplit(running.url)
        callers = [http.client.HTTPConnection(str(place.hostname), place.port, timeout=60) for _ in range(6)]
        for caller in callers:
            caller.request("POST", "/v2/models/counter/infer", body, running.headers | {"Content-Type": "application/json"})
        assert running.stop() == 0
        assert [caller.getresponse().status for caller in callers] == [200] * len(callers)
        assert list((tmp_path / "metrics").iterdir()) == []
    workspace = open_home(tmp_path)
    assert sum(one.requests for one in workspace.ledger.usage()) == 7
    workspace.close()


def test_what_hangs_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAASDAM_SHUTDOWN_GRACE_SECONDS", "1")
    workspace = open_home(tmp_path)
    _, key = workspace.keys.create("k", ["infer"])
    workspace.close()
    with serving(tmp_path, key, "--workers", "2", "--grpc-port", "0") as running:
        pids = running.workers
        os.kill(pids[0], signal.SIGSTOP)
        running.stop(15)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_after_kill_9_of_a_worker_and_of_the_supervisor_all_that_was_answered_is_in_the_ledger_once(
    tmp_path: Path, database_url: str
) -> None:
    (tmp_path / "maasdam.toml").write_text(f'database_url = "{database_url}"\n')
    key, models = prepare(tmp_path)
    seen = one_round(tmp_path, key, models, seconds=1.5, seed=7, workers=2)
    assert len(seen.answered) > 20 and seen.missing == 0 and seen.twice == 0 and seen.rows >= len(seen.answered)
    assert seen.back == models and seen.failed == 0
    assert re.search("SIGKILL.*another is started", (tmp_path / "serve.log").read_text())


def _listening(running: Process, port: int) -> set[int]:
    """The workers that listen at a port."""
    found = psutil.net_connections("tcp")
    return {one.pid for one in found if one.laddr and one.laddr.port == port and one.status == "LISTEN"} & set(running.workers)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health", timeout=1).status_code == 200
    except httpx.TimeoutException:
        return False


def _newest(running: Process, event: str) -> str:
    lines = [json.loads(line)["event"] for line in running.log.read_text().splitlines() if line.startswith("{")]
    return next((line for line in reversed(lines) if line.startswith(event)), "")
