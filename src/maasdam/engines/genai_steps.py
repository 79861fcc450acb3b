"""Steps of OpenVINO GenAI's pipeline in which no answer's numbers depend on what is computed beside it.

Knows the pipeline's order, its rows and its blocks. Refuses to know jobs, samplings and prices.

    rows of a step: one of each answer in progress, then prompts in their order, the last one cut where there is no more room

Where activations are rounded to int8 as they come, three things of OpenVINO GenAI 2026.4.1 make an answer depend on company
(decision 0039): products with one row take another path than those with more; so does the attention of a prompt's part of one
token; and what is taken out of a full cache is computed again by the path of prompts. So a companion's row goes beside a lone
lone one, no prompt is cut next to its end, and what is taken out of the cache begins again with its first token.

The pipeline itself cuts prompts where it has as many rows as it may, which is said once, when it is made. Where it finds again
what it has computed (`genai_prefix`) it is given a prompt part by part, each a request that ends with it: so the parts may be
short while others are writing, who wait for no long step (decision 0056).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from maasdam.engines.genai_prefix import BLOCK, Begun, Prefixes, alike
from maasdam.engines.openvino_library import openvino
from maasdam.errors import EngineFailure

if TYPE_CHECKING:
    from maasdam.core import type_array

STEP_TOKENS = 128
"""Computed in one step, the next of every answer before those of prompts: what is left to prompts must not stall the answers.
Measured (112 M parameters, int8, two cores): a step for 32 answers takes 102 ms, 64 tokens of a prompt add 110, 512 add 900; a
prompt takes as much in parts of 128 as in parts of 512."""
WEIGHTS_ROWS = 7
"""A step takes as long as so many rows more than it has: reading the weights. Measured as above: 15 ms for 8 answers, 50 for
32, 1 for a row of a prompt."""
LONGER = 1.5
"""Parts of prompts add at most so much of what a step without takes, where they can be so short: that is below three times the
median between two tokens."""
LONG = 512
"""Tokens of a prompt after which a part has one row more at least: each part costs some time for all that came before it."""
PIPELINE_TOKENS = STEP_TOKENS + 2 * BLOCK
"""In one step, of a pipeline that is given prompts in parts: never more than there are."""
MOST_ANSWERS = STEP_TOKENS - 8
"""That are written at once: something of a step is left to prompts."""
OLD = 32
"""Tokens after which another companion takes over: the cache holds few blocks of it."""


def blocks_set_aside(context: int) -> int:
    """Of the cache, for the companions of a lone request: two, which grow by a token for each part of its prompt."""
    return 4 + 2 * -(-context // (BLOCK * (STEP_TOKENS - 2)))


class Given(NamedTuple):
    """What a step gave of an answer, in the words of the pipeline's own handle."""

    generated_ids: list[int]
    generated_log_probs: list[float]


