"""`maasdam serve`: the service, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maasdam.cli.output import reporting

if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import socket

    from maasdam.operations.service import Service
    from maasdam.operations.workspace import Workspace
    from maasdam.settings import Settings

LOOPBACK = ("localhost", "::1", "0:0:0:0:0:0:0:1")


def serve(
    host: str | None = typer.Option(None, "--host", help="Address to listen on; default 127.0.0.1."),
    port: int | None = typer.Option(None, "--port", min=0, max=65535, help="HTTP port; default 8080, 0 picks a free one."),
    grpc_port: int | None = typer.Option(
        None, "--grpc-port", min=0, max=65535, help="gRPC port on the same address; default 8081, 0 is none."
    ),
    workers: int | None = typer.Option(None, "--workers", min=1, max=256, help="Processes that answer; default 1."),
    config: Path | None = typer.Option(None, "--config", help="A maasdam.toml to read the settings from."),
    no_auth: bool = typer.Option(False, "--no-auth", help="Answer without keys; only on a loopback address."),
) -> None:
    """Serve every model that is deployed, and follow what is deployed later. SIGTERM drains and stops.

    Example: maasdam serve --port 8080
    """
    with reporting():
        from maasdam import settings

        resolved = settings.load({"host": host, "port": port, "grpc_port": grpc_port, "workers": workers}, file=config)
        if no_auth and not is_loopback(resolved.host):
            raise typer.BadParameter(
                f"only on a loopback address, and {resolved.host} is not one: anyone could use this service without a key",
                param_hint="--no-auth",
            )

        if resolved.workers > 1:
            from maasdam.workers.listeners import check_spread

            check_spread()

        from maasdam.api.listening import bound_socket
        from maasdam.operations.address import announced
        from maasdam.operations.leaving import leave
        from maasdam.operations.requests import log_file
        from maasdam.operations.workspace import Workspace
        from maasdam.telemetry.logs import logging_to

        is_alone = resolved.workers <= 1
        listener = bound_socket(resolved.host, resolved.port, listens=is_alone)
        address, bound_port = listener.getsockname()[:2]
        grpc = _grpc_listener(resolved, is_asked=grpc_port is not None)
        url = f"http://[{address}]:{bound_port}" if ":" in address else f"http://{address}:{bound_port}"
        kept = log_file(resolved)
        between = (kept.path if kept else resolved.home / "logs" / "maasdam.log").with_suffix(".stderr")
        with (
            logging_to(resolved.log_level, kept, between),
            Workspace.open(resolved, config) as workspace,
            announced(resolved.home, _reachable(url)) as here,
        ):
            who = "without keys, from this machine only" if no_auth else "with keys (maasdam keys create NAME)"
            typer.echo(f"Maasdam listens on {url}, {who}. Ctrl-C stops it.")
            if grpc is not None:
                typer.echo(f"gRPC is at port {resolved.grpc_port} of the same address.")
            if is_alone:
                _serve(workspace, not no_auth, here.secret, listener, grpc)
            else:
                from maasdam.workers.start import supervise

                supervise(
                    workspace,
                    config,
                    has_keys=not no_auth,
                    secret=here.secret,
                    bound=listener,
                    grpc=grpc,
                    on_ready=_tell_of,
                )
        leave()


def _serve(workspace: Workspace, has_keys: bool, secret: str, listener: socket, grpc: socket | None) -> None:
    """In this process."""
    from maasdam.api.http import serve
    from maasdam.operations.service import open_service
    from maasdam.tasks.torchless import without_torch

    without_torch()  # before anything imports transformers; engines that need torch ask for it
    service = open_service(workspace, operators_secret=secret)
    serve(service, has_keys, [listener], lambda: _tell(service), grpc)


def _grpc_listener(resolved: Settings, is_asked: bool) -> socket | None:
    """Where to listen for gRPC; None where there is to be none, or another program has the port that nobody chose.

    Raises InvalidInput where another program has one that was chosen.
    """
    from maasdam.api.listening import bound_socket
    from maasdam.errors import InvalidInput

    if not resolved.grpc_port:
        return None
    try:
        return bound_socket(resolved.host, resolved.grpc_port, "--grpc-port", listens=resolved.workers <= 1)
    except InvalidInput as error:
        if is_asked or resolved.grpc_port != type(resolved)().grpc_port:
            raise
        typer.echo(f"No gRPC: {error}", err=True)
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    import ipaddress

    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reachable(url: str) -> str:
    """Where this machine reaches a service that listens on every address."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _tell(service: Service) -> None:
    from maasdam.operations.deployments import served_versions

    _tell_of([(one.name, one.version.task, one.version.engine, one.state, one.reason) for one in served_versions(service)])


def _tell_of(versions: Sequence[tuple[str, str | None, str, str, str | None]]) -> None:
    if not versions:
        typer.echo("No model is deployed yet: maasdam deploy NAME brings one up in this service.")
    for name, task, engine, state, reason in versions:
        how = "asleep until it is asked for" if state == "asleep" else state
        typer.echo(f"  {name}  " + (f"FAILED: {reason}" if state == "failed" else f"{how} ({task or 'tensors'}, {engine})"))
