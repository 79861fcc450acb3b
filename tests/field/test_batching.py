"""Callers are computed together only where trying showed that an answer does not change with what stands beside it."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.fakes import DOUBLES, FakeEngine
from tests.served import open_home, serving
from tests.waiting import until

from maasdam.artifacts.catalog import Version
from maasdam.core import ANONYMOUS, Artifact, Batching, Request, Signature, TensorEngine, TensorPayload, TensorSpec, Tried
from maasdam.engines import open_engine
from maasdam.engines.batching import find_batching
from maasdam.engines.batching_kept import Findings
from maasdam.engines.made_up import integer_ranges
from maasdam.errors import InvalidInput
from maasdam.pipeline.recipe import parse_recipe
from maasdam.serving.loading import Loader
from maasdam.serving.pace import Pace
from maasdam.serving.replica import TensorReplica
from maasdam.serving.scheduler import Scheduler
from maasdam.settings import Settings
from maasdam.telemetry.meter import CpuMeter

random = np.random.default_rng(3)
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Node = onnx.NodeProto
Inputs = dict[str, tuple[int, list[Any]]]


def weights(*shape: int) -> Any:
    return (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def graph(
    nodes: list[Node], inputs: Inputs, output: list[Any], constants: dict[str, Any], kind: int = FLOAT
) -> onnx.ModelProto:
    """A model that gives "y"; names in shapes are open axes."""
    takes = [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()]
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    whole = helper.make_graph(nodes, "g", takes, [helper.make_tensor_value_info("y", FLOAT, output)], kept)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(whole, opset_imports=opsets, ir_version=10)


def node(kind: str, takes: list[str], gives: str, **attributes: Any) -> Node:
    return helper.make_node(kind, takes, [gives], **attributes)


X: Inputs = {"x": (FLOAT, ["n", 8])}


def mixing(*nodes: Node, **constants: Any) -> onnx.ModelProto:
    """x [n, 8] -> y [n, 8]."""
    return graph(list(nodes), X, ["n", 8], constants)


def recurrent() -> onnx.ModelProto:
    """A network along its first axis, which the file calls open: frames of one recording."""
    nodes = [
        node("Unsqueeze", ["x", "one"], "frames"),
        node("LSTM", ["frames", "w", "r"], "states", hidden_size=8),
        node("Squeeze", ["states", "axes"], "y"),
    ]
    return mixing(*nodes, one=np.array([1]), axes=np.array([1, 2]), w=weights(1, 32, 8), r=weights(1, 32, 8))


def branching() -> onnx.ModelProto:
    """All rows are doubled where the largest number of all is above 30."""
    bodies = [
        helper.make_graph([node(*how)], name, [], [helper.make_tensor_value_info(f"{name}_y", FLOAT, ["n", 8])])
        for name, how in {"then": ("Add", ["x", "x"], "then_y"), "else": ("Identity", ["x"], "else_y")}.items()
    ]
    nodes = [
        node("ReduceMax", ["x"], "most", keepdims=0),
        node("Greater", ["most", "limit"], "is_large"),
        node("If", ["is_large"], "y", then_branch=bodies[0], else_branch=bodies[1]),
    ]
    return mixing(*nodes, limit=np.float32(30))


def many_rows_only() -> onnx.ModelProto:
    """Up to 40 rows stand alone; more are measured by the mean of all."""
    nodes = [
        node("Shape", ["x"], "shape", start=0, end=1),
        node("Greater", ["shape", "forty"], "is_many"),
        node("Cast", ["is_many"], "many", to=FLOAT),
        node("ReduceMean", ["x", "first"], "mean"),
        node("Mul", ["mean", "many"], "moved"),
        node("Sub", ["x", "moved"], "y"),
    ]
    return mixing(*nodes, forty=np.array([40]), first=np.array([0]))


def dynamic_int8() -> onnx.ModelProto:
    """One scale for the activations of the whole batch, as dynamic quantisation has it."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("MatMulInteger", ["q", "w", "zero"], "sums"),
        node("Cast", ["sums"], "wide", to=FLOAT),
        node("Mul", ["wide", "scale"], "y"),
    ]
    return mixing(*nodes, w=random.integers(-127, 127, (8, 8)).astype(np.int8))


def second_output() -> onnx.ModelProto:
    """One output of rows, and beside it one that is a share of all."""
    model = mixing(node("Relu", ["x"], "y"))
    model.graph.node.append(node("Softmax", ["x"], "share", axis=0))
    model.graph.output.append(helper.make_tensor_value_info("share", FLOAT, ["n", 8]))
    return model


