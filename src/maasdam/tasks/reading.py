"""Texts that are read: to token ids with the model's own tokenizer, one or two at a time, as its engine takes them.

Knows tokenizers and how long a text may be. Refuses to know engines, and what is made of the answer.

No row is ever padded: texts of one length are computed together, where that was proven to change no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from maasdam.core import CONTEXT_KEYS, Payload, ReadPayload, Signature, Spelled, SpellPayload, Tensors, Units
from maasdam.errors import InputTooLong, InvalidModel, InvalidPayload
from maasdam.tasks.files import opened, read_json
from maasdam.tasks.spelling import spelled, tokenized
from maasdam.tasks.text import open_tokenizer

if TYPE_CHECKING:
    from maasdam.core import type_array

KNOWN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""Inputs that can be made of a text."""
PADDED_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "xmod")
"""Kinds of models (config.json's model_type) that count positions from behind the id of their padding."""
ENDLESS = 1_000_000
"""transformers writes more than that where a tokenizer knows no longest text."""


class Words(NamedTuple):
    """One text, or two, as tokens."""

    ids: list[int]
    kinds: list[int]
    """0 of the first text and what surrounds it, 1 of the second."""
    of: list[int | None]
    """Which text each is of; None of control tokens."""
    spans: list[tuple[int, int]]
    """Where each stands in its text, characters."""
    word: list[int | None]
    """Which word of its text each is a piece of."""
    cuts: tuple[int, int] = (0, 0)
    """Tokens that were cut off, of each text."""

    @property
    def cut(self) -> int:
        """Of both."""
        return sum(self.cuts)

    def without(self, dropped: set[int]) -> Words:
        """The same without the tokens at these places."""
        kept = [i for i in range(len(self.ids)) if i not in dropped]
        first = [self.ids[i] for i in kept], [self.kinds[i] for i in kept], [self.of[i] for i in kept]
        cuts = tuple(count + sum(self.of[i] == text for i in dropped) for text, count in enumerate(self.cuts))
        return Words(*first, [self.spans[i] for i in kept], [self.word[i] for i in kept], (cuts[0], cuts[1]))


class Read(list[dict[str, "type_array"]]):
    """What an engine takes of a payload, and how many tokens that is."""

    tokens = 0
    cut = 0


