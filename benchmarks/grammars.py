"""Forms that answers are held to: schemas in numbers, hostile forms beside neighbours, and what a constrained token costs.

    python -m benchmarks.grammars [FOLDER] [--suite FOLDER] [--schemas 200] [--seeds 8] [--hostile 300] [--rounds 5]

FOLDER holds a model as OpenVINO GenAI has it; without one a tiny random model is made (which takes torch). --suite names a
folder of the official JSON-Schema-Test-Suite's files (npm's json-schema-test-suite has draft 4's); what it lacks to the number
of schemas is made up here. Every answer is sampled, and one that ended by itself must fit its schema.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.engines import tiny_language_model
from tests.field.hostile_forms import HOSTILE

from maasdam.core import ANONYMOUS, Artifact, Constraint, Request, Sampling, SequenceEngine, TextPayload, TextPiece
from maasdam.engines import open_engine
from maasdam.errors import InvalidField, Overloaded
from maasdam.grammars import check
from maasdam.grammars.formats import FORMATS
from maasdam.serving.replica import SequenceReplica
from maasdam.tasks.text import TextProcessor

NEIGHBOURS = 7
TOKENS = 100
"""Of an answer at most."""
STREAMS = 8
"""That are timed side by side."""
PAIR = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}, "required": ["name", "n"]}
LONG = {"type": "array", "minItems": 200, "items": PAIR}
"""A schema whose answers don't end within TOKENS."""


@contextmanager
def replica(folder: Path | None, threads: int) -> Iterator[SequenceReplica]:
    """The model, in this process."""
    with tempfile.TemporaryDirectory() as made, ThreadPoolExecutor(2) as pool:
        if folder is None:
            source = tiny_language_model.huggingface(Path(made) / "huggingface")
            artifact = tiny_language_model.genai(source, Path(made) / "genai")
        else:
            artifact = Artifact("sha256:given", folder, "openvino", "genai", "text-generation", "openvino-genai", None, 1)
        engine = open_engine(artifact, threads=threads)
        assert isinstance(engine, SequenceEngine)
        processor = TextProcessor(artifact.path)
        yield SequenceReplica(engine, processor, pool=pool, queue_size=256, text_stream=processor.stream)
        engine.close()


async def written(one: SequenceReplica, constraint: Constraint | None, **how: Any) -> tuple[str, str | None, int, float]:
    """The text, why it ended, its tokens and the longest wait between two pieces."""
    sampling = Sampling(constraint=constraint, **({"max_tokens": TOKENS, "temperature": 1.0} | how))
    request = Request("benchmark", "text", (TextPayload(prompt="the cat", sampling=sampling),), ANONYMOUS)
    text, reason, count, longest, last = "", None, 0, 0.0, time.perf_counter()
    async for chunk in one.answer(request):
        assert isinstance(chunk.value, TextPiece)
        now = time.perf_counter()
        if count:
            longest = max(longest, now - last)
        last, count = now, count + len(chunk.value.token_ids)
        text, reason = text + chunk.value.text, chunk.value.finish_reason
    return text, reason, count, longest


PATTERNS = ("^[a-f]{2,4}$", "^\\d{3}-\\w+$", "x[^y]z", "^(ab|c[d-f]?){1,3}$", "^\\S{2}\\s.$")


def schemas(count: int, suite: Path | None, seed: int = 0) -> list[Any]:
    """The suite's, and made up ones."""
    files = sorted(suite.rglob("*.json")) if suite else []
    found = [group["schema"] for path in files for group in json.loads(path.read_text())]
    rnd = random.Random(seed)
    return [*found, *(made_up(rnd, 3) for _ in range(count - len(found)))][:count]