def graph_network() -> onnx.ModelProto:
    """Numbers of rows of one input among the rows of the other."""
    nodes = [node("Gather", ["x", "i"], "y", axis=0)]
    return graph(nodes, {"x": (FLOAT, ["n", 8]), "i": (INT64, ["n"])}, ["n", 8], {})


def long_ones_only() -> onnx.ModelProto:
    """Rows of over 20 numbers are compared with the largest of all rows."""
    nodes = [
        node("Shape", ["x"], "shape", start=1, end=2),
        node("Greater", ["shape", "twenty"], "is_long"),
        node("Cast", ["is_long"], "long", to=FLOAT),
        node("ReduceMax", ["x"], "most", keepdims=1),
        node("Mul", ["most", "long"], "moved"),
        node("Sub", ["x", "moved"], "y"),
    ]
    return graph(nodes, {"x": (FLOAT, ["n", "length"])}, ["n", "length"], {"twenty": np.array([20])})


DEPENDENT: dict[str, Callable[[], onnx.ModelProto]] = {
    "softmax over the rows": lambda: mixing(node("Softmax", ["x"], "y", axis=0)),
    "the largest of all": lambda: mixing(node("ReduceMax", ["x"], "most", keepdims=1), node("Sub", ["x", "most"], "y")),
    "a network along the rows": recurrent,
    "sums along the rows": lambda: mixing(node("CumSum", ["x", "axis"], "y"), axis=np.array(0)),
    "sums along the rows, from the end": lambda: mixing(node("CumSum", ["x", "axis"], "y", reverse=1), axis=np.array(0)),
    "sorted along the rows": lambda: graph(
        [helper.make_node("TopK", ["x", "n"], ["y", "i"], axis=0), node("Shape", ["x"], "n", start=0, end=1)][::-1],
        X,
        ["n", 8],
        {},
    ),
    "turned over": lambda: mixing(
        node("Slice", ["x", "end", "begin", "axis", "back"], "y"),
        end=np.array([-1]),
        begin=np.array([-(2**31)]),
        axis=np.array([0]),
        back=np.array([-1]),
    ),
    "rows told from the last": lambda: mixing(
        node("Gather", ["x", "last"], "row", axis=0), node("Sub", ["x", "row"], "y"), last=np.array([-1])
    ),
    "rows mixed by a reshape": lambda: mixing(
        node("Reshape", ["x", "columns"], "turned"),
        node("Softmax", ["turned"], "parts", axis=1),
        node("Reshape", ["parts", "rows"], "y"),
        columns=np.array([8, -1]),
        rows=np.array([-1, 8]),
    ),
    "batch normalisation that learns on": lambda: mixing(
        node("ReduceMean", ["x", "axis"], "mean"),
        node("Sub", ["x", "mean"], "moved"),
        node("ReduceL2", ["moved", "axis"], "spread"),
        node("Div", ["moved", "spread"], "y"),
        axis=np.array([0]),
    ),
    "a branch on all rows": branching,
    "a mean of more than forty": many_rows_only,
    "dynamic int8": dynamic_int8,
    "only its second output": second_output,
    "numbers of rows": graph_network,
    "only long rows": long_ones_only,
    "its place": lambda: mixing(
        node("Shape", ["x"], "n", start=0, end=1),
        node("Squeeze", ["n"], "count"),
        node("Range", ["zero", "count", "one"], "places"),
        node("Cast", ["places"], "numbers", to=FLOAT),
        node("Unsqueeze", ["numbers", "one_axis"], "column"),
        node("Add", ["x", "column"], "y"),
        zero=np.array(0),
        one=np.array(1),
        one_axis=np.array([1]),
    ),
}


def perceptron() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "v"], "y")]
    return mixing(*nodes, w=weights(8, 64), v=weights(64, 8))


def convolution() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w"], "h", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["h", "s", "b", "m", "v"], "normed"),
        node("Relu", ["normed"], "r"),
        node("ReduceMean", ["r", "axes"], "y", keepdims=0),
    ]
    normed = {"s": weights(6), "b": weights(6), "m": weights(6), "v": np.ones(6, np.float32)}
    return graph(
        nodes, {"x": (FLOAT, ["n", 3, "h", "w"])}, ["n", 6], {"w": weights(6, 3, 3, 3), "axes": np.array([2, 3])} | normed
    )


