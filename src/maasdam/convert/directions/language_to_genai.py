"""Hugging Face causal language model -> OpenVINO GenAI folder: a stateful model and its tokenizer as OpenVINO models.

Knows how a decoder with a key-value cache becomes one stateful graph. Refuses what the graph could not hold: windows that the
engine would not see, architectures whose graph does not compute the same.

    transformers --trace--> past in, present out --beam_idx Gather, MakeStateful--> openvino_model.xml
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.convert.directions.pytorch_to_onnx import quiet_exporter
from maasdam.convert.directions.tokenizer_to_openvino import write_tokenizer
from maasdam.convert.modules import called, has_fused_attention, load_transformers
from maasdam.convert.networks import context_of, decoder, refuse_inexpressible, still_positions, windows_of
from maasdam.convert.proof.language_parity import check_parity
from maasdam.core import Artifact
from maasdam.errors import MaasdamError, Unsupported

if TYPE_CHECKING:
    import openvino as ov

MODEL_FILE = "openvino_model.xml"
AS_IT_IS = "it can be built with --to pytorch, as it is"
WINDOW_INPUT = 10
"""Of OpenVINO's PagedAttentionExtension: how many tokens it looks back, 0 for all."""


def write(source: Artifact, out: Path) -> None:
    """Write the model, the tokenizer and the detokenizer into `out`. A language model has no signature of tensors.

    Where one graph is the model's only up to fewer tokens than its context, the config there says so many.

    Raises Unsupported for an architecture this cannot express, or whose logits then differ from transformers'.
    """
    import openvino as ov

    if not has_fused_attention(source):
        raise Unsupported(
            f"{called(source)} has no fused attention in transformers; it can't run on OpenVINO GenAI; {AS_IT_IS}"
        )
    model = load_transformers(source, "sdpa")
    refuse_inexpressible(model.config)
    try:
        with still_positions(model):
            graph = _stateful_graph(model)
    except MaasdamError:
        raise
    except Exception as error:  # the tracer and OpenVINO raise anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("-- ")), lines[-1] if lines else type(error).__name__)
        raise Unsupported(
            f"{type(model).__name__} does not convert to OpenVINO: {reason.removeprefix('-- ')[:300]}; {AS_IT_IS}"
        ) from error
    ov.save_model(graph, out / MODEL_FILE, compress_to_fp16=False)
    write_tokenizer(source.path, out)
    _write_context(model.config, source.path, out)
    check_parity(model, out / MODEL_FILE)
    _check_windows(model.config, out / MODEL_FILE)


def _write_context(config: Any, source: Path, out: Path) -> None:
    context, text = context_of(config), config.get_text_config(decoder=True)
    if context == getattr(text, "max_position_embeddings", None):
        return
    told = json.loads((source / "config.json").read_text())
    inner = told.get("text_config", told)
    (inner if "max_position_embeddings" in inner else told)["max_position_embeddings"] = context
    (out / "config.json").write_text(json.dumps(told, indent=2))


def _check_windows(config: Any, model_file: Path) -> None:
    """Raise Unsupported where the engine would attend to other tokens than the model.

    GenAI puts attention over pages of its cache in place of the graph's, and a window in place of a mask that it knows for one:
    else it attends to everything, without a word.
    """
    import openvino as ov
    from openvino._offline_transformations import paged_attention_transformation

    core = ov.Core()
    graph = core.read_model(model_file)
    paged_attention_transformation(graph)
    paged = [node for node in graph.get_ordered_ops() if node.get_type_name() == "PagedAttentionExtension"]
    found = []
    for node in paged:
        compiled = core.compile_model(ov.Model([node.input_value(WINDOW_INPUT)], []), "CPU")
        found.append(int(np.asarray(compiled({})[0]).reshape(-1)[0]) or None)
    wanted = list(windows_of(config))
    if found != wanted:
        raise Unsupported(f"{config.model_type} attends within windows {wanted}, its layers in OpenVINO GenAI within {found}")


