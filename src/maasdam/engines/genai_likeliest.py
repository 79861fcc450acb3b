"""The likeliest tokens in each place of a text, by a second compiled model of the same weights.

Knows the model's file and one text at a time. Refuses to know pipelines, jobs and turns.

OpenVINO GenAI tells of the chosen token only. So the text is read again, with a key-value cache of its own, in parts whose
borders depend on nothing but the prompt's length: where activations are rounded a part of another size would give other
figures, and how much of an answer is there when it is read is chance. The last part is filled up with tokens that nobody sees.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.children.usage import share_bytes
from maasdam.core import Scored, Tokens
from maasdam.engines.openvino_engine import dynamic_quantization
from maasdam.engines.openvino_library import openvino
from maasdam.errors import InvalidModel

if TYPE_CHECKING:
    from maasdam.core import type_array

PROMPT_PART = 64
"""Tokens of a prompt that are read at once: so long answers nearby wait, and in so much memory log-probabilities of a whole
vocabulary are made (64 places of 150,000 tokens: 38 MB)."""
ANSWER_PART = 8
"""Tokens of an answer: fewer cost as much as 8, and a stream comes in pieces of so many."""
AT_ONCE = 8
"""Texts that are being read, each with a cache of its own, as far as KEPT_BYTES go."""
KEPT_BYTES = 2**28
"""Of keys and values of all of them; one text is always read, however long."""

Tops = tuple[tuple[int, float], ...]


class Rereading:
    """One text, a prompt and an answer that grows; and what the pipeline said of it, until the likeliest beside are known."""

    def __init__(self, prompt: type_array, count: int, most: int, *, scores_prompt: bool, is_likeliest: bool = False) -> None:
        """`prompt` [1, T]; `count` of the likeliest are told; `most` tokens are to follow, each chosen for no more than being
        the likeliest where it `is_likeliest`.
        """
        self.request: Any = None
        """The second model's, once it is being read."""
        self.turn = 0
        """Of two that are read the lower goes first."""
        self.most = prompt.shape[1] + most
        self._ids: list[int] = prompt[0].tolist()
        self._prompt = len(self._ids)
        self._count = count
        self._scores_prompt = scores_prompt
        self._is_likeliest = is_likeliest
        self._read = 0
        """Tokens that were read."""
        self._prompt_scores: list[Scored] = [Scored(self._ids[0], None)] if scores_prompt else []
        self._tops: deque[Tops] = deque()
        """Of the answer's places in order, until they are taken."""
        self._scores: deque[Scored] = deque()
        """Of its tokens, which are not handed out yet."""
        self._left = int(most > 0)
        """Places that are sure to be asked for, and have no `_tops` yet; less than 0 where more are known than that."""
        self._reason: str | None = None if most else "length"
        self._has_end = False

    @property
    def part(self) -> int:
        """How many tokens are to be read next; 0: none before more is written, or ever."""
        if self._read < self._prompt:
            return min(PROMPT_PART, self._prompt - self._read)
        is_due = len(self._ids) - self._read >= ANSWER_PART or self._reason is not None
        return ANSWER_PART if self._count and self._left > 0 and is_due else 0

    def write(self, ids: Sequence[int], scores: Sequence[Scored], reason: str | None) -> None:
        """What the pipeline gave: of `scores` the last has no token in `ids` where an end token came. `reason`: that is all."""
        self._ids += ids
        self._scores += scores
        self._left += len(scores) - int(reason is not None)
        self._has_end = len(scores) > len(ids)
        self._reason = reason

    def next(self, context: int) -> tuple[list[int], int, list[int], list[int]]:
        """Of the next part the tokens, where it begins, the rows [R] to be told of and the tokens that follow them."""
        start, count = self._read, min(self.part, context - self._read)
        known = self._ids[start : start + count + 1]
        known += [0] * (count + 1 - len(known))
        first = start if self._scores_prompt else max(start, min(self._prompt - 1, start + count - 1))
        rows = list(range(first - start, count))
        return known[:count], start, rows, [known[row + 1] for row in rows]

    def tell(self, count: int, rows: Sequence[int], tops: Sequence[Tops], own: Sequence[float]) -> None:
        """What was found of the next part, of so many tokens."""
        for row, top, value in zip(rows, tops, own, strict=True):
            at = self._read + row + 1
            if at >= self._prompt:
                self._tops.append(top[: self._count])
                self._left -= 1
            elif self._scores_prompt:
                self._prompt_scores.append(Scored(self._ids[at], value, top[: self._count]))
        self._read = min(self._read + count, len(self._ids))

    def take(self) -> Tokens | None:
        """What is known as a whole since the last time."""
        if self._read < self._prompt:
            return None
        count = min(len(self._scores), len(self._tops)) if self._count else len(self._scores)
        scores = [self._scores.popleft() for _ in range(count)]
        if self._count:
            scores = [merged(score, self._tops.popleft(), self._is_likeliest) for score in scores]
        reason = None if self._scores else self._reason
        end = scores.pop() if reason is not None and self._has_end else None
        if not scores and reason is None:
            return None
        told, self._prompt_scores = tuple(self._prompt_scores), []
        ids = tuple(score.token_id for score in scores)
        return Tokens(ids, finish_reason=reason, scores=tuple(scores), prompt_scores=told, end=end)