class Answer:
    """A request to the pipeline, with what its handle has. It may be taken out of the pipeline and begun again, unseen."""

    def __init__(self, prompt: type_array, configuration: Any, owner: str | None = None, ahead: int = 0) -> None:
        """`ahead`: tokens that a step may guess beyond the next."""
        self.prompt, self.configuration, self.owner, self._ahead = prompt, configuration, owner, ahead
        self.begun: Begun | None = None
        """How its prompt was sent, where prompts are shared; None once the whole of it is computed."""
        self.found = 0
        """Tokens of its prompt that were computed before it."""
        self.rows = self.computed = 0
        """Of the last step that were its own, and those of them that were computed for the first time: they are its cost."""
        self.is_cancelled = False
        self.handle: Any = None
        self.left = self.length = prompt.shape[1]
        """Tokens of its prompt to be computed, and tokens that the cache holds once the next step is done."""
        self.grown = self.length
        """The longest it has been: so long it will be again, once it was taken out."""
        self.is_part = False
        """Whether `handle` is that of a part of its prompt."""
        self.refused: Exception | None = None
        self._given = self._again = 0
        self._pieces: deque[Given] = deque()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.is_cancelled = True

    def can_read(self) -> bool:
        """Whether something of it has come."""
        return bool(self._pieces)

    def read(self) -> dict[int, Given]:
        """What has come, step by step."""
        return {0: self._pieces.popleft()}

    def get_status(self) -> Any:
        """The pipeline's word for how it stands."""
        from openvino_genai import GenerationStatus

        if self.refused is not None:
            return GenerationStatus.IGNORED
        return GenerationStatus.RUNNING if self.handle is None or self.is_part else self.handle.get_status()

    @property
    def done(self) -> int:
        """Tokens of its prompt that are computed."""
        return int(self.prompt.shape[1] - self.left)

    @property
    def blocks(self) -> int:
        """Of the cache, in the step after the next."""
        return (int(self.length) + 2 * self._ahead) // BLOCK + 1

    def compute(self, rows: int) -> None:
        """So many of its rows are in the next step."""
        self.rows, self.computed = rows, 0 if self._again else rows
        self.left -= min(self.left, rows)

    def advance(self) -> None:
        """Take what the step gave; what was given before it was begun again is not given twice, what follows a part of a prompt
        not at all."""
        if self.is_part:
            while self.handle.can_read():
                self.handle.read()
            return
        given = int(not self.left)
        while self.handle.can_read():
            for output in self.handle.read().values():
                ids, scores = list(output.generated_ids), list(output.generated_log_probs)
                if self._ahead:
                    given, self.left = len(ids), 0
                known = min(self._again, len(ids))
                self._again -= known
                self._given += len(ids) - known
                if ids[known:]:
                    self._pieces.append(Given(ids[known:], scores[known:]))
        self.length += given

    def start_from(self, begun: Begun) -> None:
        """The first of its prompt's tokens are computed."""
        self.begun = begun
        self.left -= begun.found
        if not self._given:
            self.found = begun.found

    def take_out(self) -> None:
        """Out of the pipeline, to be begun again."""
        self.handle.cancel()
        self.handle, self.begun, self.rows, self.computed, self.is_part = None, None, 0, 0, False
        self._again, self.grown = self._given, max(self.length, self.grown)
        self.left = self.length = self.prompt.shape[1]