def words() -> onnx.ModelProto:
    """Numbers of words to 11, and a mask: 11 itself is an error."""
    nodes = [
        node("Gather", ["table", "x"], "words"),
        node("Cast", ["mask"], "seen", to=FLOAT),
        node("Unsqueeze", ["seen", "last"], "column"),
        node("Mul", ["words", "column"], "masked"),
        node("Softmax", ["masked"], "shares", axis=1),
        node("ReduceSum", ["shares", "axis"], "y", keepdims=0),
    ]
    return graph(
        nodes,
        {"x": (INT64, ["n", "length"]), "mask": (INT64, ["n", "length"])},
        ["n", 4],
        {"table": weights(11, 4), "last": np.array([2]), "axis": np.array([1])},
    )


def static_int8() -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], "q"),
        node("DequantizeLinear", ["q", "sx", "zx"], "d"),
        node("DequantizeLinear", ["w", "sw", "zw"], "dw"),
        node("MatMul", ["d", "dw"], "y"),
    ]
    table = random.integers(-60, 60, (8, 8)).astype(np.int8)
    scales = {"sx": np.float32(0.05), "zx": np.uint8(128), "sw": np.float32(0.02), "zw": np.int8(0)}
    return mixing(*nodes, w=table, **scales)


INDEPENDENT = {"perceptron": perceptron, "convolution": convolution, "words": words, "static int8": static_int8}


def artifact(model: onnx.ModelProto, folder: Path, engine: str = "onnxruntime") -> Artifact:
    onnx.save(model, folder / "model.onnx")
    return Artifact("sha256:" + "0" * 64, folder, "onnx", "onnx", None, engine, None, 1)


def ticking() -> Callable[[], float]:
    """A clock that each look moves by a hundredth of a second: how much is tried depends on no machine."""
    looks = itertools.count()
    return lambda: next(looks) / 100


def found(model: onnx.ModelProto, folder: Path, engine: str = "onnxruntime", **options: Any) -> Batching:
    one = artifact(model, folder, engine)
    opened = open_engine(one, threads=1)
    assert isinstance(opened, TensorEngine)
    try:
        return find_batching(opened, integer_ranges(one, opened.signature), clock=ticking(), **options)
    finally:
        opened.close()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("make", DEPENDENT.values(), ids=DEPENDENT.keys())
def test_rows_that_depend_on_each_other_are_never_independent(
    make: Callable[[], onnx.ModelProto], engine: str, tmp_path: Path
) -> None:
    finding = found(make(), tmp_path, engine, grows_seconds=9)
    assert finding.verdict == "dependent" or (finding.verdict == "unknown" and make in (graph_network,)), finding
    assert finding.how and finding.tried == ()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("make", INDEPENDENT.values(), ids=INDEPENDENT.keys())
def test_rows_that_stand_alone_are_independent(make: Callable[[], onnx.ModelProto], engine: str, tmp_path: Path) -> None:
    finding = found(make(), tmp_path, engine)
    assert finding.verdict == "independent", finding
    assert max(one.rows for one in finding.tried) > 8
    for kind in ("other values", "a thousandfold", "a thousandth", "zeros", "infinite"):
        assert kind in finding.how


class Noisy(FakeEngine):
    """Never gives the same answer twice."""

    def run(self, batch: Any) -> dict[str, Any]:
        return {name: array + random.standard_normal(array.shape) for name, array in super().run(batch).items()}


def test_an_engine_that_does_not_repeat_itself_is_unknown() -> None:
    finding = find_batching(Noisy(), {}, clock=ticking())
    assert finding.verdict == "unknown" and "differently each time" in finding.how


def test_no_more_rows_are_proven_than_the_model_takes() -> None:
    finding = find_batching(FakeEngine(fails=lambda batch: len(batch["x"]) > 4), {}, clock=ticking(), grows_seconds=9)
    assert [one.rows for one in finding.tried] == [4]
    refuses = find_batching(FakeEngine(fails=lambda batch: len(batch["x"]) > 1), {}, clock=ticking())
    assert refuses.verdict == "unknown" and "two rows were refused" in refuses.how


def test_what_takes_too_long_is_unknown() -> None:
    engine, looks = FakeEngine(), itertools.count()
    finding = find_batching(engine, {}, clock=lambda: next(looks) * 1.0)
    assert finding.verdict == "unknown" and "longer than there is" in finding.how and len(engine.batches) < 9


@pytest.mark.parametrize(
    ("signature", "says"),
    [
        (replace(DOUBLES, inputs=(*DOUBLES.inputs, TensorSpec("gain", "float32", ()))), "'gain' has no open first axis"),
        (replace(DOUBLES, inputs=(*DOUBLES.inputs, TensorSpec("state", "float32", (1, 4)))), "'state' has no open first axis"),
        (replace(DOUBLES, outputs=(TensorSpec("y", "float32", (2,)),)), "'y' has no open first axis"),
    ],
)
def test_what_has_no_rows_is_not_tried(signature: Signature, says: str) -> None:
    engine = FakeEngine(signature=signature)
    finding = find_batching(engine, {})
    assert finding.verdict == "unknown" and says in finding.how and engine.batches == []