class Likeliest:
    """The second model. All of it is for one thread, the engine's."""

    def __init__(self, folder: Path, count: int, bytes_per_token: int, context: int, settings: Mapping[str, Any]) -> None:
        """For up to `count` in each place. Settings: those of `genai_engine.open`; it computes in float32 whatever they say of
        precision, and rounds activations where they do.
        """
        ov = openvino()
        before = share_bytes(os.getpid())
        self.count = count
        self._context = context
        self._bytes_per_token = bytes_per_token
        self._readings: list[Rereading] = []
        self._turn = 0
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "INFERENCE_NUM_THREADS": settings["threads"],
            "ENABLE_CPU_PINNING": False,
            **dynamic_quantization(settings),
        }
        self._compiled: Any = ov.Core().compile_model(telling(folder, count), "CPU", properties)
        self._takes = {name for port in self._compiled.inputs for name in port.get_names()}
        warm = Rereading(_zeros(min(PROMPT_PART, context)), count, 0, scores_prompt=True)
        self.begin(warm)
        self.read(warm)
        self.leave(warm)
        self.memory_bytes = max(share_bytes(os.getpid()) - before, 0)
        """What it takes beside the pipeline, measured once it has read; the texts' caches come to that."""

    def begin(self, reading: Rereading) -> None:
        """It is to be read, once there is room."""
        reading.turn = self._turn
        self._readings.append(reading)

    def leave(self, reading: Rereading) -> None:
        """It is read, or nobody waits for it any more."""
        reading.request = None
        if reading in self._readings:
            self._readings.remove(reading)

    def due(self) -> Rereading | None:
        """Whose turn it is to be read."""
        inside = [one for one in self._readings if one.request is not None]
        waiting = next((one for one in self._readings if one.request is None and one.part), None)
        if waiting is not None:
            kept = sum(one.most for one in (*inside, waiting)) * self._bytes_per_token
            if not inside or (len(inside) < AT_ONCE and kept <= KEPT_BYTES):
                inside.append(waiting)
        return min((one for one in inside if one.part), key=lambda one: one.turn, default=None)

    def read(self, reading: Rereading) -> None:
        """The next part of a text that has one."""
        import numpy as np

        if reading.request is None:
            reading.request = self._compiled.create_infer_request()
        self._turn += 1
        reading.turn = self._turn
        ids, start, rows, targets = reading.next(self._context)
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, start + len(ids)), np.int64),
            "position_ids": np.arange(start, start + len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
            "rows": np.array(rows, np.int64),
            "targets": np.array(targets, np.int64),
        }
        reading.request.infer({name: array for name, array in inputs.items() if name in self._takes})
        values, tokens, own = (reading.request.get_output_tensor(number).data[0].tolist() for number in range(3))
        tops = [tuple(zip(*pair, strict=True)) for pair in zip(tokens, values, strict=True)]
        reading.tell(len(ids), rows, tops, [value for (value,) in own])


def telling(folder: Path, count: int) -> Any:
    """The model of a genai folder that tells, in place of logits [1, T, V], of the rows it is asked for: the `count` largest
    log-probabilities, their tokens [1, R, count], and the log-probabilities of given tokens [1, R, 1].

    The last product is computed for those rows alone, as the pipeline does. Raises InvalidModel.
    """
    import numpy as np

    ov = openvino()
    from openvino import opset13 as ops

    model = ov.Core().read_model(str(folder / "openvino_model.xml"))
    told = next((r for r in model.get_results() if "logits" in r.input(0).get_source_output().get_names()), None)
    if told is None:
        raise InvalidModel("the model has no output 'logits'; its likeliest tokens can't be told")
    rows, targets = ops.parameter([-1], np.int64), ops.parameter([-1], np.int64)
    for given, name in ((rows, "rows"), (targets, "targets")):
        given.output(0).get_tensor().set_names({name})
    cut = _before_last_product(told)
    cut.replace_source_output(ops.gather(cut.get_source_output(), rows, ops.constant(np.int64(1))).output(0))
    logarithms = ops.log_softmax(ops.convert(told.input(0).get_source_output(), "f32"), -1)
    size = told.input(0).get_source_output().get_partial_shape()[2]
    most = min(count, size.get_length()) if size.is_static else count
    top = ops.topk(logarithms, ops.constant(np.int64(most)), -1, "max", "value", index_element_type="i64")
    own = ops.gather_elements(logarithms, ops.unsqueeze(targets, ops.constant(np.array([0, 2], np.int64))), 2)
    model.remove_result(told)
    model.add_parameters([rows, targets])
    model.add_results([ops.result(output) for output in (top.output(0), top.output(1), own.output(0))])
    model.validate_nodes_and_infer_types()
    return model


def _before_last_product(told: Any) -> Any:
    """Where rows are chosen: what the last product reads, or the output itself where other things than scaling follow it."""
    at = told.input(0)
    node = at.get_source_output().get_node()
    while node.get_type_name() in ("Convert", "Add", "Multiply", "Divide", "Tanh"):
        node = node.input(0).get_source_output().get_node()
    return node.input(0) if node.get_type_name() == "MatMul" else at


def merged(score: Scored, tops: Tops, is_likeliest: bool) -> Scored:
    """The engine's own word for a token, with the second model's for what else was likely.

    Where activations are rounded the two differ by that, so the token's own value is the engine's in the list, too; of a token
    that was chosen as the likeliest (`is_likeliest`) no other is likelier.
    """
    own = -float("inf") if score.logprob is None else score.logprob
    values = dict(tops)
    if is_likeliest or score.token_id in values or own > min(values.values()):
        values = {token: min(value, own) if is_likeliest else value for token, value in values.items()} | {score.token_id: own}
    order = sorted(values.items(), key=lambda pair: (-pair[1], pair[0] != score.token_id))
    return score._replace(likeliest=tuple(order[: len(tops)]))


def _zeros(length: int) -> type_array:
    import numpy as np

    return np.zeros((1, length), np.int64)
