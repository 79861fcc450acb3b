"""The metrics, by worked examples."""

from __future__ import annotations

import pytest

from maasdam.core import AudioPayload, Classification, Example, ImagePayload, Label, Transcript
from maasdam.errors import InvalidInput, Unsupported
from maasdam.tasks import score
from maasdam.tasks.scoring import METRICS, edits, normalised

IMAGES, SPEECH = "image-classification", "automatic-speech-recognition"


def said(*ids: int) -> Classification:
    return Classification(tuple(Label(str(i), i, 0.1) for i in ids))


def examples(*truths: object) -> list[Example]:
    return [Example(str(i), ImagePayload(b""), t) for i, t in enumerate(truths)]


def test_top1_counts_the_first_and_top5_the_first_five() -> None:
    answers = [said(1, 2, 3, 4, 5), said(2, 1, 3, 4, 5), said(9, 8, 7, 6, 5), said(0, 1, 2, 3, 4)]
    found = score(IMAGES, answers, examples(1, 1, 1, 0))
    assert (found.metric, found.value, found.examples, METRICS[found.metric].is_lower_better) == ("top1", 0.5, 4, False)
    assert found.extra == {"top5": 0.75}
    assert score(IMAGES, [said(1, 2)], examples(2)).extra == {}


def test_word_errors_are_over_all_words() -> None:
    answers = [Transcript("three one four"), Transcript("nine nine"), Transcript("")]
    found = score(SPEECH, answers, examples("Three, one four!", "nine", "two two two"))
    # 0 of 3, one inserted of 1, three left out of 3
    assert (found.metric, found.value, METRICS[found.metric].is_lower_better) == ("wer", pytest.approx(4 / 7), True)
    assert found.extra["sentences_right"] == pytest.approx(1 / 3)


def test_normalisation_leaves_words_alone() -> None:
    assert normalised("  It\u2019s   TWO-thirds, isn't it?  'yes'  ") == "it's two thirds isn't it yes"
    assert normalised("Café 3") == "café 3"


@pytest.mark.parametrize(
    ("one", "other", "count"), [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3)]
)
def test_edits(one: str, other: str, count: int) -> None:
    assert edits(one, other) == count


def test_what_cant_be_scored_says_why() -> None:
    with pytest.raises(InvalidInput, match="one to one"):
        score(IMAGES, [], examples(1))
    with pytest.raises(InvalidInput, match="no examples"):
        score(IMAGES, [], [])
    with pytest.raises(InvalidInput, match="'0' has no label"):
        score(IMAGES, [said(1)], examples(None))
    with pytest.raises(InvalidInput, match="a word"):
        score(SPEECH, [Transcript("x")], [Example("a", AudioPayload(b""), "...")])
    with pytest.raises(Unsupported, match="text-generation"):
        score("text-generation", [Transcript("x")], examples("y"))
