"""What the clients talk to: a text model whose template knows tools, and encoders of texts."""

from __future__ import annotations

from pathlib import Path

from maasdam.convert import convert
from maasdam.convert.directions.companions import copy_companions
from maasdam.core import Artifact
from maasdam.operations.workspace import Workspace
from maasdam.sources import ingest
from tests.engines import tiny_language_model
from tests.field import encoders
from tests.served import add

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ '<user>' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    '{{ \'call: <tool_call>\\n{"name": …, "arguments": …}\\n</tool_call>\' + eos_token }}{% endif %}'
    "{% for m in messages %}{{ '<user>' + m['role'] + ':' + (m['content'] or '') }}{% for c in m.tool_calls or [] %}"
    "{{ '<tool_call>' + (c.function.arguments | tojson) }}{% endfor %}{{ eos_token }}{% endfor %}{{ '<assistant>' }}"
)


def deployed(workspace: Workspace, folder: Path) -> None:
    """`tiny`, `embedder` and `reranker` in a workspace; weights are random, so that words mean nothing and forms are kept."""
    control = ("<tool_call>", "</tool_call>")
    source = tiny_language_model.huggingface(folder / "source", context=2048, control=control, template=TEMPLATE)
    add(workspace, "tiny", tiny_language_model.genai(source, folder / "genai"))
    flags = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    encoders.make(folder / "bert", "Bert")
    encoders.sentences(folder / "bert", ("Pooling", flags, {}), ("Normalize", {}, {}))
    _add_encoder(workspace, "embedder", folder / "bert")
    encoders.make(folder / "ranking", "Bert", "ForSequenceClassification", num_labels=1)
    _add_encoder(workspace, "reranker", folder / "ranking")


def _add_encoder(workspace: Workspace, name: str, folder: Path) -> None:
    source, out = ingest(str(folder), workspace.store), folder / "onnx"
    out.mkdir()
    made = convert(source, "onnx", out)
    copy_companions(source.path, out)
    add(workspace, name, Artifact("", out, "onnx", "onnx", source.task, "onnxruntime", made.signature, 1))
