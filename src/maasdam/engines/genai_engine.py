"""Text generation on OpenVINO GenAI: continuous batching on token ids, in one thread of its own.

Knows the pipeline, its cache and its requests. Refuses to know text, chat and HTTP.

    submit (any event loop) ─ inbox ─► thread: join what is new, drop what is cancelled or late, step, hand out tokens

At the default precision (f32 computation and f32 cache) greedy tokens equal transformers'.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from maasdam.core import (
    DEPENDENT,
    OF_ITS_ENGINE,
    Admitted,
    Artifact,
    Batching,
    Constraint,
    Cost,
    Meter,
    Sampling,
    Scored,
    SequenceRequest,
    Tokens,
    total_cost,
)
from maasdam.engines.gate import FormGate
from maasdam.engines.genai_company import company
from maasdam.engines.genai_likeliest import Likeliest, Rereading
from maasdam.engines.genai_prefix import BLOCK, Prefixes
from maasdam.engines.genai_salts import Salts, salted_model
from maasdam.engines.genai_scoring import prompt_scores, scored_in_turn
from maasdam.engines.genai_steps import PIPELINE_TOKENS, STEP_TOKENS, Steps, blocks_set_aside
from maasdam.engines.generation import Choice, begin, read_config, read_defaults
from maasdam.engines.mailbox import Hear, Job, Turns, tokens_of
from maasdam.engines.openvino_engine import PRECISIONS, dynamic_quantization
from maasdam.engines.openvino_library import kept_in
from maasdam.engines.tensors import chosen, first_line, loading_with
from maasdam.errors import EngineFailure, InvalidField, InvalidModel, MaasdamError, Overloaded
from maasdam.telemetry.meter import CpuMeter

if TYPE_CHECKING:
    from maasdam.core import type_array

NAME = "openvino-genai"
CONTEXTS = 16
"""Full contexts the cache is made for where memory allows: more requests than fit wait, or are computed again."""
CACHE_BYTES = 2**30
"""Cache of a large model, unless one context needs more."""
MEMORY_SHARE = 0.5
"""Of the memory free at opening, at most so much becomes cache."""
KV_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "u8": 1}
GRAMMAR_BYTES = 2**29
"""Of compiled grammars that the pipeline may hold before it is made anew: it forgets none by itself. A grammar takes a megabyte
for 16,000 tokens of vocabulary."""
ROUNDED = ('element_type="i8"', 'element_type="u8"', 'element_type="i4"', 'element_type="u4"')
"""Of constants in a model's file: products with such weights are those whose activations are rounded."""
ALIKE_TOKENS = 3
"""At most so many in a row are looked for, to guess that what followed them follows again."""
LEFT = "; activations are left exact"
"""What is told beside why."""
log = logging.getLogger("maasdam.engines")


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> GenaiEngine:
    """Open a genai folder.

    Settings: "threads"; "precision" of the computation: f32 (default), bf16, f16, auto; "kv_precision" of the cache: f32
    (default), bf16, f16, u8; "dynamic_quantization": whether activations are rounded to int8 where weights are int8 or int4,
    which takes half the time (default True, unless answers depend on what runs beside them then: that is tried, if
    "batching" is not what was found here before); "prefix_cache": whose prompts are computed once where they begin alike:
    "key" (those of one key), "shared" (anybody's), or nobody's (default); "prompt_lookup": how many tokens to guess beyond the
    next from what stands before (default 0), which leaves activations exact: a step then computes several rows of one answer;
    "logprobs": how many of the likeliest tokens it tells in each place, by a second compiled model (default 0: there is none).
    """
    count = settings.get("logprobs", 0)
    with loading_with(NAME, artifact):
        engine = _opened(artifact, settings)
        if count:
            try:
                given = {**settings, "dynamic_quantization": engine.rounds}
                kept = kv_bytes_per_token(artifact.path, KV_BYTES["f32"])
                engine.second = Likeliest(artifact.path, count, kept, engine.context_length, given)
            except BaseException:
                engine.close()
                raise
        return engine


