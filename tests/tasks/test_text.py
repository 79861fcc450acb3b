"""Prompts and chats in, text out as it comes."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maasdam.core import Sampling, TextPayload, TextPiece
from maasdam.engines.generation import choose, read_defaults
from maasdam.errors import ContextExceeded, InvalidModel, InvalidPayload
from maasdam.tasks import open_processor
from maasdam.tasks.detokenizer import Detokenizer
from maasdam.tasks.text import TextProcessor
from tests.engines import tiny_language_model
from tests.engines.tiny_language_model import CONTEXT, VOCABULARY

TASK = "text-generation"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_model.huggingface(tmp_path_factory.mktemp("model")).path


@pytest.fixture(scope="module")
def processor(folder: Path) -> TextProcessor:
    opened = open_processor(TASK, folder, None)
    assert isinstance(opened, TextProcessor)
    return opened


def ids(processor: TextProcessor, **payload: Any) -> list[int]:
    prepared = processor.prepare(TextPayload(**payload))
    assert len(prepared) == 1 and prepared[0]["input_ids"].dtype.name == "int64"
    return [int(i) for i in prepared[0]["input_ids"][0]]


def test_a_prompt_becomes_tokens_and_back(processor: TextProcessor) -> None:
    text = "the cat sat; là-bas, naïve 🐈 café"
    tokens = ids(processor, prompt=text)
    assert processor.decode(tokens) == text
    assert processor.units(TextPayload(prompt=text), processor.prepare(TextPayload(prompt=text))).prompt_tokens == len(tokens)


def test_a_chat_is_rendered_with_the_models_template_and_opened_for_the_answer(processor: TextProcessor) -> None:
    tokens = ids(processor, messages=({"role": "user", "content": "the cat"},))
    assert tokens[0] == 0 and tokens[1] == 2 and tokens[-1] == 3 and tokens[-2] == 1
    parts = ({"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]},)
    assert ids(processor, messages=parts) == tokens


def test_token_ids_go_through(processor: TextProcessor) -> None:
    assert ids(processor, token_ids=(5, 6, VOCABULARY - 1)) == [5, 6, VOCABULARY - 1]


def test_an_empty_prompt_begins_with_the_models_first_token(processor: TextProcessor) -> None:
    assert ids(processor, prompt="") == [0]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "exactly one"),
    "two": ({"prompt": "a", "token_ids": (5,)}, "exactly one"),
    "no messages": ({"messages": ()}, "empty"),
    "no role": ({"messages": ({"content": "a"},)}, "role"),
    "odd role": ({"messages": ({"role": "emperor", "content": "a"},)}, "'emperor'"),
    "no content": ({"messages": ({"role": "user"},)}, "content"),
    "picture": ({"messages": ({"role": "user", "content": [{"type": "image_url"}]},)}, "text only"),
    "token too high": ({"token_ids": (VOCABULARY,)}, "vocabulary"),
    "negative token": ({"token_ids": (-1,)}, "vocabulary"),
    "no token": ({"token_ids": ()}, "empty"),
    "float token": ({"token_ids": (1.5,)}, "vocabulary"),
    "lone surrogate": ({"prompt": "a\ud800b"}, "Unicode"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_prompt_is_refused_in_a_sentence(processor: TextProcessor, bad: tuple[dict[str, Any], str]) -> None:
    with pytest.raises(InvalidPayload, match=bad[1]):
        processor.prepare(TextPayload(**bad[0]))


@pytest.mark.parametrize("how", [{"prompt": "zq " * 100}, {"messages": ({"role": "user", "content": "zq " * 100},)}])
def test_what_is_beyond_the_context_is_refused_where_it_would_be_continued(
    processor: TextProcessor, folder: Path, how: dict[str, Any]
) -> None:
    tokens = ids(processor, **how)
    with pytest.raises(ContextExceeded, match=f"has {len(tokens)} tokens and this model's context is {CONTEXT}"):
        choose(Sampling(), read_defaults(folder), len(tokens))


def test_a_prompt_of_fifty_megabytes_is_refused_at_once(processor: TextProcessor) -> None:
    prompt = "spam " * 10_000_000
    began = time.perf_counter()
    with pytest.raises(InvalidPayload, match=r"at least \d+ tokens"):
        processor.prepare(TextPayload(prompt=prompt))
    assert time.perf_counter() - began < 0.5


def test_a_model_without_chat_template_points_to_completions(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    plain = open_processor(TASK, tmp_path, None)
    with pytest.raises(InvalidPayload, match="/v1/completions"):
        plain.prepare(TextPayload(messages=({"role": "user", "content": "hello"},)))


def test_a_template_that_refuses_says_why(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    strict = open_processor(TASK, tmp_path, None)
    with pytest.raises(InvalidPayload, match="roles must alternate"):
        strict.prepare(TextPayload(messages=({"role": "user", "content": "hello"},)))


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch ' ~ messages[0].content) }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ messages.clear() }}",
        "{{ raise_exception.__globals__['__builtins__']['open'](messages[0].content, 'w') }}",
    ],
)
def test_a_template_reaches_nothing_outside_itself(folder: Path, tmp_path: Path, template: str) -> None:
    """Templates come with the model, whoever made that; they are Jinja's, in its sandbox."""
    model, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(folder, model)
    (model / "chat_template.jinja").write_text(template)
    hostile = open_processor(TASK, model, None)
    with pytest.raises(InvalidPayload, match="this model's chat template refuses these messages"):
        hostile.prepare(TextPayload(messages=({"role": "user", "content": str(mark)},)))
    assert not mark.exists()


