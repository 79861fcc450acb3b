"""Token ids to text as they come. Knows characters and stop strings; never models.

One character may take several tokens, and a decoder may need to see the token before to know a space: text is given out
once it is certain. The pieces together are the whole text.

    prompt "look" | tokens "▁world" …      decoded after the prompt's last token: " world"; alone a space would be lost
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

BROKEN = "�"
"""What a decoder gives for bytes that are not a character yet."""
UNCERTAIN = 16
"""So many tokens that end in no character are none: the text is settled but for its end, or each token would cost more."""
STAND_IN = 0xD800
"""Stands for a control token while stop strings are looked for: half of a surrogate pair, which no text has."""


class Detokenizer:
    """Feed it token ids, get text. Ends before the first stop string, even one that spans pieces.

    >>> stream = Detokenizer(lambda ids: "".join("abc"[i] for i in ids), stop=("ca",))
    >>> stream.feed([0, 1, 2]), stream.feed([0]), stream.is_stopped
    ('ab', '', True)
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stop: tuple[str, ...] = (),
        *,
        context: Sequence[int] = (),
        hidden: Mapping[int, str] | None = None,
        least: int = 0,
        shows: Collection[str] | None = (),
    ) -> None:
        """`context` are the tokens before the first, as far as `decode` must see them. `hidden` are control tokens: they
        have no text in the answer, but a stop string that names one ends it there. No stop string ends the first `least`
        tokens, nor begins in their text. Control tokens that `shows` names are text too; None: all are.
        """
        self.is_stopped = False
        """Whether a stop string was seen: nothing more comes."""
        self.taken = 0
        """Of the tokens last fed, how many belong to the answer: all, or those before the control token that ended it."""
        self.fresh = ""
        """What the tokens last fed made certain, held back or not."""
        self._decode = decode
        self._least = least
        self._hidden = hidden or {}
        self._shown = frozenset(i for i, text in self._hidden.items() if shows is None or text in shows)
        self._stop = tuple(s for s in stop if s)
        self._named = _named(self._hidden, self._stop)
        """Stand-ins of the control tokens that a stop string names."""
        written = (_with_stand_ins(s, self._hidden, self._named) for s in self._stop)
        self._stop_written = tuple(w for w, s in zip(written, self._stop, strict=True) if w != s)
        self._ids: list[int] = list(context)
        """Those since the last place where the text was certain, and the ones before it that it depends on."""
        self._certain = len(self._ids)
        """How many of `_ids` are given out already."""
        self._held = ""
        """Text that is certain, but could be the beginning of a stop string; with stand-ins."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that is now certain; "" once stopped."""
        self.taken = 0
        self.fresh = ""
        if self.is_stopped:
            return ""
        out = ""
        for token in token_ids:
            self._least -= 1
            out += self._feed_hidden(token) if token in self._hidden else self._feed(token)
            if self.is_stopped:
                self.taken += token not in self._hidden
                break
            self.taken += 1
        return out

    def finish(self) -> str:
        """What was held back, broken characters included; "" once stopped."""
        self.fresh = ""
        if self.is_stopped:
            return ""
        out = self._pass(self._settle())
        held, self._held = self._held, ""
        return out if self.is_stopped else out + _plain(held)

    @property
    def pending(self) -> Sequence[int]:
        """Tokens whose text is not certain yet."""
        return self._ids[self._certain :]

    def _feed(self, token: int) -> str:
        self._ids.append(token)
        before, after = self._decode(self._ids[: self._certain]), self._decode(self._ids)
        if after.endswith(BROKEN):
            return self._pass(self._settle_but_the_end()) if len(self._ids) - self._certain > UNCERTAIN else ""
        new = self._new(before, after)
        if not new:
            return ""
        self._ids = self._ids[self._certain :]
        self._certain = len(self._ids)
        return self._pass(new)

    def _feed_hidden(self, token: int) -> str:
        stand_in = self._hidden[token] if token in self._shown else self._named.get(token)
        if stand_in is None:
            return ""
        out = self._pass(self._settle())
        return out if self.is_stopped else out + self._pass(stand_in)

    def _settle(self) -> str:
        """All that is not given out yet, certain or not."""
        before, after = self._decode(self._ids[: self._certain]), self._decode(self._ids)
        new = self._new(before, after) if len(self._ids) > self._certain else ""
        self._certain = len(self._ids)
        return new

    def _settle_but_the_end(self) -> str:
        """Of many tokens that end in no character, what can't become one: a character has four bytes at most."""
        whole = self._decode(self._ids)
        for keep in range(3, 8):
            settled, end = self._ids[:-keep], self._ids[-keep:]
            if self._decode(settled) + self._decode(end) == whole:
                new = self._new(self._decode(self._ids[: self._certain]), self._decode(settled))
                self._ids, self._certain = settled[-1:] + end, 1
                return new
        return self._settle()

    def _new(self, before: str, after: str) -> str:
        """What `after` has beyond `before`. Bytes that became a character, or broke one, leave no common beginning."""
        if after.startswith(before):
            return after[len(before) :]
        begun = before.rstrip(BROKEN)
        if begun != before and after.startswith(begun):
            return after[len(begun) :]
        return self._decode(self._ids[self._certain :])

    def _pass(self, text: str) -> str:
        """Let through what can't become a stop string; cut at the first that is one."""
        self.fresh += _plain(text)
        if not self._stop:
            return text
        if self._least >= 0:
            return _plain(text)
        self._held += text
        plain = _plain(self._held)
        ends = [at for s in self._stop_written if (at := self._held.find(s)) >= 0]
        ends += [_place(self._held, at) for s in self._stop if (at := plain.find(s)) >= 0]
        if ends:
            self.is_stopped = True
            out, self._held = self._held[: min(ends)], ""
            return _plain(out)
        begun = [len(self._held) - _overlap(self._held, s) for s in self._stop_written]
        begun += [_place(self._held, len(plain) - k) for s in self._stop if (k := _overlap(plain, s))]
        keep = min(begun, default=len(self._held))
        out, self._held = self._held[:keep], self._held[keep:]
        return _plain(out)


def _named(hidden: Mapping[int, str], stop: tuple[str, ...]) -> dict[int, str]:
    """Ids of the control tokens that a stop string names -> their stand-ins."""
    if not stop:
        return {}
    named = [token for token, text in hidden.items() if text and any(text in s for s in stop)]
    return {token: chr(STAND_IN + i) for i, token in enumerate(named)}


def _with_stand_ins(stop: str, hidden: Mapping[int, str], named: Mapping[int, str]) -> str:
    for token in sorted(named, key=lambda token: -len(hidden[token])):  # the longest first, as tokenizers read them
        stop = stop.replace(hidden[token], named[token])
    return stop


def _plain(text: str) -> str:
    """Without stand-ins."""
    if text.isascii():
        return text
    return "".join(c for c in text if not STAND_IN <= ord(c) < 0xE000)


def _place(text: str, at: int) -> int:
    """Where the character that is number `at` without stand-ins lies in `text`."""
    for place, c in enumerate(text):
        if STAND_IN <= ord(c) < 0xE000:
            continue
        if at == 0:
            return place
        at -= 1
    return len(text)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
