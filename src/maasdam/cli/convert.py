"""`maasdam convert`: how a conversion is asked for and how it looks. The work is done in operations.convert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from maasdam.cli.output import JSON, emit, progress_bar, reporting, table


@reporting()
def convert(
    source: str = typer.Argument(..., help="A path, or hf:org/name.", show_default=False),
    to: str = typer.Option(..., "--to", help="onnx, pytorch, tensorflow or openvino."),
    out: Path = typer.Option(..., "-o", "--out", help="The folder to make; it appears only when the conversion is proven."),
    processor: Path | None = typer.Option(None, "--processor", help="A Hugging Face folder with the processor and the labels."),
    data: Path | None = typer.Option(None, "--data", help="Real inputs to compare on too; labels are not read."),
    task: str | None = typer.Option(None, "--task", help="Hugging Face's name of the task; default: what the source says."),
    part: str | None = typer.Option(
        None, "--part", help="encoder or decoder: one network of a model that generates, its cache as tensors."
    ),
    trust: bool = typer.Option(False, "--trust", help="You know who made it: lift the risks that can be lifted."),
    as_json: bool = JSON,
) -> None:
    """Convert a model to another format, with a certificate.

    Source and result run on their own engines over the same inputs; where they differ, nothing is written. Names and
    dynamic axes are kept. Writes model.onnx, model.pt2, saved_model.pb or model.xml beside certificate.json. A language
    model becomes its decoder (past_key_values.N.key in, present.N.key out), save for OpenVINO, where it becomes a GenAI
    folder; Whisper is an encoder and a decoder, each taken with --part, save for PyTorch, where it becomes a CTranslate2
    folder.

    Example: maasdam convert hf:google/mobilenet_v2_1.0_224 --to onnx -o mobilenet-onnx
    """
    from maasdam import settings
    from maasdam.operations.convert import convert_model
    from maasdam.operations.limits import step_limits

    limits = step_limits(settings.load())
    with progress_bar() as progress:
        document = convert_model(
            source, to, out, processor=processor, data=data, task=task, part=part, trust=trust, limits=limits, progress=progress
        )
    emit(document, as_json, lambda: _text(document))


def _text(document: dict[str, Any]) -> str:
    """Where it is and what was proven."""
    certificate = document["certificate"]
    lines = [f"{document['path']}  {document['format']} ({document['layout']})  {document['digest']}", ""]
    rows = [
        (o["name"], o["max_abs_diff"], o["max_rel_diff"], f"{o['cosine']:.9f}", o["limit"], o["spread"])
        for o in certificate["outputs"]
    ]
    lines.append(table(("output", "max diff", "relative", "cosine", "allowed", "varies by"), rows))
    tokens = certificate["tokens"]
    if tokens and "agreed" in tokens:
        of = f"{tokens['agreed']} of {tokens['compared']} ({tokens['prompts']} prompts, {tokens['ties']} ties)"
        lines += ["", f"greedy tokens equal: {of}"]
    seconds = certificate["seconds"]
    lines += [
        "",
        f"compared on {_count(certificate)} batches, {certificate['real_inputs']} of them real; "
        f"converted in {seconds['convert']:.1f} s, proven in {seconds['certify']:.1f} s",
        *_notes(certificate),
    ]
    return "\n".join(lines)


def _count(certificate: dict[str, Any]) -> int:
    return sum(certificate["tried"].values()) or len(certificate["cases"])


def _notes(certificate: dict[str, Any]) -> list[str]:
    """What the certificate does not reach, a line each."""
    lines = []
    conditions = certificate.get("conditions") or {"never_taken": []}
    for each in conditions["never_taken"]:
        how = (
            "no input was found that makes it"
            if conditions["are_watched"]
            else "it can't be watched in this format, so maybe not"
        )
        lines.append(f"condition '{each['condition']}': {how} {' or '.join(each['never'])}; --data with such inputs proves it")
    for output in certificate["outputs"]:
        for axis, still in output.get("still", {}).items():
            lines.append(
                f"output '{output['name']}': {still['count']} of {still['of']} along axis {axis} were the same for every "
                "input, so nothing is known of them; --data with inputs that they answer to proves them"
            )
    if refused := certificate.get("lengths", {}).get("refused_by_the_candidate"):
        lines.append(f"taken by the source and refused in words by the conversion: {', '.join(refused)}")
    if apart := [each["inputs"] for each in certificate.get("beyond", []) if not each["agrees"]]:
        lines.append(f"not the same for {', '.join(apart)}: the certificate does not hold there")
    if late := certificate.get("left_out_for_time"):
        lines.append(f"left out for want of time: {', '.join(late)}")
    settings = certificate.get("settings") or {"engine_defaults_agree": True, "named": {}}
    if not settings["engine_defaults_agree"]:
        named = ", ".join(f"{name}={value}" for name, value in settings["named"].items())
        lines.append(
            f"holds with {named}: open the file so, since the engine's own choice on this processor computes more coarsely"
        )
    return lines
