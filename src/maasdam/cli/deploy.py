"""`maasdam deploy`, `undeploy`, `status`: desired state. A running service follows within a second."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from maasdam.cli.output import JSON, emit, in_workspace, reporting, table


def deploy(
    name: str = typer.Argument(help="NAME (follows its alias prod), or NAME:VERSION (stays)."),
    replicas: int = typer.Option(1, "--replicas", min=1, help="Running copies."),
    traffic: list[str] = typer.Option([], "--traffic", help="VERSION=PERCENT of the requests; may be given more than once."),
    shadow: int = typer.Option(None, "--shadow", help="Not yet supported.", hidden=True),
    on_demand: bool = typer.Option(False, "--on-demand", help="Load it at the first request, not at the start."),
    pin: bool = typer.Option(False, "--pin", help="Never let it leave, not even where memory_budget is short."),
    idle: float = typer.Option(
        None, "--idle", min=0.001, metavar="SECONDS", help="Unload it after so long without a request; the next one wakes it."
    ),
    isolate: bool = typer.Option(False, "--isolate", help="Run each copy in a process of its own."),
    prefix_cache: str = typer.Option(
        None, "--prefix-cache", metavar="key|shared", help="Compute prompts that begin alike once: one key's, or anybody's."
    ),
    prompt_lookup: int = typer.Option(
        None, "--prompt-lookup", metavar="N", help="Guess N tokens ahead from what stands before: for answers that repeat."
    ),
    logprobs: int = typer.Option(
        None,
        "--logprobs",
        min=1,
        max=20,
        metavar="N",
        help="Tell the N likeliest tokens in each place of a text, for more memory.",
    ),
    trust: bool = typer.Option(False, "--trust", help="Take the report of an imported version at its word."),
    upstream: str = typer.Option(
        None, "--upstream", metavar="URL", help="Where a server that speaks the OpenAI API runs it, as http://host:8000/v1."
    ),
    key_env: str = typer.Option(None, "--key-env", metavar="VAR", help="The environment variable with that server's key."),
    upstream_model: str = typer.Option(
        None, "--upstream-model", metavar="ITS_NAME", help="What that server calls it; by default NAME, or its only model."
    ),
    task: str = typer.Option(None, "--task", help="What that server's model does, where it does not say so itself."),
    as_json: bool = JSON,
) -> None:
    """Bring a model up in the service, now and after every restart; with --upstream one that another server runs.

    Example: maasdam deploy photos --traffic 2=10
    """
    if shadow is not None:
        raise typer.BadParameter("shadow traffic is not supported yet; leave it out", param_hint="--shadow")
    if pin and (on_demand or idle is not None):
        raise typer.BadParameter("what is pinned never leaves; leave the other out", param_hint="--pin")
    shares = dict(_share(text) for text in traffic)
    mode = "pin" if pin else "on-demand" if on_demand else "always"
    given = {"prefix_cache": prefix_cache, "prompt_lookup": prompt_lookup, "logprobs": logprobs}
    options = {option: value for option, value in given.items() if value is not None}
    if upstream is None and (key_env or upstream_model or task):
        raise typer.BadParameter("--key-env, --upstream-model and --task go with --upstream", param_hint="--upstream")
    if upstream is not None and (replicas != 1 or mode != "always" or idle is not None or isolate or options):
        raise typer.BadParameter("another server runs it: how, and how many copies, is told there", param_hint="--upstream")
    from maasdam.operations.release import deploy
    from maasdam.operations.upstreams import registered

    with in_workspace() as workspace:
        if upstream is not None:
            name = registered(workspace, name, upstream, key_env, upstream_model, task)
        way = {"mode": mode, "idle_seconds": idle, "isolate": isolate, "options": options}
        deployment = deploy(workspace, name, replicas, shares, trust, **way)
        what = f"version {deployment.version}" if deployment.version else "its alias prod, else the newest that passed"
        how = f"{deployment.replicas} replica(s), {_memory(mode, idle, isolate, options)}"
        emit(asdict(deployment), as_json, f"{deployment.model} is deployed: {what}, {how}")


def undeploy(name: str = typer.Argument(help="NAME"), as_json: bool = JSON) -> None:
    """Take a model out of the service; requests in flight finish.

    Example: maasdam undeploy photos
    """
    from maasdam.operations.release import undeploy

    with in_workspace() as workspace:
        undeploy(workspace, name)
        emit({"undeployed": name}, as_json, f"{name} is not deployed any more")


def status(as_json: bool = JSON) -> None:
    """Say what is deployed, what the running service makes of it, and which builds run or were killed.

    This home's service is found wherever it listens, and asked with the rights of whoever may read the home. Any other is
    looked for at the settings' host and port; where it asks for keys, MAASDAM_API_KEY is one of scope deploy.

    Example: maasdam status
    """
    with reporting():
        import os

        from maasdam import settings
        from maasdam.operations import release
        from maasdam.operations.workspace import Workspace

        resolved = settings.load()
        with Workspace.open(resolved) as workspace:
            rows = release.status(workspace)
            builds = release.unfinished(workspace)
        service = release.running(resolved, os.environ.get("MAASDAM_API_KEY"))
        serving = service.pop("serving")
        for row in rows:
            row["serving"] = None if serving is None else serving.get(row["model"], [])
            for copy in row["serving"] or ():
                if copy["version"] == row["version"]:
                    row |= {key: copy[key] for key in ("batching", "batching_how") if key in copy}
        emit({"deployments": rows, "service": service, "builds": builds}, as_json, lambda: _text(rows, service, builds))


def _text(rows: list[dict[str, Any]], service: dict[str, Any], builds: list[dict[str, Any]]) -> str:
    heads = ("model", "version", "follows", "task", "format", "engine", "batching", "replicas", "traffic")
    cells = [
        (
            *(row[head] for head in heads),
            _memory(row["mode"], row["idle_seconds"], row["isolate"], row["options"]),
            _states(row["serving"]),
        )
        for row in rows
    ]
    hint = f" ({service['hint']})" if service["hint"] else ""
    what = table((*heads, "in memory", "now"), cells) if rows else "Nothing is deployed; see: maasdam deploy"
    lines = [what, "", f"service {service['url']}: {service['state']}{hint}"]
    if service.get("memory_budget_bytes"):
        held = sum(copy.get("memory_bytes") or 0 for row in rows for copy in row["serving"] or ())
        lines.append(f"models hold {held / 1e6:,.0f} MB of {service['memory_budget_bytes'] / 1e6:,.0f} (memory_budget)")
    lines += [f"build of {b['name']}: {b['state']}, {b['error'] or b['stage'] or 'begins'}" for b in builds]
    return "\n".join(lines)


def _memory(mode: str, idle: float | None, isolate: bool, options: dict[str, Any] | None) -> str:
    """When its replicas are in memory, and in whose; and what is asked of its engine."""
    asked = [f"{name.replace('_', ' ')} {value}" for name, value in (options or {}).items()]
    return ", ".join([mode, *([f"idle {idle:g} s"] if idle is not None else []), *["isolated"] * isolate, *asked])


def _states(serving: list[dict[str, Any]] | None) -> str | None:
    if serving is None:
        return None
    return ", ".join(f"{copy['version']} {copy['state']}{_megabytes(copy)}" for copy in serving) or "not up"


def _megabytes(copy: dict[str, Any]) -> str:
    held, told = copy.get("memory_bytes"), copy.get("likeliest_bytes")
    of_it = "" if told is None else f" ({told / 1e6:,.0f} MB for --logprobs)"
    return "" if held is None else f" {held / 1e6:,.0f} MB{of_it}"


def _share(text: str) -> tuple[int, float]:
    version, _, percent = text.partition("=")
    try:
        return int(version), float(percent)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not VERSION=PERCENT, such as 2=10", param_hint="--traffic") from None
