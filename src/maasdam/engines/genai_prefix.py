"""What the pipeline's cache still holds of prompts that were computed, and who may use it again.

Knows owners, prompts and blocks. Refuses to know requests, keys and steps.

OpenVINO GenAI finds blocks of tokens that it has computed by itself, but anybody's, and says nothing of it. So each block that
nobody may share is salted (`genai_salts`), and a prompt is found again only where it is sent with the salts of the one before:
what is found is known before the step, belongs to the same owner, ends with a whole block of a prompt and leaves two tokens at
least. So whatever is left is computed as it would be in a part of a prompt anyway (decision 0039), and what was written after a
prompt, token by token, is never taken for one.

The pipeline writes over the blocks that were used least recently. Which those are is not told, but bounded: a block is there as
long as no more were touched since than the cache has beside those in use then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from maasdam.engines.genai_salts import Salts

if TYPE_CHECKING:
    from maasdam.core import type_array

BLOCK = 32
"""Tokens in one block of the CPU's key-value cache."""
MARGIN = 8
"""Blocks of the cache that are not counted on."""


@dataclass(eq=False, slots=True)
class Block:
    """One that was computed: its ids as they were sent, and as long as how many touches it is there."""

    sent: type_array
    until: int


@dataclass(slots=True)
class Begun:
    """A prompt as it is sent, and of how much of it the cache holds already."""

    sent: type_array
    """int64 [1, T]"""
    found: int
    """Tokens."""
    path: list[Block]
    """Their blocks."""
    until: int
    """So many touches later what is taken into use for it is still there."""


class Prefixes:
    """What the cache holds, by owner."""

    def __init__(self, salts: Salts, blocks: int) -> None:
        """`blocks` of the cache."""
        self._salts, self._blocks = salts, blocks
        self._touched = 0
        self._known: dict[tuple[Block | str, bytes], Block] = {}
        """By what comes before, an owner's name at first, and the tokens."""

    def touch(self, count: int) -> None:
        """So many blocks were taken into use."""
        self._touched += count

    def find(self, prompt: type_array, owner: str | None, in_use: int) -> Begun:
        """How to send a prompt, int64 [1, T], with so many blocks in use; nothing of it is shared where it has no owner."""
        sent, found, path = prompt[0].copy(), 0, []
        before: Block | str | None = owner
        while before is not None and found + BLOCK <= len(sent) - 2:
            block = self._known.get((before, sent[found : found + BLOCK].tobytes()))
            if block is None or block.until < self._touched:
                break
            sent[found : found + BLOCK] = block.sent
            path.append(block)
            found += BLOCK
            before = block
        self._salts.add(sent, found)
        return Begun(sent[None], found, path, self._touched + self._blocks - in_use - MARGIN)

    def take(self, begun: Begun) -> None:
        """It is sent now."""
        for block in begun.path:
            block.until = max(block.until, begun.until)
        self.touch(begun.sent.shape[1] // BLOCK + 1)

    def scored(self, prompt: type_array) -> type_array:
        """How a prompt, int64 [1, T], is sent now whose tokens are scored: it is shared with nobody."""
        sent = prompt.copy()
        self._salts.add_to_first(sent[0])
        self.touch(sent.shape[1] // BLOCK + 1)
        return sent

    def keep(self, prompt: type_array, owner: str | None, begun: Begun) -> None:
        """It is computed: its owner may use it again, but for a block that ends with it, which the pipeline may not find."""
        if owner is None:
            return
        before: Block | str = begun.path[-1] if begun.path else owner
        for at in range(begun.found, prompt.shape[1] - BLOCK, BLOCK):
            block = Block(begun.sent[0, at : at + BLOCK], begun.until)
            self._known[before, prompt[0, at : at + BLOCK].tobytes()] = block
            before = block
        if len(self._known) > 2 * self._blocks:
            self._known = {key: block for key, block in self._known.items() if block.until >= self._touched}


def alike(one: type_array, other: type_array) -> int:
    """Tokens of the whole blocks with which two prompts, int64 [1, T], both begin, as far as one may use the other's."""
    length = min(one.shape[1] - 2, other.shape[1]) // BLOCK * BLOCK
    if length <= 0:
        return 0
    different = (one[0, :length] != other[0, :length]).nonzero()[0]
    return int(different[0]) // BLOCK * BLOCK if len(different) else length
