"""A server that speaks the OpenAI API and lies, on a raw socket: what it does is what the prompt says."""

from __future__ import annotations

import asyncio
import json
import threading
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

KEY = "sk-not-to-be-seen-0123456789"
Writer = asyncio.StreamWriter
FAULTS: dict[str, Callable[[Writer, dict[str, Any]], Awaitable[None]]] = {}


def fault(do: Callable[[Writer, dict[str, Any]], Awaitable[None]]) -> Callable[[Writer, dict[str, Any]], Awaitable[None]]:
    FAULTS[do.__name__] = do
    return do


def head(status: str = "200 OK", kind: str = "application/json", *more: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"content-type: {kind}", "connection: close", *more, "", ""]).encode()


def choice(text: Any = "one two", reason: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"index": 0, "text": text, "finish_reason": reason} | more


def answer(*choices: Any, usage: Any = None, **more: Any) -> bytes:
    said = {"prompt_tokens": 3, "completion_tokens": 2} if usage is None else usage
    return json.dumps({"model": "liar", "choices": list(choices or [choice()]), "usage": said} | more).encode()


def call(name: Any = "weather", arguments: Any = '{"city": "Ub", "unit": "C"}', **more: Any) -> dict[str, Any]:
    return {"id": "call_7", "type": "function", "function": {"name": name, "arguments": arguments}} | more


def calls(*made: Any, reason: Any = "tool_calls", content: Any = None, part: str = "message") -> dict[str, Any]:
    return {"index": 0, "finish_reason": reason, part: {"content": content, "tool_calls": list(made)}}


def event(*choices: Any, **more: Any) -> bytes:
    return b"data: " + json.dumps({"model": "liar", "choices": list(choices)} | more).encode() + b"\n\n"


def says(reply: bytes, before: bytes = b"") -> Callable[[Writer, dict[str, Any]], Awaitable[None]]:
    async def do(writer: Writer, body: dict[str, Any]) -> None:
        writer.write((before or head()) + reply)

    return do


def error(message: str = "no", param: str | None = None, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "param": param, "code": code}}).encode()


def vectors(*rows: Any, **usage: Any) -> bytes:
    data = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
    return json.dumps({"data": data} | ({"usage": usage} if usage else {})).encode()


STREAM = head(kind="text/event-stream")
BEGUN = event(choice("one", None)) + event(choice(" two", None))