def test_a_folder_without_tokenizer_is_an_invalid_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidModel, match="tokenizer"):
        open_processor(TASK, tmp_path, None)


def test_finish_gives_the_whole_text(processor: TextProcessor) -> None:
    import numpy as np

    tokens = ids(processor, prompt="the cat")
    found = processor.finish([{"token_ids": np.array([tokens])}], TextPayload(prompt="x"))
    assert found == TextPiece("the cat", tuple(tokens), "stop")


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), seed=st.integers(0, 10**6))
def test_pieces_together_are_the_whole_text(processor: TextProcessor, text: str, seed: int) -> None:
    tokens = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    stream, pieces, at = processor.stream(), [], 0
    rng = random.Random(seed)
    while at < len(tokens):
        step = rng.randint(1, 3)
        pieces.append(stream.feed(tokens[at : at + step]))
        at += step
    pieces.append(stream.finish())
    assert "".join(pieces) == processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert all("�" not in piece for piece in pieces[:-1]) or "�" in text


@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.integers(0, VOCABULARY - 1), max_size=30))
def test_any_tokens_at_all_give_the_text_that_they_are(processor: TextProcessor, tokens: list[int]) -> None:
    stream = processor.stream()
    text = "".join([stream.feed([t]) for t in tokens] + [stream.finish()])
    assert text == processor.tokenizer.decode(tokens, skip_special_tokens=True)


def spelled(text: str, stop: tuple[str, ...]) -> tuple[str, bool, list[str]]:
    """`text` fed letter by letter."""
    stream = Detokenizer(lambda codes: "".join(map(chr, codes)), stop)
    pieces = [stream.feed([ord(c)]) for c in text]
    pieces.append(stream.finish())
    return "".join(pieces), stream.is_stopped, pieces


@pytest.mark.parametrize(
    ("text", "stop", "want"),
    [
        ("one\n\ntwo", ("\n\n",), "one"),
        ("one two three", ("three", "two"), "one "),
        ("abcabd", ("abd",), "abc"),
        ("aaab", ("aab",), "a"),
        ("STOP", ("STOP",), ""),
        ("nothing here", ("###",), "nothing here"),
        ("ends like ##", ("###",), "ends like ##"),
        ("unused", ("",), "unused"),
    ],
)
def test_text_ends_before_the_first_stop_string(text: str, stop: tuple[str, ...], want: str) -> None:
    got, stopped, _ = spelled(text, stop)
    assert got == want
    assert stopped == (want != text)


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab", max_size=20), stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=2))
def test_no_stop_string_is_ever_given_out(text: str, stop: list[str]) -> None:
    got, stopped, pieces = spelled(text, tuple(stop))
    assert not any(s in got for s in stop)
    assert text.startswith(got)
    assert stopped == any(s in text for s in stop)
    if not stop:
        assert pieces[:-1] == list(text)  # nothing is held back without need


def test_a_stopped_stream_stays_stopped() -> None:
    stream = Detokenizer(lambda codes: "".join(map(chr, codes)), ("x",))
    assert stream.feed([ord("a"), ord("x"), ord("b")]) == "a"
    assert (stream.feed([ord("c")]), stream.finish(), stream.is_stopped) == ("", "", True)
