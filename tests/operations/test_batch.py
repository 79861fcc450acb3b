"""`run --out`: exactly one line an input, whatever broke it off."""

from __future__ import annotations

import asyncio
import csv
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from maasdam.core import Payload, Signature, TensorPayload, TensorSpec, TextPayload
from maasdam.errors import Conflict, EngineFailure, InvalidInput, InvalidPayload, InvalidTensor, NotFound, StorageFailure
from maasdam.operations.address import Address
from maasdam.operations.asked import AskedTensors
from maasdam.operations.batch import Counts, answer_all
from maasdam.operations.run import OpenedModel
from maasdam.operations.run_inputs import How, Input, inputs_of

NAMES = ["plain", 'with "quotes", commas', "two\nlines", "naïve 日本 \udcff", "bad", "last"]


def named(name: str) -> Input:
    def payload() -> Payload:
        return TextPayload(prompt=name)

    return Input(name, payload)


def quiet(stage: str, done: int = 0, total: int | None = None) -> None:
    """Says nothing."""


async def upper(each: Input) -> tuple[dict[str, Any], Any]:
    await asyncio.sleep(0)
    if each.name == "bad":
        raise InvalidPayload("it is bad")
    return {"text": each.name.upper()}, each.name.upper()


def run(out: Path, answer: Any = upper, names: list[str] = NAMES, model: str = "m:1") -> Counts:
    return answer_all([named(name) for name in names], out, model, answer, 3, quiet)


def lines(out: Path) -> list[tuple[str, str | None]]:
    """Each input and what was said."""
    with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        if out.suffix == ".csv":
            rows = [row | json.loads(row["answer"] or "{}") for row in csv.DictReader(file)]
        else:
            rows = [json.loads(line) for line in file]
    return [(row["input"], row.get("text")) for row in rows]