FAULTS |= {
    "plain": says(answer()),
    "cut": says(answer(choice(reason="length"))),
    "cut_json": says(answer(choice('{"b" :1,\n\n "a":[ ', "length"))),
    "cut_call": says(answer(calls(reason="length", content='\n<tool_call>\n{"name": "w'))),
    "cut_talk": says(answer(calls(reason="length", content="one two"))),
    "no_usage": says(answer(choice("twelve bytes"), usage={})),
    "false_usage": says(answer(choice("twelve bytes"), usage={"prompt_tokens": -4, "completion_tokens": 10**9})),
    "usage_of_millions": says(answer(choice("twelve bytes"), usage={"prompt_tokens": 2 * 10**9, "completion_tokens": 2})),
    "usage_of_text": says(answer(choice("twelve bytes"), usage={"prompt_tokens": "many", "completion_tokens": True})),
    "no_json": says(b"<html>hello</html>"),
    "half_json": says(answer()[:-9]),
    "a_list": says(b"[]"),
    "deep": says(b"[" * 100_000),
    "no_choices": says(answer()[:-1].replace(b'"choices"', b'"chances"') + b"}"),
    "two_choices": says(answer(choice(), choice(index=1))),
    "second_choice": says(answer(choice(index=1))),
    "no_end": says(answer(choice(reason=None))),
    "odd_end": says(answer(choice(reason="tool_calls"))),
    "number_for_text": says(answer(choice(text=7))),
    "another_model": says(answer(model="other")),
    "half_a_character": says(b'{"model":"liar","choices":[{"index":0,"text":"\\ud800","finish_reason":"stop"}]}'),
    "writes_on": says(answer(choice("one STOP two"))),
    "error_in_200": says(error(f"with {KEY}")),
    "redirect": says(b"", head("307 Temporary Redirect", "text/plain", "location: http://127.0.0.1:1/")),
    "packed": says(zlib.compress(b"0" * 10_000_000), head("200 OK", "application/json", "content-encoding: deflate")),
    "refuses_key": says(error(f"Incorrect API key provided: {KEY}"), head("401 Unauthorized")),
    "refuses_field": says(error(f"top_k is wrong, says {KEY}", "top_k", "bad_k"), head("400 Bad Request")),
    "refuses_ours": says(error("no such model", "model"), head("400 Bad Request")),
    "refuses_detail": says(b'{"detail": "seed is no number"}', head("422 Unprocessable Entity")),
    "too_long": says(error("This model's maximum context length is 4", "messages", "context_length_exceeded"), head("400 Bad")),
    "too_large": says(error("too large"), head("413 Content Too Large")),
    "limited": says(error("slow down"), head("429 Too Many Requests", "application/json", "retry-after: 17")),
    "busy": says(error("later"), head("503 Service Unavailable", "application/json", "retry-after: 23")),
    "breaks": says(error("oops", code="secret-detail"), head("500 Internal Server Error")),
    "no_http": says(b"", b"SSH-2.0-OpenSSH_9.9\r\n"),
    "huge_header": says(b"", b"HTTP/1.1 200 OK\r\nx: " + b"a" * 2_000_000 + b"\r\n\r\n"),
    "vectors": says(vectors([0.5, -1], [2, 3], prompt_tokens=9)),
    "vectors_of_millions": says(vectors([0.5], [2], prompt_tokens=2 * 10**9)),
    "turned_round": says(b'{"data": [{"index": 1, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}]}'),
    "one_vector": says(vectors([1.0])),
    "two_lengths": says(vectors([1.0], [1.0, 2.0])),
    "words_for_numbers": says(vectors(["1.0"], [2.0])),
    "beyond_float32": says(vectors([1e300], [2.0])),
    "same_index": says(b'{"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}]}'),
    "no_sse": says(answer()),
    "key_for_a_kind": says(answer(), head(kind=f"text/{KEY}")),
    "short_lines": says(b"data:x\n" * 300_000, STREAM),
    "echoes_a_stop": says(event(choice("echoes_a_stop and STOP", None)) + event(choice("", "stop")), STREAM),
    "thinks": says(event(choice("", None, reasoning_content="hm")) * 60, STREAM),
    "thought": says(answer(choice("", "length", reasoning_content="four bytes a one"), usage={})),
    "many_marks": says(answer(choice("a", logprobs={"tokens": ["a"] * 9, "token_logprobs": [-1] * 9}))),
    "bad_sse": says(b"data: {nonsense}\n\n", STREAM),
    "sse_list": says(b"data: [1]\n\n", STREAM),
    "sse_error": says(BEGUN + b"data: " + error(f"out of memory {KEY}") + b"\n\n", STREAM),
    "breaks_off": says(BEGUN, STREAM),
    "ends_without_done": says(BEGUN + event(choice("", "length")), STREAM),
    "long_line": says(b"data: " + b"a" * 3_000_000, STREAM),
    "more_than_asked": says(b"".join(event(choice(" x", None)) for _ in range(60)), STREAM),
    "stop_in_pieces": says(event(choice("one ST", None)) + event(choice("OP two", None)) + event(choice("", "stop")), STREAM),
}

CALLED = {
    "call": [call()],
    "no_calls": [],
    "unknown_tool": [call("delete_all")],
    "not_the_named": [call("stop_all", "{}")],
    "no_json_call": [call(arguments='{"city": ')],
    "a_list_call": [call(arguments="[1]")],
    "not_a_number": [call(arguments='{"city": NaN}')],
    "beyond_numbers": [call(arguments='{"city": 1e999}')],
    "deep_call": [call(arguments='{"a":' * 5000)],
    "wrong_arguments": [call(arguments='{"city": "much too long", "unit": "C"}')],
    "object_arguments": [call(arguments={"city": "Ub", "unit": "C"})],
    "another_kind": [call(type="custom")],
    "no_function": [{"id": "a", "type": "function"}],
    "calls_that_are_none": ["weather"],
    "two_calls": [call(id=""), call()],
    "same_ids": [call(), call()],
    "many_calls": [call() for _ in range(200)],
    "no_arguments": [call("stop_all", "")],
}


