"""Models that generate, as they are: transformers on torch, several answers at once by turns.

Knows causal language models with a key-value cache, Whisper and Moonshine. Refuses to know text, chat and HTTP. It is the
reference that optimised builds are compared with, and the fallback for what they don't know; it is not fast.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import SPEECH_RECOGNITION, Artifact, Cost, Meter, Scored, SequenceEngine, SequenceRequest, Tokens, total_cost
from maasdam.engines.generation import Choice, begin, pick, read_defaults, scored
from maasdam.engines.mailbox import Hear, Job, Turns, tokens_of
from maasdam.engines.tensors import first_line, loading_with
from maasdam.engines.transformers_library import open_module
from maasdam.errors import EngineFailure, MaasdamError, Unsupported
from maasdam.telemetry.meter import CpuMeter

if TYPE_CHECKING:
    from maasdam.core import type_array

NAME = "transformers"
AT_ONCE = 8
"""Answers in progress, each with a cache of its own; more wait their turn."""


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> SequenceEngine:
    """Open a Hugging Face folder of a causal language model, of Whisper or of Moonshine. "threads" holds for the process."""
    with loading_with(NAME, artifact, "pytorch"):
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise Unsupported("this torch sees no CUDA device; use --device cpu")
        torch.set_num_threads(settings["threads"])
        if artifact.task == SPEECH_RECOGNITION:
            from maasdam.engines.whisper_engine import open_transformers_speech

            return open_transformers_speech(artifact.path, device)
        return TransformersEngine(open_module(artifact.path).to(device), artifact.path, device)


class _Running:
    """An answer in progress."""

    def __init__(self, job: Job, prompt: type_array, choice: Choice) -> None:
        import numpy as np

        self.job, self.prompt, self.choice = job, prompt, choice
        self.random = np.random.default_rng(choice.seed)
        self.cache: Any = None
        self.generated: list[int] = []
        self.cost: Cost | None = None
        self.prompt_scores: tuple[Scored, ...] = ()
        """Until they are handed out."""
        self.score: Scored | None = None
        """Of the newest token."""


class TransformersEngine:
    """One module and one thread, which gives each answer a token by turns."""

    def __init__(self, module: Any, folder: Path, device: str) -> None:
        self._defaults = read_defaults(folder)
        self.context_length = self._defaults.context_length
        self._module: Any = module
        self._device = device
        self.meter: Meter = CpuMeter()
        self._turns = Turns(NAME, self._join, self._step, most=AT_ONCE)

    def start(self, request: SequenceRequest, hear: Hear) -> Callable[[], object]:
        """Token ids as they come, without the end token. `hear` is told what `GenaiEngine.start` says."""
        return self._turns.start(request, hear, self.meter)

    def submit(self, request: SequenceRequest) -> AsyncGenerator[Tokens]:
        """The same, to be awaited; closing it cancels."""
        return tokens_of(self, request)

    def close(self) -> None:
        """End the thread and free the module; requests in flight end with EngineFailure."""
        self._turns.close()
        self._module = None

    def _join(self, job: Job) -> _Running | None:
        try:
            begun = begin(job, self._defaults)
            return None if begun is None else _Running(job, *begun)
        except MaasdamError as error:
            job.fail(error)
            return None

    def _step(self, running: list[_Running]) -> list[_Running]:
        return [r for r in running if not self._advance(r)]

    def _advance(self, r: _Running) -> bool:
        """One token of one answer; True when that ended it."""
        try:
            span = self.meter.start()
            try:
                token = self._next_token(r)
            finally:
                r.cost = total_cost((r.cost, self.meter.stop(span)))
        except Exception as error:
            r.job.fail(EngineFailure(f"engine {NAME} broke on a request: {first_line(error)}"))
            return True
        is_end = token in r.choice.eos
        ids = () if token is None or is_end else (token,)
        r.generated += ids
        is_full = len(r.generated) >= r.choice.max_tokens
        reason = "stop" if is_end else "length" if is_full else None
        scores = (r.score,) if ids and r.score is not None else ()
        end = r.score if is_end else None
        told, r.prompt_scores = r.prompt_scores, ()
        r.job.give(Tokens(ids, finish_reason=reason, cost=r.cost, scores=scores, prompt_scores=told, end=end))
        return reason is not None

    def _next_token(self, r: _Running) -> int | None:
        """None where only the prompt is to be read."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor(r.prompt if r.cache is None else [[r.generated[-1]]], device=self._device)
            out = self._module(input_ids=ids, past_key_values=r.cache, use_cache=True)
            logits = out.logits[0, -1].float().cpu().numpy()
            count = r.choice.logprobs
            if r.cache is None and r.choice.scores_prompt:
                prompt, rows = r.prompt[0].tolist(), out.logits[0].float().cpu().numpy()
                rest = (scored(row, token, count or 0) for row, token in zip(rows, prompt[1:], strict=False))
                r.prompt_scores = (Scored(prompt[0], None), *rest)
            r.cache = out.past_key_values
        if not r.choice.max_tokens:
            return None
        token = pick(logits, r.choice, r.prompt, r.generated, r.random)
        r.score = None if count is None else scored(logits, token, count)
        return token