def test_a_models_own_examples_are_what_it_is_tried_on() -> None:
    seen = []

    class Watched(FakeEngine):
        def run(self, batch: Any) -> dict[str, Any]:
            seen.append(batch["x"])
            return super().run(batch)

    rows = [{"x": np.full((1, 2), value, np.float32)} for value in (7, 11, 13, 17)]
    finding = find_batching(Watched(), {}, rows, clock=ticking())
    assert finding.verdict == "independent" and "of its examples" in finding.how
    assert seen[0].tolist() == [[7, 7]] and any([11, 11] in batch.tolist() for batch in seen[1:])


def test_rows_are_joined_only_within_the_sizes_that_were_tried() -> None:
    finding = Batching("independent", "tried", (Tried(16, {"x": (8,)}), Tried(4, {"x": (32,)})))
    assert [finding.most_rows({"x": np.zeros((1, size))}) for size in (7, 8, 9, 32, 33)] == [1, 16, 4, 4, 1]
    assert finding.most_rows({"z": np.zeros((1, 8))}) == 1
    assert Batching("dependent", "", finding.tried).most_rows({"x": np.zeros((1, 8))}) == 1
    assert Batching.from_json(json.loads(json.dumps(finding.to_json()))) == finding


class Hundred(Pace):
    """A hundred rows, and so fast that the event loop runs them."""

    cap = 100
    seconds_alone = 1e-6


@pytest.mark.parametrize("is_fixed", [True, False], ids=["in the event loop", "in a thread"])
@pytest.mark.parametrize(("most", "largest"), [(1, 1), (4, 4), (100, 32)])
async def test_a_batch_never_holds_more_rows_than_were_proven(most: int, largest: int, is_fixed: bool) -> None:
    engine = FakeEngine()
    it = Scheduler(engine.run, queue_size=100, is_fixed=is_fixed, most_rows=lambda tensors: most, pace=Hundred())
    engine.gate.clear() if not is_fixed else None
    try:
        first = asyncio.create_task(it.run({"x": np.zeros((1, 2), np.float32)}))
        await asyncio.sleep(0)
        await until(lambda: it.waiting == 0)  # its batch is being computed, or was
        tasks = [asyncio.create_task(it.run({"x": np.full((1, 2), i, np.float32)})) for i in range(32)]
        await until(lambda: is_fixed or it.waiting == 32)
        engine.gate.set()
        for i, ran in enumerate(await asyncio.gather(*tasks)):
            assert ran.outputs["y"].tolist() == [[2 * i, 2 * i]]
        await first
        assert max(engine.batches) == largest
        engine.batches.clear()
        ran = await it.run({"x": np.zeros((9, 2), np.float32)})
        assert engine.batches == [9] and len(ran.outputs["y"]) == 9, "a request's own rows run as they are"
    finally:
        await asyncio.to_thread(it.close)


async def test_a_replica_batches_only_what_was_found_independent() -> None:
    with ThreadPoolExecutor(2) as pool:
        for finding, largest in ((Batching("unknown", "not tried"), 1), (Batching("dependent", "tried"), 1)):
            engine = FakeEngine()
            replica = TensorReplica(engine, None, pool=pool, meter=CpuMeter(), queue_size=64, batching=finding)
            payloads = [TensorPayload({"x": np.full((1, 2), i, np.float32)}) for i in range(20)]

            async def answer(payload: TensorPayload, replica: TensorReplica = replica) -> Any:
                return [chunk async for chunk in replica.answer(Request("r", "m", (payload,), ANONYMOUS))]

            await asyncio.gather(*(answer(payload) for payload in payloads))
            assert max(engine.batches) == largest
            await asyncio.to_thread(replica.close)


def test_a_finding_is_kept_for_one_digest_its_settings_and_this_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Artifact("sha256:" + "1" * 64, tmp_path, "onnx", "onnx", None, "onnxruntime", DOUBLES, 1)
    finding = Batching("dependent", "tried")
    findings = Findings(tmp_path / "home")
    findings.keep(one, finding, threads=2)
    assert Findings(tmp_path / "home").get(one, threads=2) == finding
    assert findings.get(one, threads=1) is None
    for other in (
        replace(one, digest="sha256:" + "2" * 64),
        replace(one, engine="openvino"),
        replace(one, settings={"fast_sums": True}),
    ):
        assert findings.get(other, threads=2) is None
    monkeypatch.setattr("maasdam.engines.batching_kept.processor_name", lambda: "another")
    assert findings.get(one, threads=2) is None


