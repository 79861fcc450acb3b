"""Attention over relative positions, computed where it is small. Knows one pattern of PyTorch programs; same numbers otherwise.

transformers looks an embedding up for every pair of positions and multiplies afterwards; there are few different distances:

    einsum("bhld,lrd->bhlr", q, table[distance])     length x length x size numbers looked up, copied and multiplied
    gather(q @ table^T, distance)                    length x distances multiplied, length x length looked up

Wav2Vec2-BERT and the encoders of its kind are written so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

EQUATION = "bhld,lrd->bhlr"
MOST_DISTANCES = 256
"""A larger table may hold more distances than a sequence has positions: then multiplying by all of it is no gain."""


def gather_relative_keys(program: ExportedProgram) -> int:
    """Rewrite every such product of `program` in place; how many there were."""
    found = [(node, pair) for node in program.graph.nodes if (pair := _pattern(node)) is not None]
    for node, (table, distances) in found:
        _rewrite(node, table, distances)
    if found:
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
    return len(found)


def _pattern(node: Node) -> tuple[Any, Any] | None:
    """The table [distances, size] and the distances [length, length] of such a product; None of any other node."""
    if str(node.target) != "aten.einsum.default" or str(node.args[0]).replace(" ", "") != EQUATION:
        return None
    operands: Any = node.args[1]
    looked_up = _through_casts(operands[1])
    if str(looked_up.target) != "aten.embedding.default":
        return None
    table, distances = looked_up.args[:2]
    sizes, dtypes = table.meta["val"].shape, {table.meta["val"].dtype, operands[0].meta["val"].dtype}
    if len(dtypes) > 1 or not isinstance(sizes[0], int) or sizes[0] > MOST_DISTANCES:
        return None
    return table, distances


def _through_casts(node: Any) -> Any:
    """What a node was before casts that change nothing."""
    while str(node.target) == "aten.to.dtype" and node.args[0].meta["val"].dtype == node.meta["val"].dtype:
        node = node.args[0]
    return node


def _rewrite(node: Node, table: Any, distances: Any) -> None:
    import torch

    operands: Any = node.args[1]
    queries, aten, graph = operands[0], torch.ops.aten, node.graph

    def call(target: Any, *args: Any) -> Any:
        made = graph.call_function(target, args)
        made.meta["val"] = target(*torch.fx.node.map_arg(args, lambda n: n.meta["val"]))
        return made

    fake = node.meta["val"].fake_mode
    with graph.inserting_before(node), fake:
        by_distance = call(aten.matmul.default, queries, call(aten.permute.default, table, [1, 0]))
        batch = call(aten.sym_size.int, queries, 0)
        heads = queries.meta["val"].shape[1]
        length = call(aten.sym_size.int, distances, 0)
        keys = call(aten.sym_size.int, distances, 1)
        pairs = call(aten.unsqueeze.default, call(aten.unsqueeze.default, distances, 0), 0)
        everywhere = call(aten.expand.default, pairs, [batch, heads, length, keys])
        gathered = call(aten.gather.default, by_distance, -1, everywhere)
    node.replace_all_uses_with(gathered)
    graph.erase_node(node)