def _stateful_graph(model: Any) -> ov.Model:
    """Trace the decoder and turn its past into the graph's own state, reordered by beam_idx."""
    import openvino as ov
    import torch
    from openvino._offline_transformations import apply_make_stateful_transformation

    with torch.no_grad():
        cache = model(input_ids=torch.ones(2, 3, dtype=torch.int64), use_cache=True).past_key_values
        past = [(torch.randn_like(layer.keys), torch.randn_like(layer.values)) for layer in cache.layers]
        example = {
            "input_ids": torch.ones(2, 2, dtype=torch.int64),
            "attention_mask": torch.ones(2, 5, dtype=torch.int64),
            "position_ids": torch.tensor([[3, 4], [3, 4]]),
            "past": past,
        }
        with quiet_exporter():
            graph = ov.convert_model(decoder(model), example_input=example)
    pairs = _name_ports(graph, [(k.shape, v.shape) for k, v in past])
    _reorder_by_beam(graph, list(pairs))
    apply_make_stateful_transformation(graph, pairs)
    _start_empty(graph)
    graph.validate_nodes_and_infer_types()
    return graph


def _name_ports(graph: ov.Model, past: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Mapping[str, str]:
    """Name all inputs and outputs; returns past name -> present name. The tracer drops inputs the model never reads."""
    import openvino as ov

    plain = len(graph.inputs) - 2 * len(past)
    if plain not in (2, 3) or len(graph.outputs) != 1 + 2 * len(past):
        raise Unsupported(
            f"the traced decoder has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs for {len(past)} layers; "
            "this architecture does not convert to OpenVINO GenAI"
        )
    for port, name in zip(graph.inputs[:plain], ("input_ids", "attention_mask", "position_ids"), strict=False):
        _rename(port, name, [-1, -1])
    graph.outputs[0].get_tensor().set_names({"logits"})
    pairs = {}
    for i, shapes in enumerate(past):
        for j, (kind, shape) in enumerate(zip(("key", "value"), shapes, strict=True)):
            old, new = f"past_key_values.{i}.{kind}", f"present.{i}.{kind}"
            port = graph.inputs[plain + 2 * i + j]
            port.get_node().set_element_type(ov.Type.f32)
            _rename(port, old, [-1, shape[1], -1, shape[3]])
            graph.outputs[1 + 2 * i + j].get_tensor().set_names({new})
            pairs[old] = new
    graph.validate_nodes_and_infer_types()
    return pairs


def _rename(port: Any, name: str, shape: list[int]) -> None:
    import openvino as ov

    port.get_tensor().set_names({name})
    port.get_node().set_friendly_name(name)
    port.get_node().set_partial_shape(ov.PartialShape(shape))


def _reorder_by_beam(graph: ov.Model, names: Sequence[str]) -> None:
    """Every past tensor is read through Gather(past, beam_idx) on the batch: GenAI's own convention."""
    import openvino as ov
    from openvino import opset13 as ops

    beam = ops.parameter(ov.PartialShape([-1]), ov.Type.i32, name="beam_idx")
    beam.output(0).get_tensor().add_names({"beam_idx"})
    graph.add_parameters([beam])
    for name in names:
        port = graph.input(name)
        users = port.get_target_inputs()
        gathered = ops.gather(port.get_node().output(0), beam, ops.constant(0, ov.Type.i64))
        for user in users:
            user.replace_source_output(gathered.output(0))
    graph.validate_nodes_and_infer_types()


def _start_empty(graph: ov.Model) -> None:
    """The state begins as [batch, heads, 0, width] with the batch of input_ids."""
    import openvino as ov
    from openvino import opset13 as ops

    shape = ops.shape_of(graph.input("input_ids"), output_type="i64")
    batch = ops.gather(shape, ops.constant([0], ov.Type.i64), ops.constant(0, ov.Type.i64))
    for node in graph.get_ops():
        if node.get_type_name() != "ReadValue":
            continue
        axes = list(node.get_output_partial_shape(0))[1:]
        sizes = [ops.constant(np.array([a.get_length() if a.is_static else 0], np.int64)) for a in axes]
        zero = ops.constant(0.0, dtype=node.get_output_element_type(0))
        node.set_arguments([ops.broadcast(zero, ops.concat([batch, *sizes], axis=0))])