async def _calls_in(name: str, reason: str, writer: Writer, body: dict[str, Any]) -> None:
    """Whole, or as pieces of three letters."""
    made = CALLED[name]
    if not body.get("stream"):
        writer.write(head() + answer(calls(*made, reason=reason)))
        return
    writer.write(STREAM + event(calls(content="", reason=None, part="delta")))
    for i, one in enumerate(made):
        arguments = one["function"]["arguments"] if isinstance(one, dict) and "function" in one else ""
        if not isinstance(arguments, str) or not arguments:
            writer.write(event(calls({"index": i} | one if isinstance(one, dict) else one, reason=None, part="delta")))
            continue
        pieces = [arguments[at : at + 3] for at in range(0, len(arguments), 3)]
        first = one | {"index": i, "function": one["function"] | {"arguments": pieces[0]}}
        rest = [{"index": i, "function": {"arguments": piece}} for piece in pieces[1:]]
        writer.write(b"".join(event(calls(piece, reason=None, part="delta")) for piece in (first, *rest)))
    writer.write(event(calls(reason=reason, part="delta")) + b"data: [DONE]\n\n")


FAULTS |= {name: partial(_calls_in, name, "tool_calls") for name in CALLED}
FAULTS |= {f"{name}:{reason}": partial(_calls_in, name, reason) for name in CALLED for reason in ("stop", "length")}
FAULTS |= {
    "says_no_call": says(answer(calls(reason="stop", content="I'd rather not"))),
    "says_no_call_in_pieces": says(
        event(calls(reason=None, content="I'd rather", part="delta"))
        + event(calls(reason="stop", content=" not", part="delta")),
        STREAM,
    ),
    "turns_round": says(
        event(
            calls(call("stop_all", "{", index=1, id=None), call(arguments='{"city": "Ub",', index=0), reason=None, part="delta")
        )
        + event(calls(call(None, "}", index=1, id=None), call(None, ' "unit": "C"}', index=0), part="delta")),
        STREAM,
    ),
    "no_index": says(
        event(calls(call(arguments='{"city": "Ub",', id="a"), reason=None, part="delta"))
        + event(calls({"function": {"arguments": ' "unit": "C"}'}}, reason=None, part="delta"))
        + event(calls(call("stop_all", "{}", id="b"), part="delta")),
        STREAM,
    ),
    "odd_index": says(event(calls(call(index=-1), part="delta")), STREAM),
    "breaks_off_calling": says(event(calls(call(index=0, arguments="{"), reason=None, part="delta")), STREAM),
}


@fault
async def closes(writer: Writer, body: dict[str, Any]) -> None:
    writer.transport.abort()


@fault
async def said_too_long(writer: Writer, body: dict[str, Any]) -> None:
    writer.write(head("200 OK", "application/json", "content-length: 99999999999"))


@fault
async def endless(writer: Writer, body: dict[str, Any]) -> None:
    writer.write(head())
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


@fault
async def idle_events(writer: Writer, body: dict[str, Any]) -> None:
    writer.write(STREAM)
    while True:
        writer.write(event(choice("", None)) * 100)
        await writer.drain()


@fault
async def comments(writer: Writer, body: dict[str, Any]) -> None:
    writer.write(STREAM)
    while True:
        writer.write(b": still here\n\n")
        await writer.drain()
        await asyncio.sleep(0.05)


@fault
async def silent(writer: Writer, body: dict[str, Any]) -> None:
    await asyncio.sleep(60)


@fault
async def two_answers(writer: Writer, body: dict[str, Any]) -> None:
    reply = answer(choice("another's"))
    writer.write((b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(reply) + reply) * 2)
    await writer.drain()
    await asyncio.sleep(60)


@fault
async def waits(writer: Writer, body: dict[str, Any]) -> None:
    writer.write(STREAM + BEGUN)
    await writer.drain()
    await asyncio.sleep(60)


class Liar:
    """In a thread of its own. `asked` are the bodies of its requests, `gone` counts callers that went away from `waits`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.gone = 0
        self.models = ["liar", "other"]
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        self._loop.call_soon_threadsafe(self._server.close)

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        try:
            start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
            if start.startswith("GET"):
                writer.write(head() + json.dumps({"data": [{"id": one} for one in self.models]}).encode())
            else:
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.asked.append((start, headers, body))
                name = body["messages"][0]["content"] if "messages" in body else body.get("prompt") or body["input"][0]
                doing = asyncio.ensure_future(FAULTS[name](writer, body))
                watching = asyncio.ensure_future(reader.read())
                await asyncio.wait([doing, watching], return_when=asyncio.FIRST_COMPLETED)
                if not doing.done():
                    self.gone += 1
                    doing.cancel()
                watching.cancel()
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