def _opened(artifact: Artifact, settings: Mapping[str, Any]) -> GenaiEngine:
    known = settings.get("batching")
    is_rounded = settings.get("dynamic_quantization", True) and not settings.get("prompt_lookup")
    may_round = is_rounded and _has_rounded_weights(artifact.path)
    if may_round and not (known and known.verdict == DEPENDENT):
        engine = _open(artifact.path, {**settings, "dynamic_quantization": True}, is_accompanied=True)
        engine.batching = known or engine.try_company()
        if engine.batching.is_independent:
            engine.rounds = True
            return engine
        engine.close()
        known = engine.batching
    engine = _open(artifact.path, {**settings, "dynamic_quantization": False}, is_accompanied=False)
    if may_round and known:
        engine.batching = replace(known, how=known.how.removesuffix(LEFT) + LEFT)
        log.warning("%s: %s", artifact.path.name, engine.batching.how)
    return engine


def _open(folder: Path, settings: Mapping[str, Any], *, is_accompanied: bool) -> GenaiEngine:
    make, context_length, blocks = _pipeline(folder, settings)
    sharing, ahead = settings.get("prefix_cache"), settings.get("prompt_lookup", 0)
    salts = None if ahead else _salts(folder, is_asked_for=sharing is not None)

    def steps(is_salted: bool) -> Steps:
        used = salts if is_salted else None
        prefixes = None if used is None else Prefixes(used, blocks)
        return Steps(make(used), blocks, is_accompanied=is_accompanied, prefixes=prefixes, ahead=ahead)

    return GenaiEngine(steps, folder, context_length, sharing, ahead)


def _salts(folder: Path, *, is_asked_for: bool) -> Salts | None:
    """For this model's prompts. Where it can't be salted None, or InvalidModel where a prefix cache `is_asked_for`."""
    defaults, why = read_defaults(folder), None
    if defaults.vocabulary is None:
        why = "config.json has no vocab_size, which a prefix cache needs; deploy it without"
    elif defaults.repetition_penalty != 1:
        why = (
            f"generation_config.json sets repetition_penalty {defaults.repetition_penalty:g}, which engine {NAME} can't keep "
            "to beside a prefix cache; deploy it without"
        )
    if why is not None and is_asked_for:
        raise InvalidModel(why)
    return None if defaults.vocabulary is None or why is not None else Salts(defaults.vocabulary)


def _has_rounded_weights(folder: Path) -> bool:
    text = (folder / "openvino_model.xml").read_text()
    return any(kind in text for kind in ROUNDED)


def _pipeline(folder: Path, settings: Mapping[str, Any]) -> tuple[Callable[..., Any], int, int]:
    """What makes the pipeline, with salted prompts where it is given salts; the context length that its cache allows, and the
    blocks of that."""
    import openvino_genai as genai

    precision = chosen(settings, "precision", "f32", PRECISIONS)
    kv = kept_in(chosen(settings, "kv_precision", "f32", KV_BYTES))
    wanted = read_defaults(folder).context_length
    tokens = cache_tokens(kv_bytes_per_token(folder, KV_BYTES[kv]), wanted, _free_memory())
    properties = {"INFERENCE_NUM_THREADS": settings["threads"], "KV_CACHE_PRECISION": kv, "ENABLE_CPU_PINNING": False}
    properties |= dynamic_quantization(settings)
    if precision != "auto":
        properties["INFERENCE_PRECISION_HINT"] = precision

    if settings.get("prompt_lookup"):
        properties["prompt_lookup"] = True

    def make(salts: Salts | None = None) -> Any:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = tokens // BLOCK
        scheduler.max_num_batched_tokens = STEP_TOKENS if salts is None else PIPELINE_TOKENS
        scheduler.enable_prefix_caching = salts is not None
        with TemporaryDirectory() as place:
            if salts is not None:
                salted_model(folder, Path(place), salts)
            return genai.ContinuousBatchingPipeline(str(folder) if salts is None else place, scheduler, "CPU", properties)

    return make, min(wanted, tokens - blocks_set_aside(wanted) * BLOCK), tokens // BLOCK