def made_up(rnd: random.Random, depth: int) -> Any:
    """A schema at random: mostly of keywords that are kept to, some that are refused."""

    def within(low: int, high: int) -> int:
        return rnd.randint(low, high)

    plain = [
        lambda: {"type": "string"},
        lambda: {"type": "string", "minLength": within(0, 3), "maxLength": within(3, 9)},
        lambda: {"type": "string", "pattern": rnd.choice(PATTERNS)},
        lambda: {"type": "string", "format": rnd.choice([*FORMATS])},
        lambda: {"type": "integer", "minimum": within(-50, 5), "maximum": within(5, 5000)},
        lambda: {"type": "integer", "exclusiveMinimum": within(-99, 99)},
        lambda: {"type": "integer", "multipleOf": within(2, 9), "minimum": 0, "maximum": 200},
        lambda: {"type": "number", "minimum": within(-500, 0) / 100, "exclusiveMaximum": within(1, 900) / 100},
        lambda: {"type": "number"},
        lambda: {"type": rnd.choice(["boolean", "null"])},
        lambda: {"type": ["string", "null"], "maxLength": 4},
        lambda: {"enum": rnd.sample(["a", 'b\\"', "c\n", 1, 2.5, None, True, {"k": [1]}, []], within(1, 5))},
        lambda: {"const": rnd.choice(["é\\", 0, -3.5, [1, {"a": None}]])},
        lambda: {"type": "integer", rnd.choice(["not", "if"]): {"const": 1}},
        lambda: {"type": "array", "uniqueItems": True, "items": {"type": "boolean"}, "maxItems": within(1, 3)},
    ]
    if depth == 0 or rnd.random() < 0.3:
        return rnd.choice(plain)()

    def inner() -> Any:
        return made_up(rnd, depth - 1)

    def an_object() -> Any:
        names = rnd.sample(["a", "bb", "naïve", 'q"', "back\\slash", "x y", "日本"], within(1, 4))
        out = {"type": "object", "properties": {name: inner() for name in names}}
        out["required"] = rnd.sample(names, within(0, len(names)))
        more = rnd.choice([None, False, {"type": "integer"}])
        return out if more is None else out | {"additionalProperties": more, "maxProperties": within(len(names), 6)}

    def recursive() -> Any:
        node = {"type": "object", "properties": {"v": inner(), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}}}
        return {"$defs": {"n": node | {"required": ["v", "next"], "additionalProperties": False}}, "$ref": "#/$defs/n"}

    compound = [
        an_object,
        an_object,
        lambda: {"type": "array", "items": inner(), "minItems": within(0, 2), "maxItems": within(2, 4)},
        lambda: {"type": "array", "prefixItems": [inner(), inner()], "items": False, "minItems": within(0, 2)},
        lambda: {"type": "array", "prefixItems": [inner()], "items": {"type": "null"}, "minItems": within(0, 3)},
        lambda: {"anyOf": [inner(), inner()]},
        lambda: {"oneOf": [{"type": "integer", "minimum": 0}, rnd.choice([{"type": "string"}, {"type": "number"}])]},
        lambda: {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": inner()}}]},
    ]
    return recursive() if depth == 3 and rnd.random() < 0.15 else rnd.choice(compound)()


def told(counts: Counter[str]) -> str:
    """In words."""
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


async def many_schemas(one: SequenceReplica, asked: argparse.Namespace) -> None:
    """Each valid, or refused by name."""
    counts: Counter[str] = Counter()
    for schema in schemas(asked.schemas, asked.suite):
        constraint = Constraint("schema", json.dumps(schema), "guided_json")
        all_seeds = (written(one, constraint, seed=seed) for seed in range(asked.seeds))
        answers = await asyncio.gather(*all_seeds, return_exceptions=True)
        refusals = [str(answer) for answer in answers if isinstance(answer, InvalidField)]
        counts["schemas refused" if refusals else "schemas kept to"] += 1
        for answer in answers:
            if isinstance(answer, InvalidField):
                continue
            if isinstance(answer, BaseException):
                wrong: str | None = f"{type(answer).__name__}: {answer}"
            else:
                wrong = check(constraint, answer[0]) if answer[1] == "stop" else ""
            counts["answers valid" if wrong is None else "answers cut by their length" if wrong == "" else "ANSWERS WRONG"] += 1
            if wrong:
                print("  wrong:", json.dumps(schema)[:200], answer, wrong)
    print(f"{asked.schemas} schemas x {asked.seeds} seeds: {told(counts)}")


def hostile(count: int, seed: int = 0) -> list[Constraint]:
    """Those of the tests, and such with a character more, less or changed."""
    rnd, out = random.Random(seed), list(HOSTILE)
    while len(out) < count:
        old = rnd.choice(HOSTILE)
        at = rnd.randrange(max(1, len(old.text)))
        new = rnd.choice("()[]{}*+?|^$\\\"'.,:0123456789abcxyz=# \n")
        out.append(replace(old, text=old.text[:at] + rnd.choice([new, "", new * 3]) + old.text[at + rnd.randint(0, 1) :]))
    return out[:count]


async def hostile_beside_neighbours(one: SequenceReplica, asked: argparse.Namespace) -> None:
    """Neighbours write on and on, and must write what they do alone."""
    alone = [await written(one, None, seed=seed) for seed in range(NEIGHBOURS)]
    counts: Counter[str] = Counter()
    is_over = False

    async def neighbour(seed: int) -> float:
        longest = 0.0
        while not is_over:
            answer = await written(one, None, seed=seed)
            counts["neighbours' answers equal" if answer[:3] == alone[seed][:3] else "NEIGHBOURS' ANSWERS CHANGED"] += 1
            longest = max(longest, answer[3])
        return longest

    async def attack(constraint: Constraint) -> None:
        try:
            json.loads(constraint.text) if constraint.kind == "schema" else None
        except ValueError:
            counts["refused at the door"] += 1
            return
        for _ in range(600):
            try:
                counts[f"ended by {(await written(one, constraint, max_tokens=16, seed=1))[1]}"] += 1
                return
            except InvalidField:
                counts["refused by name"] += 1
                return
            except Overloaded:
                await asyncio.sleep(0.05)
            except Exception as error:
                counts[f"FAILED: {type(error).__name__}: {str(error)[:150]} {constraint.text[:150]!r}"] += 1
                return

    neighbours = [asyncio.create_task(neighbour(seed)) for seed in range(NEIGHBOURS)]
    await asyncio.sleep(1.0)
    began, waits = time.perf_counter(), []
    for constraint in hostile(asked.hostile):
        before = time.perf_counter()
        await attack(constraint)
        waits.append(time.perf_counter() - before)
    took, is_over = time.perf_counter() - began, True
    stalls = await asyncio.gather(*neighbours)
    print(f"{asked.hostile} hostile forms in {took:.0f} s beside {NEIGHBOURS} neighbours: {told(counts)}")
    print(f"  longest wait: for a verdict {max(waits):.2f} s, of a neighbour between two pieces {max(stalls):.2f} s")


async def cost(one: SequenceReplica, asked: argparse.Namespace) -> None:
    """Free and constrained by turns."""
    constraint = Constraint("schema", json.dumps(LONG), "guided_json")
    found: dict[str, list[tuple[float, float]]] = {"free": [], "held": []}
    for round_number in range(asked.rounds + 1):
        for name, form in (("free", None), ("held", constraint)):
            wall, cpu = time.perf_counter(), time.process_time()
            answers = await asyncio.gather(*(written(one, form, seed=seed, ignore_eos=form is None) for seed in range(STREAMS)))
            count = sum(answer[2] for answer in answers)
            if round_number:  # the first compiles
                found[name].append(((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count))
    medians = {name: [statistics.median(values) * 1e3 for values in zip(*pairs, strict=True)] for name, pairs in found.items()}
    for at, what in enumerate(("wall", "CPU")):
        free, held = medians["free"][at], medians["held"][at]
        print(f"{what} of a token of {STREAMS} streams: free {free:.2f} ms, held {held:.2f} ms, {held / free:.2f} x")


async def every(asked: argparse.Namespace) -> None:
    """All three."""
    with replica(asked.folder, asked.threads) as one:
        await cost(one, asked)
        if asked.schemas:
            await many_schemas(one, asked)
        if asked.hostile:
            await hostile_beside_neighbours(one, asked)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("folder", type=Path, nargs="?")
    words.add_argument("--suite", type=Path)
    words.add_argument("--schemas", type=int, default=200)
    words.add_argument("--seeds", type=int, default=8)
    words.add_argument("--hostile", type=int, default=300)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--threads", type=int, default=2)
    asyncio.run(every(words.parse_args()))