class Shelf:
    """A store of one artifact."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    def get(self, digest: str) -> Artifact:
        return self.artifact

    intact = get


async def loaded(one: Artifact, home: Path) -> tuple[Batching | None, int]:
    """What a replica of `one` goes by, and how often the engine ran until it was ready."""
    engine = FakeEngine()
    at = datetime.now(UTC)
    version = Version("m", 1, one.digest, None, "onnx", "fake", "x", "x", True, None, [], at, (), True)
    settings = Settings(home=home)
    load = Loader(Shelf(one), settings, Findings(home), meter=CpuMeter(), open_engine=lambda *about, **options: engine)
    replica = await load(version)
    ran = len(engine.batches)
    await asyncio.to_thread(replica.close)
    return replica.facts.batching, ran


async def test_what_was_found_is_not_tried_again_and_never_is_not_tried(tmp_path: Path) -> None:
    one = Artifact("sha256:" + "1" * 64, tmp_path, "onnx", "onnx", None, "fake", DOUBLES, 1)
    first, ran = await loaded(one, tmp_path)
    again, ran_again = await loaded(one, tmp_path)
    never, ran_never = await loaded(replace(one, settings={"batch": "never"}), tmp_path)
    assert first is not None and first.verdict == "independent" and again == first
    assert ran > 10 and ran_again == ran_never == 3, "three to warm up"
    assert never is not None and never.verdict == "unknown" and "never" in never.how
    assert Findings(tmp_path).told(replace(one, settings={"batch": "never"})) == never


def test_a_recipe_may_say_never() -> None:
    assert parse_recipe('batch = "never"', "r", "r").batch == "never"
    assert parse_recipe("", "r", "r").batch is None
    with pytest.raises(InvalidInput, match="'batch' is 'always'"):
        parse_recipe('batch = "always"', "r", "r")


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A service with a listwise ranker, and its home."""
    home = tmp_path_factory.mktemp("home")
    with open_home(home) as workspace, workspace.store.workspace() as folder:
        files = folder / "files"
        files.mkdir()
        onnx.save(
            mixing(node("MatMul", ["x", "w"], "h"), node("Softmax", ["h"], "y", axis=0), w=weights(8, 8)), files / "model.onnx"
        )
        signature = Signature((TensorSpec("x", "float32", (None, 8)),), (TensorSpec("y", "float32", (None, 8)),))
        kept = workspace.store.add(
            files, format="onnx", layout="onnx", task=None, engine="onnxruntime", signature=signature, settings={"threads": 1}
        )
        report = {"passed": True, "failures": []}
        workspace.catalog.register("ranker", kept, source="made by tests", recipe="none", report=report, passes=[])
        workspace.catalog.deploy("ranker")
        _, key = workspace.keys.create("tests", ["infer", "deploy", "admin"])
    with serving(home, key) as running:
        yield running, home


def test_a_ranker_answers_four_callers_as_it_answers_one(ranking: tuple[Any, Path]) -> None:
    running, _ = ranking
    wrong, answered = [], []

    def call(seed: int) -> None:
        own = np.random.default_rng(seed)
        with running.client() as client:
            for _ in range(25):
                x = own.standard_normal((int(own.integers(2, 6)), 8)).astype(np.float32)
                sent = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
                answer = client.post("/v2/models/ranker/infer", json={"inputs": [sent]}).json()["outputs"][0]
                sums = np.array(answer["data"]).reshape(answer["shape"]).sum(axis=0)
                answered.append(answer["shape"] == list(x.shape))
                wrong.extend(abs(total - 1) for total in sums if abs(total - 1) > 1e-4)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answered == [True] * 100 and wrong == [], "the shares of one list add up to 1"


def test_what_was_found_is_shown_and_found_once(ranking: tuple[Any, Path]) -> None:
    running, home = ranking
    with running.client() as client:
        (row,) = client.get("/admin/models").json()["models"]
        (deployed,) = client.get("/admin/deployments").json()["deployments"]
    assert row["batching"] == "dependent" and "'y' changed" in row["batching_how"]
    assert deployed["serving"][0]["batching"] == "dependent"
    (kept,) = (home / "batching").iterdir()
    facts = json.loads(kept.read_text())
    assert facts["verdict"] == "dependent" and facts["settings"] == {"threads": 1} and facts["processor"]
