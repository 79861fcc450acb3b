"""`maasdam serve`: the service, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maasdam.cli.output import reporting

if TYPE_CHECKING:
    from socket import socket

    from maasdam.operations.service import Service
    from maasdam.settings import Settings

LOOPBACK = ("localhost", "::1", "0:0:0:0:0:0:0:1")


def serve(
    host: str | None = typer.Option(None, "--host", help="Address to listen on; default 127.0.0.1."),
    port: int | None = typer.Option(None, "--port", min=0, max=65535, help="HTTP port; default 8080, 0 picks a free one."),
    grpc_port: int | None = typer.Option(
        None, "--grpc-port", min=0, max=65535, help="gRPC port on the same address; default 8081, 0 is none."
    ),
    workers: int = typer.Option(1, "--workers", min=1, help="Processes; only 1 is supported yet."),
    config: Path | None = typer.Option(None, "--config", help="A maasdam.toml to read the settings from."),
    no_auth: bool = typer.Option(False, "--no-auth", help="Answer without keys; only on a loopback address."),
) -> None:
    """Serve every model that is deployed, and follow what is deployed later. SIGTERM drains and stops.

    Example: maasdam serve --port 8080
    """
    if workers > 1:
        raise typer.BadParameter("more than one worker is not supported yet; start one", param_hint="--workers")
    with reporting():
        from maasdam import settings

        resolved = settings.load({"host": host, "port": port, "grpc_port": grpc_port}, file=config)
        if no_auth and not is_loopback(resolved.host):
            raise typer.BadParameter(
                f"only on a loopback address, and {resolved.host} is not one: anyone could use this service without a key",
                param_hint="--no-auth",
            )

        from maasdam.api.http import serve
        from maasdam.api.listening import bound_socket
        from maasdam.operations.address import announced
        from maasdam.operations.leaving import leave
        from maasdam.operations.requests import log_file
        from maasdam.operations.service import open_service
        from maasdam.operations.workspace import Workspace
        from maasdam.tasks.torchless import without_torch
        from maasdam.telemetry.logs import logging_to

        without_torch()  # before anything imports transformers; engines that need torch ask for it
        listener = bound_socket(resolved.host, resolved.port)
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
            service = open_service(workspace, operators_secret=here.secret)
            who = "without keys, from this machine only" if no_auth else "with keys (maasdam keys create NAME)"
            typer.echo(f"Maasdam listens on {url}, {who}. Ctrl-C stops it.")
            if grpc is not None:
                typer.echo(f"gRPC is at port {resolved.grpc_port} of the same address.")
            serve(service, not no_auth, [listener], lambda: _tell(service), grpc)
        leave()


def _grpc_listener(resolved: Settings, is_asked: bool) -> socket | None:
    """Where to listen for gRPC; None where there is to be none, or another program has the port that nobody chose.

    Raises InvalidInput where another program has one that was chosen.
    """
    from maasdam.api.listening import bound_socket
    from maasdam.errors import InvalidInput

    if not resolved.grpc_port:
        return None
    try:
        return bound_socket(resolved.host, resolved.grpc_port, "--grpc-port")
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

    versions = served_versions(service)
    if not versions:
        typer.echo("No model is deployed yet: maasdam deploy NAME brings one up in this service.")
    for one in versions:
        state = "asleep until it is asked for" if one.state == "asleep" else one.state
        how = f"{state} ({one.version.task or 'tensors'}, {one.version.engine})"
        if not one.is_answering:
            how = f"FAILED: {one.reason}"
        typer.echo(f"  {one.name}  {how}")
