"""Models that generate, as they are: transformers on torch, several answers at once by turns.

Knows causal language models with a key-value cache, and Whisper. Refuses to know text, chat and HTTP. It is the reference
that optimised builds are compared with, and the fallback for what they don't know; it is not fast.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import SPEECH_RECOGNITION, Artifact, Cost, Meter, SequenceEngine, SequenceRequest, Tokens, total_cost
from maasdam.engines.generation import Choice, begin, pick, read_defaults
from maasdam.engines.mailbox import Job, tokens_of
from maasdam.engines.tensors import first_line, loading_with
from maasdam.engines.transformers_library import architecture_of, open_module
from maasdam.errors import DeadlineExceeded, EngineFailure, MaasdamError, Unsupported
from maasdam.telemetry.meter import CpuMeter

if TYPE_CHECKING:
    from maasdam.core import type_array

NAME = "transformers"
AT_ONCE = 8
"""Answers in progress, each with a cache of its own; more wait their turn."""


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> SequenceEngine:
    """Open a Hugging Face folder of a causal language model or of Whisper. "threads" holds for the process."""
    with loading_with(NAME, artifact, "pytorch"):
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise Unsupported("this torch sees no CUDA device; use --device cpu")
        torch.set_num_threads(settings["threads"])
        if architecture_of(artifact.path).startswith("Whisper"):
            from maasdam.engines.whisper_engine import open_transformers_whisper

            return open_transformers_whisper(artifact.path, device)
        if artifact.task == SPEECH_RECOGNITION:
            raise Unsupported(f"{architecture_of(artifact.path)} is no Whisper, the one model of speech that this engine runs")
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


class TransformersEngine:
    """One module and one thread, which gives each answer a token by turns."""

    def __init__(self, module: Any, folder: Path, device: str) -> None:
        self._defaults = read_defaults(folder)
        self.context_length = self._defaults.context_length
        self._module: Any = module
        self._device = device
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self.meter: Meter = CpuMeter()
        self._thread = threading.Thread(target=self._live, name=NAME, daemon=True)
        self._thread.start()

    def submit(self, request: SequenceRequest) -> AsyncGenerator[Tokens]:
        """Token ids as they come, without the end token. Raises as `GenaiEngine.submit`; closing the iterator cancels."""
        return tokens_of(Job(request), self._start)

    def close(self) -> None:
        """End the thread and free the module; requests in flight end with EngineFailure."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _start(self, job: Job) -> None:
        self.meter.exclude_this_thread()
        with self._wake:
            if self._is_closing:
                raise EngineFailure(f"the {NAME} engine was closed; open the model again")
            self._waiting.append(job)
            self._wake.notify()

    def _live(self) -> None:
        running: list[_Running] = []
        try:
            while True:
                with self._wake:
                    while not (self._waiting or running or self._is_closing):
                        self._wake.wait()
                    if self._is_closing:
                        return
                    new = [self._waiting.popleft() for _ in range(min(len(self._waiting), AT_ONCE - len(running)))]
                running += [r for job in new if (r := self._join(job)) is not None]
                running = [r for r in running if not self._advance(r)]
        finally:
            with self._wake:
                self._is_closing = True
                left = [*self._waiting, *(r.job for r in running)]
            for job in left:
                job.fail(EngineFailure(f"the {NAME} engine was closed while it generated"))
            self._module = None

    def _join(self, job: Job) -> _Running | None:
        try:
            begun = begin(job, self._defaults)
            return None if begun is None else _Running(job, *begun)
        except MaasdamError as error:
            job.fail(error)
            return None

    def _advance(self, r: _Running) -> bool:
        """One token of one answer; True when that ended it."""
        if r.job.is_cancelled:
            return True
        if r.job.request.deadline is not None and time.monotonic() > r.job.request.deadline:
            r.job.fail(DeadlineExceeded(f"request {r.job.request.id} was not done in time; its tokens are dropped"))
            return True
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
        if not is_end:
            r.generated.append(token)
        is_full = len(r.generated) >= r.choice.max_tokens
        reason = "stop" if is_end else "length" if is_full else None
        r.job.give(Tokens(() if is_end else (token,), finish_reason=reason, cost=r.cost))
        return reason is not None

    def _next_token(self, r: _Running) -> int:
        import torch

        with torch.inference_mode():
            ids = torch.tensor(r.prompt if r.cache is None else [[r.generated[-1]]], device=self._device)
            out = self._module(input_ids=ids, past_key_values=r.cache, use_cache=True)
            r.cache = out.past_key_values
            logits = out.logits[0, -1].float().cpu().numpy()
        return pick(logits, r.choice, r.prompt, r.generated, r.random)
