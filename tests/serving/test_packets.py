"""Packets between a service and its hosts: one message that can't be sent, or can't be taken, harms no other."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import until

from maasdam.core import AudioPayload, TextPayload
from maasdam.errors import EngineFailure, InvalidPayload, TooLarge
from maasdam.serving.hosts import channel, wire
from maasdam.serving.hosts.channel import HostChannel

HALF = "\ud800"


def pair(heard: Callable[[Any, Any], None], lost: Callable[[str], None]) -> tuple[HostChannel[Any], HostChannel[Any]]:
    """A service's end, and a host's that tells what it hears."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    service: HostChannel[Any] = HostChannel(ends[0], wire.FromHost, lambda message, memory: None, lost)
    return service, HostChannel(ends[1], wire.ToHost, heard, lost, trusts=True, waits=True)


def handles_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def ask(service: HostChannel[Any], number: int, payload: TextPayload | AudioPayload) -> None:
    said, body, at = wire.payload_given(payload, False, [], 0)
    service.send(wire.Ask(number, "r", None, False, [said]), body, at)


UNSENDABLE = {
    "a number too large": (TextPayload(token_ids=(10**23,)), OverflowError),
    "half a character": (AudioPayload(b"RIFF", HALF), UnicodeEncodeError),
    "half a character beside passed memory": (AudioPayload(b"RIFF" * 20_000, HALF), UnicodeEncodeError),
    "too long": (TextPayload(prompt="x" * 200_000), TooLarge),
}


@pytest.mark.parametrize("name", UNSENDABLE)
async def test_what_can_not_be_sent_is_refused_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(channel, "LONGEST_SPILLED", 100_000)
    payload, kind = UNSENDABLE[name]
    heard: list[tuple[int, Any]] = []
    lost: list[str] = []
    service, host = pair(
        lambda message, memory: heard.append((message.number, wire.payload_of(message.payloads[0], memory))), lost.append
    )
    handles = handles_open()
    good = AudioPayload(b"RIFF" * 300, "en")
    ask(service, 1, good)
    with pytest.raises(kind):
        ask(service, 2, payload)
    ask(service, 3, good)
    await until(lambda: len(heard) == 2)
    assert heard == [(1, good), (3, good)] and lost == []
    assert handles_open() == handles
    service.close(), host.close()


@pytest.mark.parametrize("error", [InvalidPayload(f"language '{HALF}' is unknown"), ValueError(HALF)])
def test_an_error_whose_words_hold_half_a_character_travels(error: Exception) -> None:
    import msgspec

    said = msgspec.msgpack.decode(msgspec.msgpack.encode(wire.wrong(error)), type=wire.Wrong)
    again = wire.error_of(said)
    assert "?" in str(again) and type(again) is (InvalidPayload if isinstance(error, InvalidPayload) else EngineFailure)


async def test_where_what_came_can_not_be_taken_nobody_waits_for_the_rest_of_its_packet() -> None:
    def heard(message: Any, memory: Any) -> None:
        raise OSError(24, "Too many open files")

    lost: list[str] = []
    service, host = pair(heard, lost.append)
    for number in (1, 2):
        service.send(wire.Stop(number))
    await until(lambda: len(lost) == 2)
    assert "Too many open files" in lost[0] and not host.is_open and not service.is_open
