"""The catalog: names, versions, aliases and desired state, for several processes at once."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine

from maasdam.artifacts.catalog import Catalog
from maasdam.core import Artifact
from maasdam.database.engine import open_database
from maasdam.errors import Conflict, InvalidInput, NotFound, VerificationFailed

GOOD = {"passed": True, "failures": []}
BAD = {"passed": False, "failures": ["accuracy fell by 0.2, more than 0.01"]}


@pytest.fixture
def catalog(database: Engine) -> Catalog:
    return Catalog(database)


def artifact(folder: Path, letter: str = "a") -> Artifact:
    return Artifact(f"sha256:{letter * 64}", folder, "onnx", "onnx", "image-classification", "onnxruntime", None, 10)


@pytest.fixture
def register(catalog: Catalog, tmp_path: Path):
    def register(model: str = "digits", letter: str = "a", report: dict | None = GOOD):
        return catalog.register(
            model, artifact(tmp_path, letter), source="x", recipe="int8", report=report, passes=[{"use": "q"}]
        )

    return register


def test_versions_count_up_and_a_deleted_number_never_returns(catalog: Catalog, register) -> None:
    assert [register().version for _ in range(3)] == [1, 2, 3]
    catalog.delete("digits:3")
    assert register().version == 4
    catalog.delete("digits")
    assert register().version == 5


def test_a_registered_version_reads_back_whole(catalog: Catalog, register) -> None:
    made = register(report=GOOD | {"latency_ms": {"speedup": 1.5}})
    found = catalog.resolve("digits:1")
    assert found == made
    assert found.report == GOOD | {"latency_ms": {"speedup": 1.5}}
    assert found.passes == [{"use": "q"}] and found.created_at.tzinfo is not None


def test_numbers_that_are_none_are_kept_as_null(catalog: Catalog, register) -> None:
    register(report=GOOD | {"speedup": math.inf, "deep": [{"x": math.nan}]})
    assert catalog.resolve("digits").report == GOOD | {"speedup": None, "deep": [{"x": None}]}


def test_a_bare_name_is_prod_else_the_newest_that_passed(catalog: Catalog, register) -> None:
    register(), register(), register(report=BAD), register(report=None)
    assert catalog.resolve("digits").version == 2
    catalog.promote("digits:1")
    assert catalog.resolve("digits").version == 1
    assert catalog.resolve("digits@prod").version == 1
    assert catalog.resolve("digits:3").passed is False


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ghost", "there are: digits, other"),
        ("ghost:1", "no model 'ghost'"),
        ("digits:7", "no version 'digits:7'; the newest is 2"),
        ("digits:0", "the newest is 2"),
        ("digits@canary", "its aliases are: prod"),
        ("other", "no version of 'other' has passed"),
        ("other@prod", "it has no aliases"),
        ("digits:99999999999999999999", "no model"),
        ("digits:²", "no model"),
        ("nul\0", "no model"),
        ("half\ud800", "no model"),
        ("' OR 1=1 --", "no model"),
        ("../../etc/passwd", "no model"),
        ("x" * 10_000, "no model"),
        ("", "no model"),
        ("@", "no model"),
        (":", "no model"),
    ],
)
def test_a_name_that_is_nothing_says_what_there_is(catalog: Catalog, register, name: str, says: str) -> None:
    register(), register(), register("other", report=BAD)
    catalog.promote("digits:2")
    with pytest.raises(NotFound) as caught:
        catalog.resolve(name)
    assert says in str(caught.value) and len(str(caught.value)) < 600
    str(caught.value).encode()  # can be sent


def test_an_empty_catalog_says_how_to_begin(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match="maasdam build"):
        catalog.resolve("digits")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Digits",
        "a b",
        "a/b/c",
        "a/",
        "/a",
        "a//b",
        "a/../b",
        "a/infer",
        "../a",
        "-a",
        ".a",
        "a" * 97,
        "ä",
        "a\n",
        "a:1",
        "a@b",
        "nul\0",
    ],
)
def test_a_name_that_cannot_be_a_name_is_refused(catalog: Catalog, register, name: str) -> None:
    with pytest.raises(InvalidInput):
        register(name)
    assert catalog.versions() == []


@pytest.mark.parametrize("report", [BAD, None])
def test_promote_refuses_what_failed_or_was_never_verified(catalog: Catalog, register, report: dict | None) -> None:
    register(report=report)
    with pytest.raises(VerificationFailed, match=r"accuracy fell|never verified"):
        catalog.promote("digits:1")
    assert catalog.resolve("digits:1").aliases == ()


def test_rollback_goes_back_step_by_step_past_what_was_deleted(catalog: Catalog, register) -> None:
    for number in (1, 2, 3, 4):
        register()
        assert catalog.promote(f"digits:{number}").aliases == ("prod",)
    catalog.delete("digits:2")
    assert [catalog.rollback("digits").version for _ in range(2)] == [3, 1]
    with pytest.raises(NotFound, match="no other version before"):
        catalog.rollback("digits")
    assert catalog.resolve("digits@prod").version == 1


def test_promoting_what_is_there_already_changes_nothing_to_roll_back_to(catalog: Catalog, register) -> None:
    register(), register()
    for number in (1, 2, 2, 2):
        catalog.promote(f"digits:{number}")
    assert catalog.rollback("digits").version == 1


def test_aliases_are_independent(catalog: Catalog, register) -> None:
    register(), register()
    catalog.promote("digits:1")
    catalog.promote("digits:2", "canary")
    assert {v.version: v.aliases for v in catalog.versions("digits")} == {1: ("prod",), 2: ("canary",)}
    with pytest.raises(InvalidInput):
        catalog.promote("digits:1", "7")


def test_delete_refuses_what_is_named_or_served(catalog: Catalog, register) -> None:
    for _ in range(5):
        register()
    catalog.promote("digits:2")
    catalog.deploy("digits", traffic={"3": 10}, shadow=4)
    for version, why in ((2, "deployed"), (3, "deployed"), (4, "deployed")):
        with pytest.raises(Conflict, match=why):
            catalog.delete(f"digits:{version}")
    with pytest.raises(Conflict, match="undeploy"):
        catalog.delete("digits")
    catalog.undeploy("digits")
    with pytest.raises(Conflict, match="promote another"):
        catalog.delete("digits:2")
    with pytest.raises(InvalidInput):
        catalog.delete("digits@prod")
    with pytest.raises(NotFound):
        catalog.delete("digits:0")
    assert len(catalog.versions()) == 5


def test_delete_tells_only_the_digests_nothing_refers_to(catalog: Catalog, register) -> None:
    register(letter="a"), register(letter="b"), register("other", letter="a")
    assert catalog.delete("digits") == ["sha256:" + "b" * 64]
    assert catalog.delete("other") == ["sha256:" + "a" * 64]
    for gone in ("other", "never"):
        with pytest.raises(NotFound):
            catalog.delete(gone)


def test_a_deployment_follows_its_name_or_stays_at_a_version(catalog: Catalog, register) -> None:
    register(), register()
    assert catalog.deploy("digits").version is None
    assert {v.version: v.deployed for v in catalog.versions()} == {1: False, 2: True}
    catalog.promote("digits:1")
    assert {v.version: v.deployed for v in catalog.versions()} == {1: True, 2: False}
    assert catalog.resolve("digits:1").deployed and not catalog.resolve("digits:2").deployed
    stays = catalog.deploy("digits:2", 3, {1: 25})
    assert (stays.version, stays.replicas, stays.traffic) == (2, 3, {"1": 25.0})
    assert catalog.deployments() == [stays]
    assert (stays.mode, stays.idle_seconds) == ("always", None)
    sleeps = catalog.deploy("digits:2", mode="on-demand", idle_seconds=9.5, isolate=True, options={"logprobs": 5})
    assert (sleeps.mode, sleeps.idle_seconds, sleeps.isolate) == ("on-demand", 9.5, True) and sleeps.options == {"logprobs": 5}
    assert catalog.deployments() == [sleeps]
    assert catalog.deploy("digits@prod").version == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"name": "ghost"}, NotFound),
        ({"name": "digits:9"}, NotFound),
        ({"name": "digits", "replicas": 0}, InvalidInput),
        ({"name": "digits", "traffic": {"9": 10}}, NotFound),
        ({"name": "digits", "traffic": {"one": 10}}, InvalidInput),
        ({"name": "digits", "traffic": {1: 60, 2: 60}}, InvalidInput),
        ({"name": "digits", "traffic": {1: -1}}, InvalidInput),
        ({"name": "digits", "traffic": {1: math.nan}}, InvalidInput),
        ({"name": "digits", "shadow": 9}, NotFound),
        ({"name": "digits", "mode": "sometimes"}, InvalidInput),
        ({"name": "digits", "idle_seconds": 0.0}, InvalidInput),
        ({"name": "digits", "idle_seconds": math.nan}, InvalidInput),
        ({"name": "digits", "mode": "pin", "idle_seconds": 9.0}, InvalidInput),
        ({"name": "digits:3"}, VerificationFailed),
        ({"name": "digits", "traffic": {3: 1}}, VerificationFailed),
    ],
)
def test_a_deployment_that_cannot_be_is_refused_and_nothing_changes(catalog: Catalog, register, words, error) -> None:
    register(), register(), register(report=BAD)
    before = catalog.revision()
    with pytest.raises(error):
        catalog.deploy(**words)
    assert catalog.deployments() == [] and catalog.revision() == before


def test_undeploy_of_what_is_not_deployed_is_said_so(catalog: Catalog, register) -> None:
    register()
    for name in ("digits", "ghost", "nul\0"):
        with pytest.raises(NotFound, match="not deployed"):
            catalog.undeploy(name)


def test_every_change_raises_the_revision_and_reading_does_not(catalog: Catalog, register) -> None:
    seen = [catalog.revision()]
    changes = [register, register, lambda: catalog.promote("digits:1"), lambda: catalog.promote("digits:2")]
    changes += [lambda: catalog.rollback("digits"), lambda: catalog.deploy("digits"), lambda: catalog.undeploy("digits")]
    changes += [lambda: catalog.delete("digits:2")]
    for change in changes:
        change()
        catalog.versions(), catalog.resolve("digits"), catalog.deployments()
        seen.append(catalog.revision())
    assert seen == sorted(set(seen))


def test_an_artifact_whose_files_are_gone_is_not_registered(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="build it again"):
        catalog.register("digits", artifact(tmp_path / "gone"), source="x", recipe="r", report=GOOD)
    assert catalog.versions() == []


def test_nothing_is_registered_while_the_catalog_is_held(catalog: Catalog, register) -> None:
    register(letter="a")
    order: list[str] = []
    with catalog.held() as digests:
        other = threading.Thread(target=lambda: (register(letter="b"), order.append("registered")))
        other.start()
        other.join(0.3)
        order.append("freed")
        assert digests == {"sha256:" + "a" * 64}
    other.join(30)
    assert order == ["freed", "registered"]


CHANGER = """
import sys
from pathlib import Path
from maasdam.artifacts.catalog import Catalog
from maasdam.core import Artifact
from maasdam.database.engine import open_database
from maasdam.errors import NotFound
url, who, folder = sys.argv[1:]
catalog = Catalog(open_database(url))
a = Artifact("sha256:" + who * 64, Path(folder), "onnx", "onnx", None, "onnxruntime", None, 1)
for n in range(20):
    made = catalog.register("digits", a, source=who, recipe="r", report={"passed": True, "failures": []})
    catalog.promote(f"digits:{made.version}")
    catalog.deploy("digits")
    try:
        catalog.undeploy("digits") if n % 5 == 4 else catalog.rollback("digits")
    except NotFound:
        pass  # another process undid it first
    print(made.version, flush=True)
