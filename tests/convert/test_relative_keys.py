"""Relative positions are gathered from products with a small table; the numbers stay what they were."""

from __future__ import annotations

from typing import Any

import pytest

from maasdam.convert.directions.relative_keys import MOST_DISTANCES, gather_relative_keys

torch = pytest.importorskip("torch")


def _program(equation: str, reach: int) -> tuple[Any, Any]:
    """Scores of queries [batch, 2, length, 4] over positions at most `reach` apart, with batch and length open."""

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = torch.nn.Embedding(2 * reach + 1, 4)

        def forward(self, queries: Any) -> Any:
            places = torch.arange(queries.shape[2])
            distances = torch.clamp(places[None] - places[:, None], -reach, reach) + reach
            return torch.einsum(equation, queries, self.table(distances).to(queries.dtype))

    open_axes = {"queries": {0: torch.export.Dim("batch"), 2: torch.export.Dim("length")}}
    module = Scores().eval()
    return module, torch.export.export(module, (torch.zeros(2, 2, 9, 4),), dynamic_shapes=open_axes)


def _operators(program: Any) -> set[str]:
    return {str(node.target) for node in program.graph.nodes}


def test_the_table_is_multiplied_once_and_every_length_agrees() -> None:
    module, program = _program("bhld,lrd->bhlr", 3)
    assert gather_relative_keys(program) == 1
    assert "aten.gather.default" in _operators(program) and "aten.einsum.default" not in _operators(program)
    run = program.module()
    for batch, length in ((1, 5), (3, 2), (2, 40)):
        queries = torch.randn(batch, 2, length, 4)
        assert torch.allclose(run(queries), module(queries), atol=1e-6)


@pytest.mark.parametrize(("equation", "reach"), [("bhrd,lrd->bhlr", 3), ("bhld,lrd->bhlr", MOST_DISTANCES)])
def test_other_products_and_large_tables_are_left_as_they_are(equation: str, reach: int) -> None:
    _, program = _program(equation, reach)
    assert gather_relative_keys(program) == 0
    assert "aten.einsum.default" in _operators(program)