class Steps:
    """A pipeline as it is used here: `add_request`, `step` and `has_non_finished_requests` are its own words."""

    def __init__(
        self, pipeline: Any, blocks: int, *, is_accompanied: bool, prefixes: Prefixes | None = None, ahead: int = 0
    ) -> None:
        """`blocks` of the cache; `is_accompanied` where a lone row would be computed in another way than one among others;
        `prefixes` where the pipeline finds what it has computed before; `ahead`: tokens it may guess beyond the next. Not both.
        """
        self._pipeline = pipeline
        self._ahead = ahead
        self._most = MOST_ANSWERS // (1 + ahead)
        self._prefixes = prefixes
        self._blocks = blocks
        self._is_accompanied = is_accompanied
        self._number = 0
        self._waiting: deque[Answer] = deque()
        self._inside: list[Answer] = []
        self._companions: list[Answer] = []
        self._leaving = 0
        """Blocks of those that left since the last step: they are free after the next."""
        self.rows = 0
        """Of the last step, the companions' among them, which are nobody's."""

    @property
    def is_salted(self) -> bool:
        """Whether ids carry salts: prompts are computed in parts, and those of one owner once where they begin alike."""
        return self._prefixes is not None

    def add_request(self, prompt: type_array, configuration: Any, owner: str | None = None) -> Answer:
        """An answer to `prompt`, int64 [1, T]: its tokens come with the steps. Why one is `refused` is said there, too.

        `owner`: whose prompt it may share, where prompts are shared."""
        answer = Answer(prompt, configuration, owner, self._ahead)
        self._waiting.append(answer)
        return answer

    def has_non_finished_requests(self) -> bool:
        """Whether a step would be of use to anybody."""
        self._let_go()
        return bool(self._inside or self._waiting)

    def alone(self, prompt: type_array) -> tuple[Any, int, type_array]:
        """The pipeline itself, a request's number and its prompt as it is to be sent, for whoever may have nothing beside;
        nothing is inside or waits now."""
        self._let_go()
        self._number += 1
        return self._pipeline, self._number, prompt if self._prefixes is None else self._prefixes.scored(prompt)

    def step(self) -> None:
        """Compute the next token of each answer, and of prompts what a step has room for."""
        self._let_go()
        self._take_out()
        self._plan()
        self._pipeline.step()
        self._leaving = 0
        for answer in (*self._companions, *self._inside):
            held = answer.blocks
            answer.advance()
            if self._prefixes is not None:
                self._prefixes.touch(answer.blocks - held)
                if answer.begun is not None and not answer.left:
                    self._prefixes.keep(answer.prompt, answer.owner, answer.begun)
                    answer.begun = None
        self._inside = [a for a in self._inside if not _is_over(a)]
        self._let_go()

    def _let_go(self) -> None:
        """Let those go that are cancelled, and companions that have nobody to accompany."""
        for answer in [a for a in self._inside if a.is_cancelled]:
            self._leave(answer)
        self._inside = [a for a in self._inside if not a.is_cancelled]
        self._waiting = deque(a for a in self._waiting if not a.is_cancelled)
        if not self._inside and not self._waiting:
            self._accompany(0)
            if self._pipeline.has_non_finished_requests():
                self._pipeline.step()  # computes nothing: it gives their blocks back
            self._leaving = 0

    def _take_out(self) -> None:
        """While the cache is too small for what is inside, take out who came last."""
        while self._inside and sum(a.blocks for a in (*self._inside, *self._companions)) > self._blocks:
            answer = self._inside.pop()
            self._leaving += answer.blocks
            answer.take_out()
            self._waiting.appendleft(answer)
            if not self._inside:
                self._accompany(0)

    def _plan(self) -> None:
        """Begin what the next step has room for, with the companions that it needs."""
        writing = [a for a in self._inside if not a.left]
        cut = next((a for a in self._inside if a.left), None)
        given = len(writing)
        for answer in writing:
            answer.compute(1 + self._ahead)
        if cut is None or cut.begun is not None:  # a part of a prompt gives a token too, of nobody's
            self._accompany(int(given + (cut is not None) < 2), anew=True)
        room = self._room(given)
        if cut is not None:
            if cut.begun is not None:
                self._send(cut, _part(cut.done, cut.left, max(room, min(cut.done // LONG, STEP_TOKENS))))
            else:
                if self._is_accompanied and cut.left == room + 1:
                    self._accompany(len(self._companions) - 1)
                    room += 1
                cut.compute(min(cut.left, room))
            room, given = room - cut.rows, given + (not cut.left)
        if cut is None or not cut.left:
            self._begin(room, given, is_first=cut is None)
        self.rows = len(self._companions) + sum(a.rows for a in self._inside)

    def _room(self, writing: int) -> int:
        """Rows for prompts in a step beside so many answers and the companions there are."""
        room = STEP_TOKENS - writing * (1 + self._ahead) - len(self._companions)
        is_plain = self._prefixes is None or not writing
        return room if is_plain else min(room, int(LONGER * (writing + WEIGHTS_ROWS)))

    def _begin(self, room: int, given: int, *, is_first: bool) -> None:
        """Begin what waits, while `room` rows are left; only the last of it may be cut. What `is_first` may take some more."""
        while self._waiting and room > 2 and given < self._most:
            answer = self._waiting[0]
            held = sum(a.blocks + 1 for a in (*self._inside, *self._companions)) + self._leaving
            if self._inside and held + answer.grown // BLOCK + 5 > self._blocks:
                return
            begun = None if self._prefixes is None else self._prefixes.find(answer.prompt, answer.owner, held)
            if begun is not None and self._is_awaited(answer, begun.found):
                return
            length = answer.left - (0 if begun is None else begun.found)
            if begun is not None:
                part = _part(begun.found, length, room)
                if part > room and not is_first:
                    return
            elif length > room and self._is_accompanied:
                while len(self._companions) < 2 or length == room + 1:
                    self._accompany(len(self._companions) + 1)
                    room -= 1
                if room < 2:
                    return
            self._waiting.popleft()
            try:
                if answer.grown // BLOCK + 5 > self._blocks:
                    raise EngineFailure("the key-value cache can't hold this request; open the model with more memory free")
                if begun is not None:
                    answer.start_from(begun)
                    self._send(answer, part)
                    assert self._prefixes is not None
                    self._prefixes.take(begun)
                else:
                    answer.handle = self._add(answer.prompt, answer.configuration)
                    answer.compute(min(length, room))
            except Exception as error:
                answer.refused = error
                continue
            self._inside.append(answer)
            room, given, is_first = room - answer.rows, given + (not answer.left), False
            if answer.left:
                return

    def _is_awaited(self, answer: Answer, found: int) -> bool:
        """Whether more of its prompt than was found is being computed now, and may be shared after this step."""
        return answer.owner is not None and any(
            other.begun is not None and other.owner == answer.owner and alike(answer.prompt, other.prompt) > found
            for other in self._inside
        )

    def _accompany(self, count: int, *, anew: bool = False) -> None:
        """Have so many companions; `anew`: young ones. A new one computes its only token in the next step: whoever comes
        before it must leave it a row."""
        import numpy as np

        if not self._is_accompanied:
            return
        if anew:
            for companion in [c for c in self._companions if c.length > OLD]:
                self._companions.remove(companion)
                self._leave(companion)
        while len(self._companions) > count:
            self._leave(self._companions.pop())
        while len(self._companions) < count:
            companion = Answer(np.zeros((1, 1), np.int64), _greedily(2**31))
            begun = None if self._prefixes is None else self._prefixes.find(companion.prompt, None, 0)
            companion.handle = self._add(companion.prompt if begun is None else begun.sent, companion.configuration)
            if self._prefixes is not None and begun is not None:
                self._prefixes.take(begun)
            companion.compute(1)
            self._companions.append(companion)

    def _leave(self, answer: Answer) -> None:
        answer.handle.cancel()
        self._leaving += answer.blocks

    def _send(self, answer: Answer, part: int) -> None:
        """The next part of a prompt. What came before it is found at once: nothing else was taken into use since."""
        assert answer.begun is not None
        answer.is_part = part < answer.left
        sent = answer.begun.sent[:, : answer.done + part]
        answer.handle = self._add(sent, _greedily(1) if answer.is_part else answer.configuration)
        answer.compute(part)

    def _add(self, ids: type_array, configuration: Any) -> Any:
        self._number += 1
        return self._pipeline.add_request(self._number, openvino().Tensor(ids.copy()), configuration)


def _part(done: int, left: int, room: int) -> int:
    """How many of the tokens left of a prompt to compute next, where there is room for so many: all, or about as many as in
    each part after it, and more where it takes that to be found again.

    Of what a part computed the pipeline (2026.4.1) finds again all but what it added to a block that was begun before: so each
    but the last ends in a block that it begins. Not all but one are computed.
    """
    if left <= room:
        return left
    fresh = (done - 1) // BLOCK  # no part may end in this block or before, but for the first
    cuts = (done + left - 3) // BLOCK - fresh
    parts = min(-(-left // room), cuts + 1)
    if parts < 2:
        return left
    return min(max(-(-left // parts), (fresh + 1) * BLOCK + 1 - done if done else 1), left - 2)


def _is_over(answer: Answer) -> bool:
    from openvino_genai import GenerationStatus

    return bool(answer.get_status() != GenerationStatus.RUNNING)


def _greedily(tokens: int) -> Any:
    """Whatever they are."""
    import openvino_genai as genai

    configuration = genai.GenerationConfig()
    configuration.apply_chat_template = False
    configuration.max_new_tokens = tokens
    configuration.ignore_eos = True
    return configuration