"""


def test_processes_that_change_the_catalog_at_once_never_share_a_number(
    catalog: Catalog, database_url: str, tmp_path: Path
) -> None:
    before = catalog.revision()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHANGER, database_url, who, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who in "abc"
    ]
    answers = [child.communicate(timeout=240) for child in children]
    assert [err for _, err in answers if err] == []
    numbers = [int(line) for out, _ in answers for line in out.split()]
    found = [v.version for v in catalog.versions("digits")]
    assert sorted(numbers) == found == list(range(1, 61))
    assert catalog.revision() >= before + 3 * 60


def test_a_change_killed_halfway_leaves_nothing(database_url: str, tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from maasdam.artifacts.catalog import Catalog
from maasdam.core import Artifact
from maasdam.database.engine import open_database
engine = open_database(sys.argv[1])
a = Artifact("sha256:" + "a" * 64, Path(sys.argv[2]), "onnx", "onnx", None, "onnxruntime", None, 1)
event.listen(engine, "commit", lambda connection: os.kill(os.getpid(), signal.SIGKILL))
Catalog(engine).register("digits", a, source="x", recipe="r", report=None)
"""
    died = subprocess.run([sys.executable, "-c", code, database_url, str(tmp_path)], timeout=120)
    assert died.returncode == -9
    engine = open_database(database_url)
    catalog = Catalog(engine)
    assert catalog.versions() == []
    assert catalog.register("digits", artifact(tmp_path), source="x", recipe="r", report=None).version == 1
    engine.dispose()


def test_a_build_says_where_it_is_and_how_it_ended(catalog: Catalog) -> None:
    first, second = catalog.start_build("digits"), catalog.start_build("other")
    catalog.heartbeat(first, "quantize" + "!" * 100, 0.5, "half")
    catalog.finish_build(second, "it broke")
    newest, oldest = catalog.builds()
    assert (newest.id, newest.state, newest.error) == (second, "failed", "it broke")
    assert (oldest.id, oldest.state, oldest.progress, oldest.message) == (first, "running", 0.5, "half")
    assert oldest.heartbeat_at >= oldest.started_at and oldest.finished_at is None
    catalog.finish_build(first)
    assert {b.state for b in catalog.builds()} == {"done", "failed"}
    with pytest.raises(InvalidInput):
        catalog.start_build("No Name")
