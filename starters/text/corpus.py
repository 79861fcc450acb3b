"""The text the starter language model learns from: its split, its speeches and its words.

Knows one file, `tinyshakespeare.txt`; never models. The last tenth of its bytes is the test
part, which nothing is trained on or chosen by. Of the nine tenths before it, the last
twentieth chooses checkpoints and the rest trains.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

USER, ASSISTANT, END, BEGIN, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|begin|>", "<|pad|>"
SPECIAL_TOKENS = (PAD, BEGIN, END, USER, ASSISTANT)

# A system message is put like a user's: there is nothing in plays to learn another role from.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}"
    "{{ message['content'] | trim }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Parts:
    """The corpus, split by bytes."""

    train: str
    development: str
    test: str


@dataclass(frozen=True)
class Speech:
    """What one character says in one go."""

    speaker: str
    lines: str


def parts(file: Path) -> Parts:
    """Split the corpus; ASCII, so that bytes and characters agree."""
    text = file.read_bytes().decode("ascii")
    test_from = len(text) * 9 // 10
    development_from = test_from * 19 // 20
    return Parts(text[:development_from], text[development_from:test_from], text[test_from:])


def speeches(text: str) -> list[Speech]:
    """The speeches of a play, in order.

    >>> speeches("All:\\nSpeak, speak.\\n\\nFirst Citizen:\\nYou are all resolved.")[0]
    Speech(speaker='All', lines='Speak, speak.')
    """
    found = []
    for block in text.split("\n\n"):
        speaker, colon, lines = block.strip().partition(":\n")
        if colon and lines.strip() and "\n" not in speaker:
            found.append(Speech(speaker, lines.strip()))
    return found


def words(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation.

    >>> words("We know't, we know't.")
    ['we', "know't", 'we', "know't"]
    """
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


def real_share(texts: list[str], corpus: str) -> float:
    """The share of all words in `texts` that occur in `corpus`. A last word may be cut off: it is left out."""
    known = set(words(corpus))
    spoken = [word for text in texts for word in words(text)[:-1]]
    return sum(word in known for word in spoken) / len(spoken)


def longest_copy(texts: list[str], corpus: str) -> int:
    """The longest run of consecutive words in any of `texts` that also stands in `corpus`."""
    said = words(corpus)
    longest = 0
    runs: dict[int, set[tuple[str, ...]]] = {}
    for text in texts:
        spoken = words(text)
        while True:
            size = longest + 1
            if size not in runs:
                runs = {size: {tuple(said[i : i + size]) for i in range(len(said) - size + 1)}}
            if not any(tuple(spoken[i : i + size]) in runs[size] for i in range(len(spoken) - size + 1)):
                break
            longest = size
    return longest
