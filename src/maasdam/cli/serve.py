"""`maasdam serve`: the service, in the foreground."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maasdam.cli.output import reporting

if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import socket

    from maasdam.api.listening import Doors
    from maasdam.operations.service import Service
    from maasdam.operations.systemd import Notifier
    from maasdam.operations.workspace import Workspace


_OPEN = "only on a loopback address, and {} is not one: anyone could use this service without a key"


def serve(
    host: str | None = typer.Option(None, "--host", help="Address to listen on; default 127.0.0.1."),
    port: int | None = typer.Option(None, "--port", min=0, max=65535, help="HTTP port; default 8080, 0 picks a free one."),
    grpc_port: int | None = typer.Option(
        None, "--grpc-port", min=0, max=65535, help="gRPC port on the same address; default 8081, 0 is none."
    ),
    uds: Path | None = typer.Option(None, "--uds", help="Listen on a Unix socket instead of ports; gRPC at PATH.grpc."),
    tls_cert: Path | None = typer.Option(None, "--tls-cert", help="Speak TLS: a certificate with its chain, in PEM."),
    tls_key: Path | None = typer.Option(None, "--tls-key", help="Its private key, in PEM and unencrypted."),
    workers: int | None = typer.Option(None, "--workers", min=1, max=256, help="Processes that answer; default 1."),
    config: Path | None = typer.Option(None, "--config", help="A maasdam.toml to read the settings from."),
    no_auth: bool = typer.Option(False, "--no-auth", help="Answer without keys; only on a loopback address or a Unix socket."),
) -> None:
    """Serve every model that is deployed, and follow what is deployed later. SIGTERM drains and stops.

    Example: maasdam serve --port 8080
    """
    with reporting():
        from maasdam import settings

        flags = {"host": host, "port": port, "grpc_port": grpc_port, "workers": workers}
        named = {name: None if path is None else str(path) for name, path in (("tls_cert", tls_cert), ("tls_key", tls_key))}
        resolved = settings.load({**flags, **named, "uds": None if uds is None else str(uds)}, file=config)
        if uds is not None and (host, port, grpc_port or None) != (None, None, None):
            raise typer.BadParameter("a Unix socket is instead of --host, --port and --grpc-port", param_hint="--uds")

        if resolved.workers > 1:
            from maasdam.workers.listeners import check_spread

            check_spread()
            from maasdam.workers.start import ForkServer  # with all that it shares with this process

            forks = ForkServer()

        from maasdam.api.listening import is_loopback, opened_doors
        from maasdam.api.tls import TlsPair
        from maasdam.operations.address import announced
        from maasdam.operations.leaving import leave
        from maasdam.operations.requests import log_file
        from maasdam.operations.systemd import Notifier, is_given
        from maasdam.operations.workspace import Workspace
        from maasdam.telemetry.logs import logging_to

        if no_auth and not (resolved.uds or is_given() or is_loopback(resolved.host)):
            raise typer.BadParameter(_OPEN.format(resolved.host), param_hint="--no-auth")
        TlsPair.of(resolved)  # what is wrong with it is said before anything begins
        is_alone = resolved.workers <= 1
        kept = log_file(resolved)
        between = (kept.path if kept else resolved.home / "logs" / "maasdam.log").with_suffix(".stderr")
        notifier = Notifier()
        with opened_doors(resolved, grpc_port is not None, is_alone, partial(typer.echo, err=True)) as doors:
            if no_auth and not doors.is_local:
                raise typer.BadParameter(_OPEN.format(doors.url), param_hint="--no-auth")
            url, certificate = doors.url, ""
            if resolved.tls_cert and not url.startswith("unix:"):
                url, certificate = url.replace("http:", "https:", 1), str(Path(resolved.tls_cert).absolute())
            with (
                logging_to(resolved.log_level, kept, between),
                Workspace.open(resolved, config) as workspace,
                announced(resolved.home, _reachable(url), certificate) as here,
            ):
                who = "without keys, from this machine only" if no_auth else "with keys (maasdam keys create NAME)"
                typer.echo(f"Maasdam listens on {url}, {who}. Ctrl-C stops it.")
                if doors.grpc is not None:
                    typer.echo(_told_of_grpc(doors.grpc))
                if is_alone:
                    _serve(workspace, not no_auth, here.secret, doors, notifier)
                else:
                    from maasdam.workers.start import supervise

                    supervise(
                        workspace,
                        config,
                        has_keys=not no_auth,
                        secret=here.secret,
                        doors=doors,
                        notifier=notifier,
                        tell=_tell_of,
                        forks=forks,
                    )
        leave()


def _serve(workspace: Workspace, has_keys: bool, secret: str, doors: Doors, notifier: Notifier) -> None:
    """In this process."""
    from maasdam.api.http import serve
    from maasdam.operations.service import open_service
    from maasdam.tasks.torchless import without_torch

    without_torch()  # before anything imports transformers; engines that need torch ask for it
    service = open_service(workspace, operators_secret=secret)
    serve(service, has_keys, doors, lambda: _tell(service), notifier=notifier)


def _told_of_grpc(door: socket) -> str:
    from maasdam.api.listening import address_of

    where = address_of(door)
    return (
        f"gRPC is at {where}." if where.startswith("unix:") else f"gRPC is at port {door.getsockname()[1]} of the same address."
    )


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