WHOLE = [(name, None if name == "bad" else name.upper()) for name in NAMES]


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_a_run_that_is_broken_off_anywhere_goes_on(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "new" / f"out{kind}"
    assert run(out) == Counts(0, 6, 1) and lines(out) == WHOLE
    whole = out.read_bytes()
    assert b"it is bad" in whole
    for length in range(0, len(whole), 3):
        out.write_bytes(whole[:length])
        counts = run(out)
        assert counts.had + counts.answered == 6 and out.read_bytes() == whole, length
    assert run(out) == Counts(6, 0, 0)


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_what_the_machine_did_is_nobodys_line(tmp_path: Path, kind: str) -> None:
    out, is_broken = tmp_path / f"out{kind}", True

    async def answer(each: Input) -> tuple[dict[str, Any], Any]:
        if is_broken and each.name == "two\nlines":
            raise EngineFailure("it broke")
        return await upper(each)

    with pytest.raises(EngineFailure):
        run(out, answer)
    assert lines(out) == WHOLE[:2]
    is_broken = False
    assert run(out, answer) == Counts(2, 4, 1) and lines(out) == WHOLE


def test_a_table_is_read_again_whatever_its_cells_hold(tmp_path: Path) -> None:
    out, names = tmp_path / "out.csv", ["a\rname", "b"]

    async def long(each: Input) -> tuple[dict[str, Any], Any]:
        return {"text": each.name * 100_000}, "said\r, and so on"

    assert run(out, long, names) == Counts(0, 2, 0)
    assert run(out, long, [*names, "c"]) == Counts(2, 1, 0)
    assert lines(out) == [(name, name * 100_000) for name in [*names, "c"]]


def test_who_breaks_off_does_not_wait_for_a_busy_service(tmp_path: Path) -> None:
    asked = threading.Event()

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.set()
            self.send_response(503)
            self.send_header("Retry-After", "3")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signature = Signature((TensorSpec("x", "float32", (None, 2)),), ())
    engine = AskedTensors(Address(f"http://127.0.0.1:{server.server_port}", 1, "x"), "m", 1, signature)
    model = OpenedModel(cast(Any, None), engine, None, 1, engine.url)
    payload = TensorPayload({"x": np.zeros((1, 2), "f4")})
    raised: list[BaseException] = []

    async def broken_off() -> None:
        run = engine.run

        def noted(tensors: Any) -> Any:
            try:
                return run(tensors)
            except BaseException as error:
                raised.append(error)
                raise

        engine.run = noted  # type: ignore[method-assign]  # hears what its thread ends with
        task = asyncio.create_task(model.reply(lambda: payload, "x"))
        await asyncio.to_thread(asked.wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(broken_off())
    server.shutdown()
    server.server_close()
    assert [type(error) for error in raised] == [EngineFailure]  # not Overloaded, of minutes later


def test_an_input_that_is_named_twice_has_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run(out, names=["a", "b", "a"]) == Counts(0, 2, 0) and lines(out) == [("a", "A"), ("b", "B")]


def test_several_are_asked_at_once_and_lines_are_in_order(tmp_path: Path) -> None:
    most = running = 0

    async def answer(each: Input) -> tuple[dict[str, Any], Any]:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02 if each.name == "a" else 0)
        running -= 1
        return {"text": each.name}, None

    out = tmp_path / "out.jsonl"
    run(out, answer, list("abcdef"))
    assert most == 3 and [name for name, _ in lines(out)] == list("abcdef")


def test_a_file_of_others_is_left_as_it_is(tmp_path: Path) -> None:
    for name, text in (
        ("a.jsonl", '{"text": "mine"}\n'),
        ("a.csv", "x,y\n1,2\n"),
        ("b.csv", "input,model,shown,answer,error\n1\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidInput, match="is no answer of a run"):
            run(tmp_path / name)
        assert (tmp_path / name).read_text() == text
    run(tmp_path / "m.jsonl")
    with pytest.raises(InvalidInput, match="holds answers of m:1, not of m:2"):
        run(tmp_path / "m.jsonl", model="m:2")
    with pytest.raises(InvalidInput, match=r"name it \.jsonl or \.csv"):
        run(tmp_path / "out.txt")
    with pytest.raises(StorageFailure):
        run(tmp_path / "m.jsonl" / "x.csv")


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    async def again(each: Input) -> tuple[dict[str, Any], Any]:
        with pytest.raises(Conflict, match="another run writes"):
            await asyncio.to_thread(run, out)
        return {}, None

    run(out, again, ["a"])


def payloads(task: str | None, *given: str, chats: bool = False) -> list[tuple[str, Any]]:
    return [(each.name, each.payload()) for each in inputs_of(task, given, How(chats=chats))]


def test_tables_folders_and_patterns_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("a text")
    (tmp_path / "d" / "b.jsonl").write_text('{"prompt": "one"}\n\n{"messages": [{"role": "user", "content": "two"}]}\n')
    (tmp_path / "d" / "c.csv").write_text('﻿id,text\n1,"three\nlines"\n')
    found = payloads("text-generation", "d/")
    assert [name for name, _ in found] == ["d/a.txt", "d/b.jsonl:1", "d/b.jsonl:3", "d/c.csv:2"]
    assert [p.prompt or p.messages[0]["content"] for _, p in found] == ["a text", "one", "two", "three\nlines"]
    assert [name for name, _ in payloads("text-generation", "d/*.txt")] == ["d/a.txt"]
    assert payloads("text-generation", "d", "what is 2*3?", "an end.txt") == [
        (word, TextPayload(prompt=word)) for word in ("d", "what is 2*3?", "an end.txt")
    ]
    chat = payloads("text-generation", "d/b.jsonl", chats=True)
    assert [p.messages[0]["content"] for _, p in chat] == ["one", "two"]


def test_tables_folders_and_patterns_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("in/b.png", "in/a.JPG", "in/metadata.csv", "note.md"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.csv").write_text("file_name,label\nin/b.png,3\nin/gone.png,4\n")

    def names(*given: str) -> list[str]:
        return [each.name for each in inputs_of("image-classification", given)]

    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    assert names("**/*.png") == ["in/b.png"]
    assert names(f"{tmp_path}/i*/b.png") == [f"{tmp_path}/in/b.png"]
    assert names("in") == ["in/a.JPG", "in/b.png"] and names("*/b.*", "in/b.png") == ["in/b.png"] * 2
    one, gone = inputs_of("image-classification", ["list.csv"])
    assert one.name == "list.csv:2" and one.payload() == payloads("image-classification", "in/b.png")[0][1]
    with pytest.raises(InvalidInput, match=r"gone\.png"):
        gone.payload()


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "x" * 5000, "..", "a\ud800/../b"])
def test_a_table_names_what_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "list.jsonl").write_text(json.dumps({"file_name": name}))
    (one,) = inputs_of("image-classification", [str(tmp_path / "list.jsonl")])
    with pytest.raises(InvalidInput, match="can't read") as told:
        one.payload()
    str(told.value).encode()  # so that it can be a line


def test_names_of_any_length_are_looked_for() -> None:
    assert payloads("text-generation", "x" * 5000 + ".txt")[0][1].prompt == "x" * 5000 + ".txt"
    for task, name in (("image-classification", "x" * 5000), ("text-generation", "x" * 5000 + ".csv")):
        with pytest.raises(NotFound, match="no file xxx"):
            inputs_of(task, [name])


def test_arrays_are_in_this_machines_order_of_bytes(tmp_path: Path) -> None:
    """An engine reads memory as it is: numbers of another machine's would be others."""
    np.savez(tmp_path / "a.npz", x=np.array([[1.0, 2.0]], ">f4"))
    (one,) = inputs_of(None, [str(tmp_path / "a.npz")])
    given = one.payload()
    assert isinstance(given, TensorPayload)
    assert given.tensors["x"].tobytes() == np.array([[1.0, 2.0]], "=f4").tobytes()


@pytest.mark.parametrize("wrong", [np.zeros((1, 2), "c8"), np.zeros((1, 2), "U3"), np.zeros((1, 2)), np.zeros((0, 2), "f4")])
def test_tensors_that_a_service_would_not_take_are_not_sent(wrong: Any) -> None:
    signature = Signature((TensorSpec("x", "float32", (None, 2)),), ())
    engine = AskedTensors(Address("http://127.0.0.1:9", 1, "x"), "m", 1, signature)
    with pytest.raises(InvalidTensor, match="input 'x' is"):
        engine.run({"x": wrong})
    engine.close()


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.jsonl", "{", InvalidInput),
        ("a.csv", 'messages\n"' + "[" * 100_000 + '"\n', InvalidInput),
        ("a.jsonl", "[1]\n", InvalidInput),
        ("a.jsonl", '{"question": 1}\n', InvalidInput),
        ("a.jsonl", '{"prompt": 7}\n', InvalidInput),
        ("a.jsonl", '{"messages": []}\n', InvalidInput),
        ("a.jsonl", '{"messages": "x"}\n', InvalidInput),
        ("a.jsonl", "[" * 100_000 + "\n", InvalidInput),
        ("a.csv", "x\n1\n", InvalidInput),
        ("b/", "", NotFound),
        ("c*.jsonl", "", NotFound),
    ],
)
def test_tables_that_are_none_are_one_sentence(tmp_path: Path, name: str, text: str, error: type[Exception]) -> None:
    (tmp_path / "b").mkdir()
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(error):
        payloads("text-generation", f"{tmp_path}/{name}")
