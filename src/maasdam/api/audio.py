"""The OpenAI API for speech: transcriptions and translations. Knows its routes; never sound or models."""

from __future__ import annotations

from functools import partial
from typing import Annotated, cast

from fastapi import APIRouter, File, Form, UploadFile
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from maasdam.api import errors
from maasdam.api.audio_fields import VAD, Asked, asked
from maasdam.api.entrance import request_of
from maasdam.api.events import EventStream, as_event
from maasdam.api.routing import JsonRoute
from maasdam.api.transcripts import Events, written
from maasdam.core import Chunk, Entry, Transcript
from maasdam.operations import deployments
from maasdam.operations.service import Service

Recording = Annotated[UploadFile, File(description="WAV, AIFF, FLAC, OGG, MP3, MP4 (M4A), WebM or AAC")]
Name = Annotated[str, Form(description="NAME, NAME:VERSION or NAME@ALIAS")]
Temperature = Annotated[float, Form(ge=0, le=1, allow_inf_nan=False, description="0 (greedy) to 1")]
Prompt = Annotated[str | None, Form(description="what was said before, or words as they are spelled; of Whisper")]


def routes(service: Service) -> APIRouter:
    """The router for /v1/audio."""
    router = APIRouter(prefix="/v1/audio", tags=["OpenAI"], route_class=JsonRoute)

    @router.post("/transcriptions")
    async def transcriptions(
        http: HttpRequest,
        file: Recording,
        model: Name,
        language: Annotated[str | None, Form(description="what is spoken, as ISO 639-1 has it")] = None,
        prompt: Prompt = None,
        response_format: Annotated[str, Form()] = "json",
        temperature: Temperature = 0.0,
        stream: Annotated[bool, Form(description="true: events as they come")] = False,
        timestamp_granularities: Annotated[list[str] | None, Form(alias="timestamp_granularities[]")] = None,
        include: Annotated[list[str] | None, Form(alias="include[]", description="logprobs")] = None,
        chunking_strategy: Annotated[str | None, Form(description="auto, or an object of type server_vad")] = None,
        vad_type: Annotated[str | None, Form(alias=f"{VAD}[type]")] = None,
        vad_threshold: Annotated[str | None, Form(alias=f"{VAD}[threshold]")] = None,
        vad_padding: Annotated[str | None, Form(alias=f"{VAD}[prefix_padding_ms]")] = None,
        vad_silence: Annotated[str | None, Form(alias=f"{VAD}[silence_duration_ms]")] = None,
    ) -> Response:
        """Write down what is said in a recording; with `stream`, as server-sent events."""
        service.check_model(model)
        fields = asked(
            await file.read(),
            response_format=response_format,
            prompt=prompt,
            temperature=temperature,
            language=language,
            stream=stream,
            granularities=timestamp_granularities or (),
            include=include or (),
            chunking={
                VAD: chunking_strategy,
                f"{VAD}[type]": vad_type,
                f"{VAD}[threshold]": vad_threshold,
                f"{VAD}[prefix_padding_ms]": vad_padding,
                f"{VAD}[silence_duration_ms]": vad_silence,
            },
        )
        return await _answer(service, http, model, fields, "/v1/audio/transcriptions")

    @router.post("/translations")
    async def translations(
        http: HttpRequest,
        file: Recording,
        model: Name,
        prompt: Prompt = None,
        response_format: Annotated[str, Form()] = "json",
        temperature: Temperature = 0.0,
    ) -> Response:
        """Write down in English what is said in a recording in another language."""
        service.check_model(model)
        fields = asked(
            await file.read(), response_format=response_format, prompt=prompt, temperature=temperature, translates=True
        )
        return await _answer(service, http, model, fields, "/v1/audio/translations")

    return router


async def _answer(service: Service, http: HttpRequest, model: str, fields: Asked, endpoint: str) -> Response:
    deployments.check_hears(service, model, fields.payload)
    request = request_of(http.scope, model, (fields.payload,), endpoint, service.seconds_for(fields.payload.data))
    if not fields.is_streamed:

        async def write(chunks: list[Chunk], entry: Entry) -> Response:
            return written(cast(Transcript, chunks[0].value), fields, entry)

        return await service.inference.whole(request, write)

    def failed(error: BaseException) -> bytes:
        return as_event({"type": "error", "error": errors.openai_error(errors.refusal(error, request.id))})

    return await EventStream(failed).begun(partial(service.inference.begin_stream, request, Events(fields).event))
