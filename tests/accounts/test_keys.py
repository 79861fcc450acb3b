"""Keys: only their hashes are kept, nothing is allowed that was not granted, and a revocation counts within a second."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sqlalchemy import Engine, select

from maasdam.accounts.keys import Keys
from maasdam.database.tables import KeyRow
from maasdam.errors import InvalidInput, NotFound, StorageFailure, Unauthenticated


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keys(database: Engine) -> Keys:
    return Keys(database)


def test_the_secret_opens_and_is_nowhere_in_the_database(keys: Keys, database: Engine) -> None:
    record, secret = keys.create("web", ["infer", "deploy"])
    caller = keys.check(secret)
    assert (caller.key_id, caller.name, caller.scopes) == (record.id, "web", {"infer", "deploy"})
    assert secret.startswith(f"mdm_{record.id}_") and len(secret.split("_", 2)[2]) == 43
    with database.connect() as connection:
        kept = str(connection.execute(select(KeyRow.__table__)).all())
    assert secret not in kept and secret.split("_", 2)[2] not in kept
    assert secret not in repr(record)


def test_secrets_never_repeat(keys: Keys) -> None:
    assert len({keys.create("same")[1] for _ in range(20)}) == 20


def test_a_key_may_only_infer_unless_told_otherwise(keys: Keys) -> None:
    assert keys.check(keys.create("web")[1]).scopes == {"infer"}


@pytest.mark.parametrize(
    "wrong", ["", "x", "mdm", "mdm__", "mdm_a_b", "Bearer x", "mdm_\0_x", "mdm_\ud800_x", "é" * 50, "mdm_" * 9999]
)
def test_what_is_no_key_is_nobody(keys: Keys, wrong: str) -> None:
    keys.create("web")
    assert keys.seen(wrong) is None
    with pytest.raises(Unauthenticated, match="unknown"):
        keys.check(wrong)


def test_the_right_id_with_a_wrong_secret_is_nobody(keys: Keys) -> None:
    _, first = keys.create("a")
    _, second = keys.create("b")
    for wrong in (first[:-1], first + "x", first.upper(), "_".join([*first.split("_")[:2], second.split("_", 2)[2]])):
        with pytest.raises(Unauthenticated):
            keys.check(wrong)


def test_a_revoked_key_stays_revoked(keys: Keys) -> None:
    record, secret = keys.create("web")
    keys.check(secret)
    revoked = keys.revoke(record.id)
    assert keys.seen(secret) is None
    with pytest.raises(Unauthenticated, match="'web' was revoked"):
        keys.check(secret)
    assert keys.revoke(record.id).revoked_at == revoked.revoked_at is not None
    assert [key.revoked_at for key in keys.list()] == [revoked.revoked_at]


def test_a_revocation_by_another_process_counts_within_a_second(database: Engine, database_url: str) -> None:
    clock = Clock()
    keys = Keys(database, clock)
    record, secret = keys.create("web")
    keys.check(secret)
    code = "import sys; from maasdam.accounts.keys import Keys; from maasdam.database.engine import open_database\n"
    subprocess.run(
        [sys.executable, "-c", code + "Keys(open_database(sys.argv[1])).revoke(sys.argv[2])", database_url, record.id],
        check=True,
    )
    clock.now += 1.0
    assert keys.seen(secret) is None
    with pytest.raises(Unauthenticated):
        keys.check(secret)


def test_a_checked_key_is_not_looked_up_each_time(database: Engine) -> None:
    clock = Clock()
    keys = Keys(database, clock)
    _, secret = keys.create("web")
    other = Keys(database, clock)
    other.check(secret)
    keys.revoke("web")
    held = other.seen(secret)
    assert held is not None and held.name == "web"  # still good for the rest of its half second
    clock.now += 1.0
    assert other.seen(secret) is None
    with pytest.raises(Unauthenticated):
        other.check(secret)


def test_a_name_can_be_revoked_unless_several_have_it(keys: Keys) -> None:
    keys.create("one")
    first, _ = keys.create("two")
    second, _ = keys.create("two")
    assert keys.revoke("one").name == "one"
    with pytest.raises(InvalidInput, match=first.id):
        keys.revoke("two")
    keys.revoke(first.id)
    assert keys.revoke("two").id == second.id
    for nobody in ("three", "nul\0"):
        with pytest.raises(NotFound, match="maasdam keys list"):
            keys.revoke(nobody)


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("a", []), ("a", ["root"]), ("a", ["infer", "Admin"]), ("", ["infer"]), ("x" * 101, ["infer"]), ("a\nb", ["infer"])],
)
def test_a_key_that_makes_no_sense_is_refused(keys: Keys, name: str, scopes: list[str]) -> None:
    with pytest.raises(InvalidInput):
        keys.create(name, scopes)
    assert keys.list() == []


def test_when_the_database_is_gone_nobody_gets_in(keys: Keys, database: Engine) -> None:
    _, secret = keys.create("web")
    database.dispose()
    if database.dialect.name == "sqlite":
        path = database.url.database
        assert path is not None
        open(path, "wb").write(b"no database " * 1000)  # noqa: SIM115, PTH123  ruin it
        with pytest.raises(StorageFailure):
            Keys(database).check(secret)


def test_a_key_is_due_before_it_is_forgotten(database: Engine) -> None:
    clock = Clock()
    keys = Keys(database, clock)
    _, secret = keys.create("web")
    assert not keys.is_due(secret)
    keys.check(secret)
    assert keys.seen(secret) is not None and not keys.is_due(secret)
    clock.now = 0.3
    assert keys.seen(secret) is not None and keys.is_due(secret)
    keys.check(secret)
    assert not keys.is_due(secret)
    clock.now = 1.0
    assert keys.seen(secret) is None


def test_a_check_that_finds_a_revoked_key_lets_nobody_in_any_more(database: Engine) -> None:
    keys, other = Keys(database), Keys(database)
    record, secret = keys.create("web")
    keys.check(secret)
    other.revoke(record.id)
    assert keys.seen(secret) is not None
    with pytest.raises(Unauthenticated):
        keys.check(secret)
    assert keys.seen(secret) is None
