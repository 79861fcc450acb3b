"""The operators of docs/extending.md, put where the page says, against ONNX Runtime."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.convert.test_microsoft_operators import Case, M, in_pytorch, in_tensorflow

from maasdam.convert.operators.onnx import OPERATORS

EXAMPLES = [
    Case(
        "CDist",
        [(M + "CDist", ["a", "b"], ["y"], {"metric": "euclidean"})],
        {"a": ("float", ("N", 5)), "b": ("float", ("S", 5))},
        {},
    ),
    Case("Inverse", [(M + "Inverse", ["a"], ["y"], {})], {"a": ("float", ("N", 3, 3))}, {}),
]


@pytest.fixture
def followed(repository: Path) -> Iterator[None]:
    """Every block is run as the end of the file that is named before it."""
    page = (repository / "docs" / "extending.md").read_text().partition("## An ONNX operator")[2].partition("\n## ")[0]
    blocks = re.findall(r"`src/(maasdam/convert/operators/[\w/]+)\.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```python") == 4
    before, listed = [], set(OPERATORS)
    for path, block in blocks:
        module: Any = importlib.import_module(path.replace("/", "."))
        before.append((module, dict(vars(module))))
        exec(compile(block, path, "exec"), vars(module))
    assert set(OPERATORS) - listed == {"com.microsoft.CDist", "com.microsoft.Inverse"}
    yield
    for name in set(OPERATORS) - listed:
        del OPERATORS._operators[name]
    for module, names in reversed(before):
        vars(module).clear()
        vars(module).update(names)


@pytest.mark.parametrize("into", [in_pytorch, in_tensorflow])
@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: case.name)
def test_the_operators_of_the_page_compute_what_onnx_runtime_computes(followed: None, case: Case, into: Any) -> None:
    import onnxruntime

    model = case.model()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = case.feeds(0)
    (wanted,), (found,) = session.run(None, feeds), into(model)(feeds)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
