"""Texts as tokens and back, for whoever counts them. Knows tokenizers; no task and no engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from maasdam.core import Spelled, SpellPayload
from maasdam.errors import InvalidPayload, MaasdamError

Tokenized = TypeVar("Tokenized")


def spelled(tokenizer: Any, vocabulary: int, payload: SpellPayload) -> Spelled:
    """Tokens of a text, or the text of tokens, control tokens too. Raises InvalidPayload."""
    text, ids = payload.text, payload.token_ids
    if ids is not None:
        wrong = next((i for i in ids if not 0 <= i < vocabulary), None)
        if wrong is not None:
            raise InvalidPayload(f"token {wrong} is not in this model's vocabulary; ids are 0 to {vocabulary - 1}")
        text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Spelled(ids, str(text), _names(tokenizer, ids, payload))
    if text is None:
        raise InvalidPayload("this model continues no chat; send a prompt")
    asked = {"add_special_tokens": payload.is_framed, "verbose": False}
    found = tuple(int(i) for i in tokenized(lambda: tokenizer(text, **asked)["input_ids"]))
    return Spelled(found, None, _names(tokenizer, found, payload))


def named(tokenizer: Any, ids: tuple[int, ...], payload: SpellPayload) -> Spelled:
    """Tokens that were found in another way."""
    return Spelled(ids, None, _names(tokenizer, ids, payload))


def _names(tokenizer: Any, ids: tuple[int, ...], payload: SpellPayload) -> tuple[str, ...]:
    return tuple(str(name) for name in tokenizer.convert_ids_to_tokens(list(ids))) if payload.shows else ()


def tokenized(read: Callable[[], Tokenized]) -> Tokenized:
    """What a tokenizer reads. Raises InvalidPayload for texts that are none, and for those that the tokenizer gives up on."""
    try:
        return read()
    except MaasdamError:
        raise
    except (UnicodeError, TypeError) as error:  # lone surrogates, which JSON can carry and UTF-8 can't
        raise InvalidPayload("the prompt is not valid Unicode text; send UTF-8") from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # which is the tokenizers library's
            raise
        why = " ".join(str(error).split())[:200]
        raise InvalidPayload(f"this model's tokenizer gives up on this text: {why}") from error
