"""A model's grammar compiler without the model, in a limited process: whether the engine can keep to a form, and what it takes.

Knows OpenVINO GenAI, which compiles a grammar inside the step that computes everybody's tokens, where an error ends them all.
Here the same library compiles it for the same vocabulary, and writes two short answers, every token as likely as any other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from maasdam.core import Admitted, Constraint
from maasdam.engines.generation import read_defaults
from maasdam.engines.tensors import first_line
from maasdam.errors import InvalidField
from maasdam.grammars import check, form_of, is_begun, parts_of, readied

TOKENS = 24
"""Of an answer that is tried."""
LONG_TOKENS = 256
"""Of one answer in a caller's own grammar or expression, where what a token takes may grow with those before it."""
ANSWERS = 6
ENOUGH_SECONDS = 0.5
"""Of CPU: after so much fewer answers are tried, two at least."""
MOST_TOKEN_SECONDS = 0.05
"""Of CPU, that the grammar may take for a token once it is compiled."""
MOST_COMPILE_SECONDS = 1.0
"""Of CPU: while the engine compiles it nobody's answer goes on."""


def ready(folder: str) -> None:
    """Have everything opened that compiling needs."""
    os.nice(5)  # answers that are being written come first
    _pipeline(folder)


def tried(folder: str, constraint: Constraint) -> Admitted:
    """The grammar for a constraint, which the engine can keep to. Raises InvalidField: why none is."""
    before = _resident_bytes()
    grammar = ""
    for part in parts_of(constraint):
        grammar = _tried(folder, part)
    return Admitted(grammar, max(_resident_bytes() - before, len(grammar)))


def _tried(folder: str, constraint: Constraint) -> str:
    try:
        grammar = form_of(constraint).ebnf()
    except RecursionError as error:
        raise InvalidField("it is nested too deeply, or refers to itself", None) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of what is no schema at all
        raise InvalidField(f"it can't be read: {first_line(error)}", None) from error
    try:
        readied(constraint)
    except ValueError as error:
        raise InvalidField(f"what checks the answers can't read it: {first_line(error)}", None) from error
    write, count, seconds, answers = _pipeline(folder), 0, 0.0, []
    try:
        began = time.process_time()
        write(grammar, 1, 0)  # compiles
        compiled = time.process_time() - began
        is_own = constraint.kind in ("grammar", "regex")
        for seed in range(ANSWERS):
            began = time.process_time()
            answers.append(write(grammar, LONG_TOKENS if is_own and not seed else TOKENS, seed))
            seconds += time.process_time() - began
            count += answers[-1].tokens
            if seconds > ENOUGH_SECONDS and seed:
                break
    except RuntimeError as error:
        raise InvalidField(f"the engine can't compile it: {first_line(error).rpartition(': ')[2]}", None) from error
    if compiled > MOST_COMPILE_SECONDS:
        raise InvalidField(f"it takes {compiled:.1f} s of computing to compile; make it simpler", None)
    if seconds > count * MOST_TOKEN_SECONDS:
        raise InvalidField(f"it takes {seconds / count:.2f} s of computing for each token; make it simpler", None)
    if any(not _is_right(constraint, answer) for answer in answers):
        raise InvalidField("the engine does not keep to it; write it without alternatives that begin alike", None)
    return grammar


class Sampled(NamedTuple):
    """An answer."""

    text: str | None
    """None where it is cut within a character."""
    tokens: int
    is_whole: bool


def _is_right(constraint: Constraint, answer: Sampled) -> bool:
    """Whether a sample is of the form, or the beginning of one; True where nobody can tell."""
    if answer.text is None:
        return True
    if answer.is_whole:
        return check(constraint, answer.text) is None
    try:
        return is_begun(constraint, answer.text.rstrip("\ufffd"))  # what a character that is cut may be decoded to
    except ValueError:  # llguidance can't read what the form of a deep schema is
        return True


def _text(tokenizer: Any, ids: list[int]) -> str | None:
    try:
        return str(tokenizer.decode(ids, skip_special_tokens=False))  # a form says those too, by their words
    except UnicodeDecodeError:
        return None


@lru_cache(maxsize=1)
def _pipeline(folder: str) -> Callable[[str, int, int], Sampled]:
    """Writes up to so many tokens in a grammar. The network gives every token the same chance."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    defaults = read_defaults(Path(folder))
    tokenizer = genai.Tokenizer(folder)
    vocabulary = defaults.vocabulary or len(tokenizer.get_vocab())
    xml, weights = _network(vocabulary)
    properties = {"INFERENCE_NUM_THREADS": 1, "ATTENTION_BACKEND": "SDPA"}
    pipeline = genai.LLMPipeline(xml, ov.Tensor(weights), tokenizer, "CPU", genai.GenerationConfig(), **properties)
    prompt = ov.Tensor(np.zeros((1, 1), np.int64))

    def write(grammar: str, most: int, seed: int) -> Sampled:
        config = genai.GenerationConfig()
        config.apply_chat_template, config.do_sample = False, True
        config.max_new_tokens, config.rng_seed = most, seed
        config.stop_token_ids = set(defaults.eos)
        config.structured_output_config = genai.StructuredOutputConfig(grammar=grammar)
        ids = list(pipeline.generate(prompt, config).tokens[0])
        is_whole = bool(ids) and ids[-1] in defaults.eos
        return Sampled(_text(tokenizer, ids[: -1 if is_whole else None]), len(ids), is_whole)

    return write


def _network(vocabulary: int) -> tuple[str, Any]:
    """A network of no weights with the inputs and the output of a language model, as text and bytes."""
    import tempfile

    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    inputs = {
        "input_ids": (2, np.int64),
        "attention_mask": (2, np.int64),
        "position_ids": (2, np.int64),
        "beam_idx": (1, np.int32),
    }
    parameters = {name: ops.parameter([-1] * rank, kind, name=name) for name, (rank, kind) in inputs.items()}
    for name, parameter in parameters.items():
        parameter.output(0).set_names({name})
    shape = ops.concat([ops.shape_of(parameters["input_ids"], output_type="i64"), ops.constant(np.array([vocabulary]))], 0)
    logits = ops.broadcast(ops.constant(np.float32(0)), shape)
    for name, (rank, _) in inputs.items():  # what nobody reads the pipeline would not find
        total = ops.reduce_sum(ops.convert(parameters[name], "f32"), ops.constant(np.arange(rank)), False)
        logits = ops.add(logits, ops.multiply(total, ops.constant(np.float32(0))))
    logits.output(0).set_names({"logits"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        ov.save_model(ov.Model([logits], list(parameters.values()), "network"), path, compress_to_fp16=False)
        return path.read_text(), np.fromfile(path.with_suffix(".bin"), np.uint8)


def _resident_bytes() -> int:
    from maasdam.children import resident_bytes

    return resident_bytes(os.getpid())
