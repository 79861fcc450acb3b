"""An answer of a sequence engine, whole or as it comes: the one way that serving, `run`, verification and proofs ask for it.

Knows requests to sequence engines, stop strings and transcripts. Refuses to know processors, queues and what an answer is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from maasdam.core import (
    PLAIN,
    Cost,
    Echo,
    Sampling,
    Scored,
    SequenceEngine,
    SequenceRequest,
    Tensors,
    TextPiece,
    TextStream,
    Tokens,
    Transcript,
    total_cost,
    whole_transcript,
)
from maasdam.errors import EngineFailure


def piece_of(tokens: Tokens, stream: TextStream) -> TextPiece:
    """The text that an engine's next tokens make certain; of a stop string, and after the last, all there is."""
    text, reason = stream.feed(tokens.token_ids), tokens.finish_reason
    taken = tokens.token_ids[: stream.taken]
    if stream.is_stopped:
        reason = "stop"
    elif reason is not None:
        text += stream.finish()
        reason = "stop" if stream.is_stopped else reason
    marked = getattr(stream, "marked", None)  # of a MarkedStream; to ask for the protocol takes microseconds a token
    return TextPiece(text, taken, reason, () if marked is None else marked(tokens, text, reason is not None))


def with_echo(piece: TextPiece, echo: Echo, scores: Sequence[Scored]) -> TextPiece:
    """The first piece of an answer behind its prompt, whose tokens are marked where `scores` tell of them."""
    marks = [mark.scored(score, echo.spelled) for mark, score in zip(echo.marks, scores, strict=False)]  # or there are none
    return piece._replace(text=echo.text + piece.text, marks=(*marks, *piece.marks))


async def text_of(
    engine: SequenceEngine, request: SequenceRequest, stream: TextStream
) -> AsyncGenerator[tuple[TextPiece, Cost | None]]:
    """The text after a prompt, piece by piece, each with what it cost so far; the last one says why it is the last.

    Raises what the engine raises, EngineFailure where it ends without saying why. Closing this cancels the generation.
    """
    cost: Cost | None = None
    async with aclosing(engine.submit(request)) as tokens_of:
        async for tokens in tokens_of:
            cost = tokens.cost or cost
            piece = piece_of(tokens, stream)
            yield piece, cost
            if piece.finish_reason is not None:
                return
    raise EngineFailure("the engine ended a generation without saying why")


async def transcript_of(
    engine: SequenceEngine, prepared: Sequence[Tensors], name: str, sampling: Sampling = PLAIN, deadline: float | None = None
) -> tuple[Transcript, list[Tokens]]:
    """What an engine that writes by itself hears in a recording of one or more parts, and the tokens it said so with."""
    pieces = [tokens async for tokens, _ in heard(engine, prepared, name, sampling, deadline)]
    return whole_transcript([transcript_piece(tokens) for tokens in pieces]), pieces


async def heard(
    engine: SequenceEngine,
    prepared: Sequence[Tensors],
    name: str,
    sampling: Sampling = PLAIN,
    deadline: float | None = None,
) -> AsyncGenerator[tuple[Tokens, Cost | None]]:
    """The tokens of all parts as they come, each with what all cost so far; of the last part's last alone they say why.

    Closing this cancels.
    """
    before: Cost | None = None
    for number, inputs in enumerate(prepared, 1):
        cost: Cost | None = None
        async with aclosing(engine.submit(SequenceRequest(name, inputs, sampling, deadline))) as tokens_of:
            async for tokens in tokens_of:
                cost = tokens.cost or cost
                reason = tokens.finish_reason if number == len(prepared) else None
                yield tokens._replace(finish_reason=reason), total_cost((before, cost))
        before = total_cost((before, cost))


def transcript_piece(tokens: Tokens) -> Transcript:
    """What an engine's next tokens add to a transcript."""
    return Transcript(tokens.text or "", tokens.segments, tokens.language, tokens.marks)


async def all_of(engine: SequenceEngine, request: SequenceRequest) -> list[Tokens]:
    """All that an engine gives; cancelling this cancels the generation."""
    async with aclosing(engine.submit(request)) as tokens_of:
        return [tokens async for tokens in tokens_of]


def greedy(
    engine: SequenceEngine, prompts: Sequence[Any], most: int | Sequence[int], tell: Callable[[int, int], None] | None = None
) -> list[tuple[int, ...]]:
    """Token ids after each prompt, all prompts at once; the end token does not stop them. `most` for all, or for each."""
    import numpy as np

    done = 0

    async def one(number: int, ids: Any) -> tuple[int, ...]:
        nonlocal done
        limit = most if isinstance(most, int) else most[number]
        sampling = Sampling(max_tokens=limit, temperature=0.0, ignore_eos=True)
        request = SequenceRequest(f"greedy-{number}", {"input_ids": np.asarray(ids, np.int64).reshape(1, -1)}, sampling)
        answer = tuple(token for tokens in await all_of(engine, request) for token in tokens.token_ids)
        done += 1
        if tell is not None:
            tell(done, len(prompts))
        return answer

    async def every() -> list[tuple[int, ...]]:
        return list(await asyncio.gather(*(one(number, ids) for number, ids in enumerate(prompts))))

    return asyncio.run(every())
