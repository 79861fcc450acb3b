"""Recipes as data: what they may say, and how errors say what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from maasdam.core import (
    AUDIO_CLASSIFICATION,
    FEATURES,
    IMAGE_CLASSIFICATION,
    SPEECH_RECOGNITION,
    TEXT_GENERATION,
    TEXT_RANKING,
)
from maasdam.errors import InvalidInput
from maasdam.pipeline.recipe import Limits, built_in_recipes, find_recipe, parse_recipe
from maasdam.tasks import TASKS

BUILT_IN = {"fp32", "bf16", "int8", "int8-dynamic", "int8-weights", "int4-weights", "pruned", "distilled"}


def test_the_promised_recipes_are_built_in() -> None:
    assert set(built_in_recipes()) == BUILT_IN


@pytest.mark.parametrize("task", [*TASKS, None])
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_recipe_parses_for_every_task(name: str, task: str | None) -> None:
    recipe = find_recipe(name, task)
    assert recipe.passes and recipe.limits.max_drop is not None


def test_int8_is_weights_only_for_text_and_static_elsewhere() -> None:
    schemes = {task: find_recipe("int8", task).passes[0].settings["scheme"] for task in TASKS}
    assert schemes == {task: "weights-int8" if task == TEXT_GENERATION else "static-int8" for task in TASKS}
    assert {IMAGE_CLASSIFICATION, SPEECH_RECOGNITION, AUDIO_CLASSIFICATION, FEATURES, TEXT_RANKING} <= schemes.keys()


def test_the_recipe_of_the_documentation_is_understood() -> None:
    text = """
task = "image-classification"
[limits]
max_drop = 0.01
min_speedup = 1
[[pass]]
use = "prune"
ratio = 0.3
finetune_epochs = 2
[[pass]]
use = "quantize"
scheme = "static-int8"
[[pass]]
use = "optimize"
engine = "openvino"
"""
    recipe = parse_recipe(text, "mine", "mine.toml")
    assert recipe.limits == Limits(max_drop=0.01, min_speedup=1.0)
    assert [u.use for u in recipe.passes] == ["prune", "quantize", "optimize"]
    assert recipe.passes[0].settings["method"] == "structured"
    assert recipe.trains == ("prune",)
    assert recipe.calibrates


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task = 'poetry'", "'task' is 'poetry'; it takes one of: image-classification"),
        ("tusk = 'x'", "no key 'tusk'; a recipe has: task"),
        ("[limits]\nmax_drip = 1", "[limits] has no 'max_drip'; it takes: max_drop"),
        ("[limits]\nmax_drop = 'a'", "'max_drop' is 'a'; it takes a number"),
        ("[limits]\nmin_cosine = 3", "'min_cosine' is 3.0; it takes a number at least -1 and at most 1"),
        ("limits = 3", "'limits' is not a table"),
        ("[pass]\nuse = 'prune'", "'pass' is not a list of tables"),
        ("[[pass]]\nratio = 1", "pass 1: 'use' is None"),
        ("[[pass]]\nuse = 'shrink'", "pass 1: no pass 'shrink'; the passes are: convert, quantize"),
        ("[[pass]]\nuse = 'quantize'", "pass 'quantize' needs 'scheme'; it takes 'static-int8' or"),
        ("[[pass]]\nuse = 'quantize'\nscheme = 'int3'", "'scheme' is 'int3'; it takes 'static-int8' or"),
        ("[[pass]]\nuse = 'prune'\nratio = 2", "'ratio' is 2.0; it takes a number at least 0.01 and at most 0.95"),
        ("[[pass]]\nuse = 'prune'\nratio = true", "'ratio' is True; it takes a number"),
        ("[[pass]]\nuse = 'prune'\namount = 1", "pass 'prune' has no setting 'amount'; it takes: method, ratio"),
        ("[[pass]]\nuse='optimize'\n[[pass]]\nuse='prune'", "make it the last pass"),
        ("not toml", "is not TOML"),
    ],
)
def test_an_error_names_the_file_the_key_and_what_it_takes(text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(text, "mine", "mine.toml")
    assert says in str(caught.value) and "mine.toml" in str(caught.value)


def test_an_unknown_recipe_lists_the_built_in_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no recipe 'int9'.*int8-dynamic"):
        find_recipe("int9", None)


def test_a_recipe_for_another_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("task = 'text-generation'")
    with pytest.raises(InvalidInput, match=r"is for task 'text-generation', the model's is 'image-classification'"):
        find_recipe(str(path), IMAGE_CLASSIFICATION)
