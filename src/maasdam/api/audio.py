"""The OpenAI API for speech: transcriptions and translations. Knows OpenAI's form fields; never sound or models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, cast

import orjson
from fastapi import APIRouter, File, Form, UploadFile
from fastapi import Request as HttpRequest
from fastapi.responses import PlainTextResponse, Response

from maasdam.api.entrance import request_of
from maasdam.api.fields import check_neutral
from maasdam.api.measured import measured, measured_headers
from maasdam.api.routing import JsonRoute
from maasdam.core import AudioPayload, Chunk, Entry, Pauses, Transcript
from maasdam.errors import InvalidField, Unsupported
from maasdam.operations.service import Service

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
ENDPOINT = "/v1/audio/transcriptions"


def routes(service: Service) -> APIRouter:
    """The router for /v1/audio."""
    router = APIRouter(prefix="/v1/audio", tags=["OpenAI"], route_class=JsonRoute)

    @router.post("/transcriptions")
    async def transcriptions(
        http: HttpRequest,
        file: Annotated[UploadFile, File(description="WAV, AIFF, FLAC, OGG, MP3, MP4 (M4A), WebM or AAC")],
        model: Annotated[str, Form()],
        language: Annotated[str | None, Form()] = None,
        prompt: Annotated[str | None, Form()] = None,
        response_format: Annotated[str, Form()] = "json",
        temperature: Annotated[float, Form()] = 0.0,
        stream: Annotated[bool, Form()] = False,
        timestamp_granularities: Annotated[list[str] | None, Form(alias="timestamp_granularities[]")] = None,
        chunking_strategy: Annotated[str | None, Form(description="auto: long recordings are cut as is best")] = None,
    ) -> Response:
        """Write down what is said in a recording."""
        service.check_model(model)
        check_neutral({"chunking_strategy": chunking_strategy}, {"chunking_strategy": ("auto", "")})
        _check(response_format, prompt, temperature, stream, timestamp_granularities)
        times = set(timestamp_granularities or ())
        payload = AudioPayload(await file.read(), language or None, "word" in times, pauses=Pauses())
        request = request_of(http.scope, model, (payload,), ENDPOINT, service.seconds_for(payload.data))

        async def written(chunks: list[Chunk], entry: Entry) -> Response:
            transcript = cast(Transcript, chunks[0].value)
            _check_times(transcript, response_format, "word" in times)
            return _write(transcript, response_format, times, language, entry)

        return await service.inference.whole(request, written)

    @router.post("/translations")
    async def translations(file: Annotated[UploadFile, File()], model: Annotated[str, Form()]) -> None:
        """No model of this service translates speech."""
        service.check_model(model)
        raise Unsupported("no deployed model translates speech; POST /v1/audio/transcriptions writes it in its own language")

    return router


def _check(kind: str, prompt: str | None, temperature: float, stream: bool, granularities: Sequence[str] | None) -> None:
    if kind not in FORMATS:
        raise InvalidField(f"'response_format' is {kind!r:.40}; send one of {', '.join(FORMATS)}", "response_format")
    for name, is_asked in (("prompt", bool(prompt)), ("temperature", temperature != 0.0), ("stream", stream)):
        if is_asked:
            raise InvalidField(f"'{name}' is not supported for transcriptions; leave it out", name, "unsupported_parameter")
    name = "timestamp_granularities"
    for granularity in granularities or ():
        if granularity not in ("segment", "word"):
            raise InvalidField(f"'{name}' holds {granularity!r:.40}; send segment or word", name)
        if granularity == "word" and kind != "verbose_json":
            raise InvalidField(f"times of words come with response_format verbose_json, not {kind}", name)


def _check_times(transcript: Transcript, kind: str, has_words: bool) -> None:
    """Refuse times of a model that gave none."""
    if not transcript.text:
        return
    if has_words and not any("words" in segment for segment in transcript.segments):
        raise InvalidField("this model gives no times of words; leave 'word' out", "timestamp_granularities")
    if kind in ("srt", "vtt") and not transcript.segments:
        raise InvalidField(
            f"this model gives no times, which {kind} needs; ask for json, text or verbose_json", "response_format"
        )


def _write(transcript: Transcript, kind: str, times: Collection[str], language: str | None, entry: Entry) -> Response:
    seconds = entry.audio_seconds
    headers = {name.decode(): value.decode() for name, value in measured_headers(entry)}
    if kind == "text":
        return PlainTextResponse(transcript.text + "\n", headers=headers)
    if kind in ("srt", "vtt"):
        return PlainTextResponse(_subtitles(transcript, kind), headers=headers)
    usage: dict[str, Any] = {"type": "duration", "seconds": seconds or 0.0, "maasdam": measured(entry)}
    out: dict[str, Any] = {"text": transcript.text, "usage": usage}
    if kind == "verbose_json":
        out |= {"task": "transcribe", "language": transcript.language or language or "", "duration": seconds or 0.0}
        if "segment" in times or not times:
            told = transcript.segments
            if not times and any(name not in segment for segment in told for name in SEGMENT_FACTS):
                told = ()  # strict clients, which did not ask, take no null for what the engine does not tell
            out["segments"] = [_segment(i, segment) for i, segment in enumerate(told)]
        if "word" in times:
            out["words"] = [_word(word) for segment in transcript.segments for word in segment.get("words", ())]
    return Response(orjson.dumps(out), media_type="application/json", headers=headers)


SEGMENT_FACTS = ("seek", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob")
"""What OpenAI's segments hold beside times and text; null where the engine does not tell."""


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