class Reader:
    """The tokenizer of one model that reads. Thread-safe."""

    def __init__(self, folder: Path, signature: Signature | None, what: str) -> None:
        """`what` it is ("a text classifier"). Raises InvalidModel where its inputs can't be made of texts."""
        if signature is None:
            raise InvalidModel(f"{what} needs a signature: the names and shapes of its tensors")
        names = [spec.name for spec in signature.inputs]
        if "input_ids" not in names or not set(names) <= set(KNOWN):
            raise InvalidModel(f"{what} takes {', '.join(KNOWN)} or some of them; this model takes {', '.join(names)}")
        fixed = next((spec for spec in signature.inputs if spec.shape[1:] != (None,)), None)
        if fixed is not None:
            raise InvalidModel(
                f"{what} takes texts of any length, and input '{fixed.name}' is {fixed.sizes}; export it with open axes"
            )
        self.tokenizer = opened("tokenizer", folder, lambda: open_tokenizer(folder))
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InvalidModel(
                "the model's tokenizer is of the slow kind, which is not read here; save a tokenizer.json with it"
            )
        backend.no_truncation()  # what the file says would hold for all threads; `_fitted` cuts
        backend.no_padding()
        self._encode = backend.encode
        config = read_json(folder / "config.json")
        own = read_json(folder / "sentence_bert_config.json")
        self._lowers = own.get("do_lower_case") is True
        self._has_kinds = "token_type_ids" in self.tokenizer.model_input_names  # else transformers takes the first for all
        self._signature = signature
        self._before = _before(config)
        self.longest = _longest(config, own, self.tokenizer.model_max_length)
        self.vocabulary = max(len(self.tokenizer), config.get("vocab_size") or 0)
        self._longest_token = max((len(token) for token in self.tokenizer.get_vocab()), default=1)
        self.around = int(self.tokenizer.num_special_tokens_to_add(pair=True))
        """Control tokens of two texts."""

    def words(self, text: str, beside: str | None = None, *, cuts: bool = False, is_bounded: bool = True) -> Words:
        """Tokens of one text or two, with what the model was trained to see around them; of any length unless `is_bounded`.

        Raises InputTooLong beyond the model's length where nothing may be cut, InvalidPayload.
        """
        longest = self.longest if is_bounded else None
        given = [text] if beside is None else [text, beside]
        least = sum(len(one) for whole in given for one in whole.split()) // self._longest_token  # spaces may be no tokens
        if not cuts and longest is not None and least > longest:
            raise InputTooLong(f"at least {least}", longest)
        if self._lowers:
            given = [one.lower() for one in given]
        most = (longest + 1) * self._longest_token if cuts and longest is not None else None
        begun = [one[:most] for one in given]  # what is cut off needs not be read, so that what is told of it is the least
        read = tokenized(lambda: self._encode(*begun))
        if longest is not None and any(
            begun[i] != given[i] and read.sequence_ids.count(i) <= longest for i in range(len(given))
        ):
            read = tokenized(lambda: self._encode(*given))  # much of it is no tokens
        words = Words(read.ids, read.type_ids, read.sequence_ids, read.offsets, read.word_ids)
        return self._fitted(words, cuts) if is_bounded else words

    def _fitted(self, words: Words, cuts: bool) -> Words:
        """No longer than the model reads: of two texts the longer is cut first, as transformers does."""
        count = len(words.ids)
        if self.longest is None or count <= self.longest:
            return words
        if not cuts:
            raise InputTooLong(count, self.longest)
        lengths = [sum(of == i for of in words.of) for i in (0, 1)]
        room = max(0, self.longest - count + sum(lengths))
        short, long = sorted(lengths)
        if short + max(short, room - short) > room:
            short, long = room // 2, room - room // 2
        else:
            long = room - short
        kept = (short, long) if lengths[0] <= lengths[1] else (long, short)
        if lengths[1] == 0:
            kept = (room, 0)
        places = [[at for at, of in enumerate(words.of) if of == i] for i in (0, 1)]
        return words.without({at for i, own in enumerate(places) for at in own[kept[i] :]})

    def ids(self, given: Sequence[int]) -> Words:
        """Token ids as they are: whoever sends them puts control tokens around them. Raises InvalidPayload, InputTooLong."""
        wrong = next((i for i in given if not 0 <= i < self.vocabulary), None)
        if wrong is not None:
            raise InvalidPayload(f"token {wrong} is not in this model's vocabulary; ids are 0 to {self.vocabulary - 1}")
        if not given:
            raise InvalidPayload("a list of token ids is empty; send at least one")
        count = len(given)
        if self.longest is not None and count > self.longest:
            raise InputTooLong(count, self.longest)
        return Words(list(given), [0] * count, [0] * count, [(0, 0)] * count, [None] * count)

    def tensors(self, words: Words) -> dict[str, type_array]:
        """One row for the engine."""
        import numpy as np

        count = len(words.ids)
        if count == 0:
            raise InvalidPayload("the text is empty, and this model puts no token around it; send at least one character")
        columns = {
            "input_ids": words.ids,
            "attention_mask": [1] * count,
            "token_type_ids": words.kinds if self._has_kinds else [0] * count,
        }
        columns["position_ids"] = list(range(self._before, self._before + count))
        return {spec.name: np.array([columns[spec.name]], dtype=spec.dtype) for spec in self._signature.inputs}

    def read(self, *rows: Words) -> Read:
        """Rows for the engine."""
        out = Read(self.tensors(row) for row in rows)
        out.tokens, out.cut = sum(len(row.ids) for row in rows), sum(row.cut for row in rows)
        return out

    def spell(self, payload: SpellPayload) -> Spelled:
        """See `SpellingProcessor`."""
        return spelled(self.tokenizer, self.vocabulary, payload)

    def of(self, payload: ReadPayload) -> Words:
        """A payload's own tokens. Raises InvalidPayload, InputTooLong."""
        if not isinstance(payload.text, str):
            return self.ids(payload.text)
        return self.words(payload.text, payload.beside, cuts=payload.cuts)


def chances(scores: type_array) -> type_array:
    """Rows of scores through a softmax."""
    import numpy as np

    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: type_array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def units(payload: Payload, prepared: Sequence[Tensors]) -> Units:
    """Tokens that were read."""
    assert isinstance(prepared, Read)
    return Units(prompt_tokens=prepared.tokens)


def _before(config: dict[str, Any]) -> int:
    """Positions before that of the first token."""
    return int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in PADDED_POSITIONS else 0


def _longest(config: dict[str, Any], own: dict[str, Any], of_tokenizer: Any) -> int | None:
    """Tokens of the longest text: what the tokenizer, the folder and the table of positions allow; None is any."""
    positions = next((config[key] for key in CONTEXT_KEYS if isinstance(config.get(key), int)), None)
    if positions is not None:
        positions -= _before(config)
    known = [n for n in (positions, own.get("max_seq_length"), of_tokenizer) if isinstance(n, int) and 0 < n < ENDLESS]
    return min(known, default=None)