def kv_bytes_per_token(folder: Path, bytes_per_number: int) -> int:
    """Bytes of key-value cache that one token takes, from config.json."""
    config = read_config(folder)
    layers, heads, wide = (_first(config, names) for names in _CACHE_KEYS)
    width = config.get("head_dim") or wide // heads
    return int(2 * layers * (config.get("num_key_value_heads") or heads) * width * bytes_per_number)


_CACHE_KEYS = (("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"), ("hidden_size", "n_embd"))
"""Layers, heads and width, as most configs call them and as GPT-2's does."""


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    values = [config[name] for name in names if name in config]
    if not values:
        raise InvalidModel(f"config.json has none of: {', '.join(names)}; the size of the key-value cache is not known")
    return int(values[0])


def cache_tokens(bytes_per_token: int, context: int, free_bytes: int) -> int:
    """Tokens the cache should hold: CONTEXTS full contexts, less for a large model, one at least if memory allows."""
    one = (-(-context // BLOCK) + blocks_set_aside(context)) * BLOCK
    affordable = int(free_bytes * MEMORY_SHARE) // bytes_per_token
    wanted = min(CONTEXTS * one, max(one, CACHE_BYTES // bytes_per_token), affordable)
    return max(wanted // BLOCK, 8 + blocks_set_aside(0)) * BLOCK


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


class _Running:
    """A job inside the pipeline, or before it."""

    def __init__(self, job: Job, prompt: type_array, choice: Choice) -> None:
        self.job, self.prompt, self.choice = job, prompt, choice
        self.handle: Any = None
        """None before it is inside."""
        self.cost: Cost | None = None
        self.prompt_scores: tuple[Scored, ...] = ()
        """Until they are handed out."""
        self.reading: Rereading | None = None
        """By the second model, of what is handed out once that has read it."""


class GenaiEngine:
    """The pipeline and its thread. A request that can't be run fails alone; if a step breaks, the pipeline is made anew."""

    def __init__(
        self, make: Callable[[bool], Steps], folder: Path, context_length: int, sharing: str | None, ahead: int
    ) -> None:
        """`make`, with salted prompts or without; `sharing` is one of SHARINGS, or None; `ahead`: tokens to guess beyond the
        next."""
        self._make = make
        self._is_salted = True
        """Until somebody asks for what a salted prompt can't have, if the model's can be salted at all."""
        self._sharing, self._ahead = sharing, ahead
        self._defaults = replace(read_defaults(folder), context_length=context_length)
        self.context_length = context_length
        self._pipeline: Any = make(True)
        self._waiting: list[_Running] = []
        """Those whose prompts are to be scored, which nothing may be beside, and those that came after: see `_admit`."""
        self.batching: Batching = OF_ITS_ENGINE
        """What was found of answers in company, where activations may be rounded."""
        self.rounds = False
        """Whether they are."""
        self.second: Likeliest | None = None
        """What tells the likeliest tokens, where it is wanted."""
        self._gate = FormGate(folder)
        self._held: dict[str, int] = {}
        """Grammars that the pipeline has compiled, and their bytes: it keeps them all."""
        self.meter: Meter = CpuMeter()
        self._turns = Turns(NAME, self._join, self._step, self._drop)

    @property
    def likeliest_bytes(self) -> int | None:
        """See `TellingEngine`."""
        return None if self.second is None else self.second.memory_bytes

    def try_company(self) -> Batching:
        """Whether answers are the same in any company; before anybody asks for one."""
        return company(self._pipeline, self._defaults.vocabulary or 2, self.context_length)

    def start(self, request: SequenceRequest, hear: Hear) -> Callable[[], object]:
        """Token ids as they come, without the end token; the last has `finish_reason` "stop" or "length".

        `hear` is told first: InvalidPayload (beyond the context, not in the vocabulary), DeadlineExceeded,
        EngineFailure.
        """
        return self._turns.start(request, hear, self.meter)

    def submit(self, request: SequenceRequest) -> AsyncGenerator[Tokens]:
        """The same, to be awaited; closing it cancels."""
        return tokens_of(self, request)

    def admit(self, constraint: Constraint) -> Future[Admitted]:
        """See `HoldingEngine`."""
        if not self._defaults.eos:
            raise InvalidField(
                f"'{constraint.field}': this model has no end token, so no answer of it is ever whole", constraint.field
            )
        return self._gate.admit(constraint)

    def close(self) -> None:
        """End the thread and free the pipeline; requests in flight end with EngineFailure."""
        self._gate.close()
        self._turns.close()
        self._pipeline = None

    def _join(self, job: Job) -> _Running | None:
        """Give a job to the pipeline; one that can't be run fails alone."""
        try:
            begun = begin(job, self._defaults)
            if begun is None:
                return None
            r = _Running(job, *begun)
            if self._sharing is not None and r.choice.repetition_penalty != 1:
                raise InvalidField(
                    f"'repetition_penalty' is {r.choice.repetition_penalty:g}: this model has a prefix cache, beside which "
                    f"engine {NAME} keeps to 1 only; frequency_penalty and presence_penalty are kept to",
                    "repetition_penalty",
                    "unsupported_parameter",
                )
            r.reading = self._reading(job.request.sampling, r)
            waits = r.reading is None and (r.choice.scores_prompt or self._waiting)
            if waits or self._is_to_be_plain(r.choice):
                self._waiting.append(r)
            elif r.choice.max_tokens:
                self._add(r)
            return r
        except Exception as error:
            job.fail(_ours(error))
            return None

    def _add(self, r: _Running) -> None:
        admitted = r.job.request.admitted
        if admitted is not None:
            self._hold(admitted)
        request = r.job.request  # without a cache the answers of one request share their prompt
        owner = {"key": request.owner, "shared": ""}.get(self._sharing or "", f"{request.owner}\n{request.id}")
        r.handle = self._pipeline.add_request(r.prompt, configuration(r.choice, admitted, self._ahead), owner)

    def _reading(self, sampling: Sampling, r: _Running) -> Rereading | None:
        """How the second model is to read it; None: it need not. Raises InvalidField where nothing tells what is asked for."""
        choice, second, count = r.choice, self.second, r.choice.logprobs or 0
        is_told = count <= 1 and not choice.scores_prompt and _is_likeliest(sampling, choice)
        if count > (0 if second is None else second.count) and not (is_told and sampling.logprobs_field == "logprobs"):
            raise _untold(sampling, choice, second)
        if second is None or is_told or not (count or choice.scores_prompt):
            return None
        told = {"scores_prompt": choice.scores_prompt, "is_likeliest": _is_likeliest(sampling, choice)}
        reading = Rereading(r.prompt, count, choice.max_tokens, **told)
        second.begin(reading)
        return reading

    def _drop(self, r: _Running) -> None:
        if r.reading is not None and self.second is not None:
            self.second.leave(r.reading)
        if r.handle is not None:
            r.handle.cancel()
        elif r in self._waiting:
            self._waiting.remove(r)

    def _admit(self) -> list[_Running]:
        """With nothing in the pipeline: make it without salts if one needs that, score some prompts, and let in what needs no
        score, or has it now. Gives those that are over so.

        Who comes while a prompt waits for its score waits too, or the pipeline would never be free; each time some prompts are
        scored and everybody else let in, so that neither waits for ever.
        """
        if any(self._is_to_be_plain(r.choice) for r in self._waiting):
            self._is_salted = False
            self._renew()
        unscored = [r for r in self._waiting if r.choice.scores_prompt and not r.prompt_scores and r.reading is None]
        count = scored_in_turn([r.prompt for r in unscored])
        for r in unscored[:count]:
            span = self.meter.start()
            try:
                pipeline, number, sent = self._pipeline.alone(r.prompt)
                r.prompt_scores = prompt_scores(r.prompt, pipeline, number, sent, self._ahead)
            finally:
                r.cost = self.meter.stop(span)
        over = []
        admitted = [r for r in self._waiting if r not in unscored[count:]]
        self._waiting = unscored[count:]
        for r in admitted:
            try:
                if r.choice.max_tokens:
                    self._add(r)
                    continue
                r.job.give(Tokens((), finish_reason="length", cost=r.cost, prompt_scores=r.prompt_scores))
            except Exception as error:
                r.job.fail(_ours(error))
            over.append(r)
        return over

    def _is_to_be_plain(self, choice: Choice) -> bool:
        """Whether the pipeline is to be made without salts first: for this penalty it looks up each token of the prompt."""
        return choice.repetition_penalty != 1 and choice.max_tokens > 0 and bool(self._pipeline.is_salted)

    def _hold(self, admitted: Admitted) -> None:
        """Make room for another grammar. Raises Overloaded where a pipeline that is full is at work."""
        if (
            admitted.grammar not in self._held
            and sum(self._held.values()) + admitted.memory_bytes > GRAMMAR_BYTES
            and self._held
        ):
            if self._pipeline.has_non_finished_requests():
                raise Overloaded("the engine holds as many forms as it may until it is idle once; try again in a second")
            self._renew()
        self._held[admitted.grammar] = admitted.memory_bytes

    def _renew(self) -> None:
        """Make the pipeline anew."""
        self._pipeline = None
        self._held.clear()
        self._pipeline = self._make(self._is_salted)

    def _step(self, running: list[_Running]) -> list[_Running]:
        """One step of the pipeline, and no more of the second model than that took; those still running afterwards."""
        began = time.monotonic()
        try:
            if self._waiting and not any(r.handle is not None for r in running):
                over = self._admit()
                running = [r for r in running if r not in over]
            inside = [r for r in running if r.handle is not None]
            if inside and not self._pipeline.has_non_finished_requests():
                for r in [r for r in inside if not self._is_done(r) and r.handle is not None]:
                    r.job.fail(EngineFailure(f"engine {NAME} dropped a request unfinished"))
                return [r for r in running if r.handle is None]
            done: list[_Running] = []
            if inside:
                span = self.meter.start()
                try:
                    self._pipeline.step()
                finally:
                    spent = self.meter.stop(span)
                for r in inside:
                    if r.handle.computed:
                        r.cost = total_cost((r.cost, spent.part(r.handle.computed / self._pipeline.rows)))
                done = [r for r in inside if self._is_done(r)]
        except Exception as error:
            self._waiting.clear()
            for r in running:
                self._drop(r)
                r.job.fail(EngineFailure(f"engine {NAME} broke in a step: {first_line(error)}"))
            self._renew()  # its state is unknown
            return []
        now = time.monotonic()
        done += self._read({r.reading: r for r in running if r.reading is not None}, now + (now - began if inside else 0.0))
        return [r for r in running if r not in done]

    def _read(self, readers: Mapping[Rereading, _Running], until: float) -> list[_Running]:
        """Have the second model read, one part at least, and hand out what is told of whole; those that are over so."""
        second, over = self.second, list[_Running]()
        if second is None:
            return over
        due = second.due()
        while due is not None:
            r = readers[due]
            try:
                span = self.meter.start()
                try:
                    second.read(due)
                finally:
                    r.cost = total_cost((r.cost, self.meter.stop(span)))
            except Exception as error:
                self._drop(r)
                r.job.fail(EngineFailure(f"engine {NAME} broke on a request: {first_line(error)}"))
                over.append(r)
            due = second.due() if time.monotonic() < until else None
        for reading, r in readers.items():
            tokens = None if r in over else reading.take()
            if tokens is not None:
                if tokens.finish_reason is not None:
                    second.leave(reading)
                    over.append(r)
                r.job.give(tokens._replace(cost=r.cost))
        return over

    def _is_done(self, r: _Running) -> bool:
        """Hand out what a request has generated; True when that was the last."""
        import openvino_genai as genai

        ids: list[int] = []
        logprobs: list[float] = []
        while r.handle.can_read():
            for output in r.handle.read().values():
                ids += output.generated_ids
                logprobs += output.generated_log_probs
        scores: list[Scored] = []
        if r.choice.logprobs is not None:
            beside = r.choice.logprobs > 0 and r.reading is None  # of a choice that is the likeliest itself: see _reading
            scores = [Scored(i, value, ((i, value),) * beside) for i, value in zip(ids, logprobs, strict=True)]
        reason: str | None = None
        status = r.handle.get_status()
        if status == genai.GenerationStatus.IGNORED:
            r.job.fail(_ours(r.handle.refused or EngineFailure("it was ignored")))
            return True
        if status != genai.GenerationStatus.RUNNING:
            ended = bool(ids) and ids[-1] in r.choice.eos
            ids = ids[:-1] if ended else ids
            reason = "stop" if ended else "length"
        if r.reading is not None:
            r.reading.write(ids, scores, reason)
            r.handle = None if reason else r.handle
            return False
        if ids or reason:
            count, told, r.prompt_scores = len(ids), r.prompt_scores, ()
            end = scores[count] if len(scores) > count else None
            given = tuple(scores[:count])
            cached = None if self._sharing is None else r.handle.found
            r.job.give(
                Tokens(tuple(ids), None, reason, cost=r.cost, scores=given, prompt_scores=told, end=end, cached_tokens=cached)
            )
        return reason is not None


def configuration(choice: Choice, admitted: Admitted | None = None, ahead: int = 0) -> Any:
    """OpenVINO GenAI's own words for a choice, for the form that the answer is held to, and for how far to guess."""
    import openvino_genai as genai

    config = genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = choice.max_tokens
    config.ignore_eos = not choice.eos
    config.stop_token_ids = set(choice.eos)
    if choice.eos:
        config.eos_token_id = min(choice.eos)  # where it is unset the model's own is added, which the caller may ignore
        config.min_new_tokens = choice.min_tokens
    if choice.logprobs is not None:
        config.logprobs = 1
    config.repetition_penalty = choice.repetition_penalty
    config.frequency_penalty = choice.frequency_penalty
    config.presence_penalty = choice.presence_penalty
    if admitted is not None:
        config.structured_output_config = genai.StructuredOutputConfig(grammar=admitted.grammar)
    if ahead:  # a request that says nothing of it ends such a pipeline, and one that does any other
        config.num_assistant_tokens, config.max_ngram_size = ahead, ALIKE_TOKENS
    config.do_sample = not choice.is_greedy
    if config.do_sample:
        config.temperature = choice.temperature
        config.top_p = choice.top_p
        config.min_p = min(choice.min_p, 1 - 1e-6)  # it takes less than 1
        config.rng_seed = choice.seed
        if choice.top_k is not None:
            config.top_k = choice.top_k
    return config


def _is_likeliest(sampling: Sampling, choice: Choice) -> bool:
    """Whether what is chosen is the likeliest: greedily, and by nothing but the model's own figures."""
    is_punished = choice.repetition_penalty != 1 or choice.frequency_penalty or choice.presence_penalty
    return choice.is_greedy and sampling.constraint is None and not choice.min_tokens and not is_punished


def _untold(sampling: Sampling, choice: Choice, second: Likeliest | None) -> InvalidField:
    """Why tokens beside the chosen one can't be told, and what would tell them."""
    name, count = sampling.logprobs_field, choice.logprobs
    if second is not None:
        why = f"the model is deployed to tell {second.count} of the likeliest tokens; ask for no more"
    else:
        none = "false, or no top_logprobs" if name == "top_logprobs" else "0, which tells of the text's own tokens"
        why = f"engine {NAME} does not tell the likeliest tokens by itself; send {none}"
    return InvalidField(
        f"'{name}' is {count}: {why}, or deploy the model with: maasdam deploy NAME --logprobs {count}",
        name,
        "unsupported_parameter",
    )


def _ours(error: Exception) -> Exception:
    return error if isinstance(error, MaasdamError) else EngineFailure(f"engine {NAME} refused a request: {first_line(error)}")
