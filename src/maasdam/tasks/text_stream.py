"""Token ids to text as they come. Knows characters and stop strings; never models.

One character may take several tokens, and a decoder may need to see the token before to know a space: text is given out
once it is certain. The pieces together are the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "�"
"""What a decoder gives for bytes that are not a character yet."""


class TextStream:
    """Feed it token ids, get text. Ends before the first stop string, even one that spans pieces.

    >>> stream = TextStream(lambda ids: "".join("abc"[i] for i in ids), stop=("ca",))
    >>> stream.feed([0, 1, 2]), stream.feed([0]), stream.is_stopped
    ('ab', '', True)
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...] = ()) -> None:
        self.is_stopped = False
        """Whether a stop string was seen: nothing more comes."""
        self._decode = decode
        self._stop = tuple(s for s in stop if s)
        self._ids: list[int] = []
        """Those since the last place where the text was certain, and the ones before it that it depends on."""
        self._certain = 0
        """How many of `_ids` are given out already."""
        self._held = ""
        """Text that is certain, but could be the beginning of a stop string."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that is now certain; "" once stopped."""
        if self.is_stopped:
            return ""
        out = ""
        for token in token_ids:
            self._ids.append(token)
            before, after = self._decode(self._ids[: self._certain]), self._decode(self._ids)
            if len(after) > len(before) and not after.endswith(BROKEN):
                out += self._pass(after[len(before) :])
                self._ids = self._ids[self._certain :]
                self._certain = len(self._ids)
                if self.is_stopped:
                    break
        return out

    def finish(self) -> str:
        """What was held back, broken characters included; "" once stopped."""
        if self.is_stopped:
            return ""
        before, after = self._decode(self._ids[: self._certain]), self._decode(self._ids)
        self._ids, self._certain = [], 0
        out = self._pass(after[len(before) :])
        held, self._held = self._held, ""
        return out if self.is_stopped else out + held

    def _pass(self, text: str) -> str:
        """Let through what can't become a stop string; cut at the first that is one."""
        self._held += text
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.is_stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
