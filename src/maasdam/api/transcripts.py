"""A transcript in the words of OpenAI's clients: JSON, text, subtitles, events. Knows forms; never how anything was heard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson
from fastapi.responses import PlainTextResponse, Response

from maasdam.api.audio_fields import Asked
from maasdam.api.events import as_event
from maasdam.api.logprobs import shown_of_speech
from maasdam.api.measured import measured, measured_headers
from maasdam.core import LANGUAGES, Chunk, Entry, Transcript, whole_transcript
from maasdam.errors import InvalidField

SEGMENT_FACTS = ("seek", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob")
"""What OpenAI's segments hold beside times and text; null where the engine does not tell."""


def written(transcript: Transcript, asked: Asked, entry: Entry) -> Response:
    """A whole transcript in the form asked for. Raises InvalidField where the model gave no times that it needs."""
    _check_times(transcript, asked)
    kind, headers = asked.format, {name.decode(): value.decode() for name, value in measured_headers(entry)}
    if kind == "text":
        return PlainTextResponse(transcript.text + "\n", headers=headers)
    if kind in ("srt", "vtt"):
        return PlainTextResponse(_subtitles(transcript, kind), headers=headers)
    out = _verbose(transcript, asked, entry) if kind == "verbose_json" else _plain(transcript, asked)
    return Response(orjson.dumps(out | {"usage": _usage(entry)}), media_type="application/json", headers=headers)


class Events:
    """One transcript as the events of a stream: what comes, as it comes, and then all of it."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._pieces: list[Transcript] = []
        self._text = ""
        self._sent = 0
        """Characters of it, but for the space around it: what stands behind it is sent only if more comes."""

    def event(self, chunk: Chunk, entry: Entry) -> bytes:
        """What the next piece says, b"" for nothing; with the last one, what ends the stream."""
        piece = cast(Transcript, chunk.value)
        is_first = not self._sent
        self._pieces.append(piece)
        self._text += piece.text
        shown = self._text.strip()
        said, self._sent = shown[self._sent :], len(shown)
        out = as_event({"type": "transcript.text.delta", "delta": said} | self._logprobs(piece, is_first)) if said else b""
        if not chunk.is_last:
            return out
        whole = whole_transcript(self._pieces)
        done = {"type": "transcript.text.done", "text": whole.text} | self._logprobs(whole, True)
        return out + as_event(done | {"usage": _usage(entry)})

    def _logprobs(self, piece: Transcript, is_first: bool) -> dict[str, Any]:
        return {"logprobs": shown_of_speech(piece.marks, is_first)} if self._asked.payload.logprobs else {}


def _plain(transcript: Transcript, asked: Asked) -> dict[str, Any]:
    logprobs = {"logprobs": shown_of_speech(transcript.marks, True)} if asked.payload.logprobs else {}
    return {"text": transcript.text} | logprobs


def _verbose(transcript: Transcript, asked: Asked, entry: Entry) -> dict[str, Any]:
    """A translation is in English, whatever was spoken."""
    code = "en" if asked.payload.translates else transcript.language or asked.payload.language or ""
    out: dict[str, Any] = {
        "task": "translate" if asked.payload.translates else "transcribe",
        "language": LANGUAGES.get(code, code),
        "duration": entry.audio_seconds or 0.0,
        "text": transcript.text,
    }
    times = asked.times
    if "segment" in times or not times:
        told = transcript.segments
        if not times and any(name not in segment for segment in told for name in SEGMENT_FACTS):
            told = ()  # strict clients, which did not ask, take no null for what the engine does not tell
        out["segments"] = [_segment(i, segment) for i, segment in enumerate(told)]
    if "word" in times:
        out["words"] = [_word(word) for segment in transcript.segments for word in segment.get("words", ())]
    return out


def _usage(entry: Entry) -> dict[str, Any]:
    return {"type": "duration", "seconds": entry.audio_seconds or 0.0, "maasdam": measured(entry)}


def _check_times(transcript: Transcript, asked: Asked) -> None:
    """Refuse times of a model that gave none."""
    if not transcript.text:
        return
    if "word" in asked.times and not any("words" in segment for segment in transcript.segments):
        raise InvalidField("this model gives no times of words; leave 'word' out", "timestamp_granularities")
    if asked.format in ("srt", "vtt") and not transcript.segments:
        raise InvalidField(
            f"this model gives no times, which {asked.format} needs; ask for json, text or verbose_json", "response_format"
        )


def _segment(i: int, segment: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: segment[name] for name in ("start", "end", "text")}
    return {"id": i, **named, **{name: segment.get(name) for name in SEGMENT_FACTS}}


def _word(word: Mapping[str, Any]) -> dict[str, Any]:
    return {"word": str(word["word"]).strip(), "start": word["start"], "end": word["end"]}


def _subtitles(transcript: Transcript, kind: str) -> str:
    lines = ["WEBVTT", ""] if kind == "vtt" else []
    mark = "." if kind == "vtt" else ","
    for i, segment in enumerate(transcript.segments, 1):
        if kind == "srt":
            lines.append(str(i))
        lines.append(f"{_clock(segment['start'], mark)} --> {_clock(segment['end'], mark)}")
        text = " ".join(str(segment["text"]).split())  # an empty line would end the subtitle
        if kind == "vtt":
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        lines += [text, ""]
    return "\n".join(lines)


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"
