"""Running a recipe: caching, resuming, lineage, forks, and what is refused before any work. Passes here are fakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from maasdam.artifacts.produced import PassFacts, Produced
from maasdam.artifacts.store import Store
from maasdam.core import TEXT_GENERATION, Artifact, Format, Signature, TensorSpec
from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.passes import Pass, PassContext, find_pass
from maasdam.pipeline.recipe import Recipe, Use, parse_recipe
from maasdam.pipeline.run_recipe import Build, Data, check_data
from maasdam.pipeline.sameness import content_digest

SIGNATURE = Signature((TensorSpec("x", "float32", (None, 4)),), (TensorSpec("y", "float32", (None, 2)),))


@dataclass
class FakePasses:
    """Passes that append their name to a file; every run is noted. A pass named in `broken` raises."""

    ran: list[str] = field(default_factory=list)
    broken: dict[str, Exception] = field(default_factory=dict)
    version: int = 1

    def find(self, use: str, where: str) -> Pass:
        real = find_pass(use, where)

        def run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
            what = settings.get("to") or settings.get("format") or ""
            self.ran.append(f"{use} {what}".strip())
            if error := self.broken.get(self.ran[-1]):
                raise error
            if use == "optimize":
                assert source.digest not in {r.digest for r in context.rivals}
                self.ran[-1] += f" of {[source.format, *(r.format for r in context.rivals)]}"
            (out / "model").write_text((source.path / "model").read_text() + f"|{self.ran[-1]}")
            made: Format = what if what in ("onnx", "openvino", "pytorch") else source.format
            engine = {"onnx": "onnxruntime", "openvino": "openvino"}.get(made, "pytorch")
            return Produced(made, "onnx" if made == "onnx" else "ir", engine, SIGNATURE, {}, PassFacts({"ran": self.ran[-1]}))

        return replace(real, run=run, version=self.version)


def proven(*sides: Any) -> dict[str, Any]:
    """Every conversion of fakes is held to be faithful."""
    return {"passed": True}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(store: Store) -> Artifact:
    with store.workspace() as folder:
        (folder / "files").mkdir()
        (folder / "files" / "model").write_text("weights")
        return store.add(
            folder / "files", format="pytorch", layout="huggingface", task=None, engine="pytorch", signature=SIGNATURE
        )


def _recipe(*uses: tuple[str, dict[str, Any]]) -> Recipe:
    return Recipe("r", None, tuple(Use(use, find_pass(use, "r").check(s, "r")) for use, s in uses))


INT8 = _recipe(("quantize", {"scheme": "static-int8"}), ("optimize", {}))


def test_a_second_run_takes_everything_from_the_cache(store: Store, source: Artifact, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    fakes = FakePasses()
    first = Build(store, Data(calibrate=tmp_path / "a.png"), find=fakes.find, prove=proven)
    made = first.run(INT8, source, None)
    count = len(fakes.ran)
    second = Build(store, Data(calibrate=tmp_path / "a.png"), find=fakes.find, prove=proven)
    assert second.run(INT8, source, None).digest == made.digest
    assert len(fakes.ran) == count
    assert all(s.is_cached for s in second.steps) and [s.use for s in second.steps] == [s.use for s in first.steps]
    assert [s.facts for s in second.steps] == [s.facts for s in first.steps]


def test_what_is_calibrated_on_is_made_anew_where_other_data_is_held_out(
    store: Store, source: Artifact, tmp_path: Path
) -> None:
    """The same folder: a part of it is judged by without --data, a sample of it is taken where it is --data itself."""
    x, y = tmp_path / "x.png", tmp_path / "y.png"
    x.write_bytes(b"x")
    y.write_bytes(b"y")
    found, counts = FakePasses(), []
    for data in (Data(calibrate=x), Data(y, x), Data(x), Data(x, x), Data(y, x)):
        found.ran.clear()
        Build(store, data, find=found.find, prove=proven).run(_recipe(("quantize", {"scheme": "static-int8"})), source, "onnx")
        counts.append(found.ran.count("quantize onnx"))
    assert counts == [1, 1, 1, 0, 0]


def test_what_is_trained_does_not_depend_on_what_it_is_evaluated_on(store: Store, source: Artifact, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    found = FakePasses()
    for data in (Data(train=tmp_path / "x.png"), Data(tmp_path / "x.png", None, tmp_path / "x.png")):
        Build(store, data, find=found.find, prove=proven).apply(Use("prune", find_pass("prune", "r").check({}, "r")), source)
    assert found.ran == ["prune"]


def test_int8_is_made_for_both_engines_and_the_better_one_chosen(store: Store, source: Artifact) -> None:
    fakes = FakePasses()
    Build(store, find=fakes.find, prove=proven).run(INT8, source, None)
    assert fakes.ran == [
        "convert openvino",
        "quantize openvino",
        "convert onnx",
        "quantize onnx",
        "optimize of ['openvino', 'onnx']",
    ]


@pytest.mark.parametrize(("to", "others"), [("onnx", "openvino"), ("openvino", "onnx")])
def test_to_decides_the_format_alone(store: Store, source: Artifact, to: Format, others: str) -> None:
    fakes = FakePasses()
    assert Build(store, find=fakes.find, prove=proven).run(INT8, source, to).format == to
    assert not any(others in ran for ran in fakes.ran)


def test_to_the_source_s_own_format_leaves_it_as_it_is(store: Store, source: Artifact) -> None:
    fakes = FakePasses()
    made = Build(store, find=fakes.find, prove=proven).run(_recipe(("optimize", {})), source, "pytorch")
    assert made.digest == source.digest and fakes.ran == []


def test_without_to_the_float_model_is_tried_on_both_engines(store: Store, source: Artifact) -> None:
    fakes = FakePasses()
    Build(store, find=fakes.find, prove=proven).run(_recipe(("optimize", {})), source, None)
    assert fakes.ran == ["convert openvino", "convert onnx", "optimize of ['openvino', 'onnx']"]


def test_an_engine_that_can_not_have_it_is_left_out_with_the_reason(store: Store, source: Artifact) -> None:
    fakes = FakePasses(broken={"convert onnx": Unsupported("operator Foo")})
    building = Build(store, find=fakes.find, prove=proven)
    assert building.run(INT8, source, None).format == "openvino"
    assert any("operator Foo" in note for note in building.notes)


def test_a_killed_build_goes_on_after_the_last_finished_pass(store: Store, source: Artifact) -> None:
    fakes = FakePasses(broken={"quantize openvino": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        Build(store, find=fakes.find, prove=proven).run(INT8, source, "openvino")
    assert not list((store.root / "tmp").iterdir())
    fakes.broken.clear()
    fakes.ran.clear()
    Build(store, find=fakes.find, prove=proven).run(INT8, source, "openvino")
    assert fakes.ran == ["quantize openvino", "optimize of ['openvino']"]


def test_lineage_is_the_chain_of_parents(store: Store, source: Artifact) -> None:
    building = Build(store, find=FakePasses().find, prove=proven)
    artifact = building.run(INT8, source, "openvino")
    chain = [artifact]
    while chain[-1].parents:
        chain.append(store.get(chain[-1].parents[0]))
    assert [a.digest for a in chain[::-1]] == [source.digest, *(s.digest for s in building.steps)]


@pytest.mark.parametrize(
    "change",
    [
        lambda k, f, p: setattr(f, "version", 2),
        lambda k, f, p: setattr(k, "device", "cuda"),
        lambda k, f, p: p.write_bytes(b"other photographs"),
    ],
    ids=["pass version", "device", "calibration data"],
)
def test_what_decides_the_result_is_in_the_key(
    store: Store, source: Artifact, tmp_path: Path, change: Callable[[Build, FakePasses, Path], None]
) -> None:
    data = tmp_path / "a.png"
    data.write_bytes(b"photographs")
    use = INT8.passes[0]
    fakes = FakePasses()
    building = Build(store, Data(calibrate=data), find=fakes.find, prove=proven)
    building.apply(replace(use, settings={**use.settings, "format": "openvino"}), source)
    fakes.ran.clear()
    change(building, fakes, data)
    building.apply(replace(use, settings={**use.settings, "format": "openvino"}), source)
    assert "quantize openvino" in fakes.ran


def test_references_are_no_steps_of_the_build(store: Store, source: Artifact) -> None:
    building = Build(store, find=FakePasses().find, prove=proven)
    assert [r.format for r in building.references(source)] == ["openvino", "onnx"]
    assert building.steps == []


def test_training_without_train_is_refused_before_any_work() -> None:
    recipe = parse_recipe("[[pass]]\nuse = 'prune'\nfinetune_epochs = 1", "r", "r")
    with pytest.raises(InvalidInput, match="trains in prune: name labelled data with --train"):
        check_data(recipe, Data())


def test_calibrating_without_data_is_refused_before_any_work() -> None:
    with pytest.raises(InvalidInput, match="--calibrate"):
        check_data(INT8, Data())
    check_data(INT8, Data(data=Path("somewhere")))


def test_a_scheme_that_does_not_exist_for_a_format_says_for_which_it_does(
    store: Store, source: Artifact, tmp_path: Path
) -> None:
    building = Build(store, Data(data=tmp_path))
    with pytest.raises(Unsupported, match="does not exist for --to tensorflow; it does for: openvino, onnx"):
        building.check(INT8, source, "tensorflow")
    with pytest.raises(Unsupported, match="use weights-int8"):
        building.check(INT8, replace(source, task=TEXT_GENERATION), None)


def test_the_engine_knows_no_pass_by_name(store: Store, source: Artifact) -> None:
    """What a pass expands into, chooses from, rounds and has proven, it says itself: other names do the same."""
    fakes = FakePasses()
    names = {"q": "quantize", "o": "optimize", "c": "convert"}

    def find(use: str, where: str) -> Pass:
        return fakes.find(names.get(use, use), where)

    other = Recipe("r", None, tuple(replace(use, use=use.use[0]) for use in INT8.passes))
    Build(store, find=find, prove=proven).run(other, source, None)
    assert fakes.ran[-1] == "optimize of ['openvino', 'onnx']" and fakes.ran[1] == "quantize openvino"


def test_the_content_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = content_digest(tmp_path)
    assert content_digest(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    second = content_digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, content_digest(tmp_path)}) == 3
