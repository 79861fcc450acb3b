"""Sockets that a service listens on. Knows addresses; never what comes, and no framework.

systemd's, else `uds`, else host and port -> Doors
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maasdam.errors import InvalidInput
from maasdam.operations.systemd import GRPC, inherited
from maasdam.settings import Settings

BACKLOG = 2048
LOOPBACK = ("localhost", "::1", "0:0:0:0:0:0:0:1")
LONGEST_PATH = 107
"""Of a Unix socket, bytes."""
MODE = re.compile("0?[0-7]{3}")
"""Permissions of owner, group and others."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Where callers come in."""

    http: list[socket.socket]
    """At least one."""
    grpc: socket.socket | None
    """Has an address that gRPC takes over; where it is passed on, others hold the socket too."""
    passes_on: bool = False
    """Whether what comes to gRPC's socket is passed on to gRPC, which takes no socket of somebody else's making."""

    @property
    def url(self) -> str:
        """Where HTTP is; `http` though it may be TLS."""
        return address_of(self.http[0])

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches all of them."""
        doors = [*self.http, *([] if self.grpc is None else [self.grpc])]
        return all(one.family == socket.AF_UNIX or is_loopback(one.getsockname()[0]) for one in doors)


async def accepting(protocol: Callable[[], asyncio.Protocol], one: socket.socket, **secure: Any) -> asyncio.AbstractServer:
    """Take connections from a listener, in this event loop. `secure`: of TLS, as the loop takes it."""
    loop = asyncio.get_running_loop()
    if one.family == socket.AF_UNIX:
        return await loop.create_unix_server(protocol, sock=one, backlog=BACKLOG, **secure)
    return await loop.create_server(protocol, sock=one, backlog=BACKLOG, **secure)


def address_of(one: socket.socket) -> str:
    """http://HOST:PORT, or unix:PATH."""
    name = one.getsockname()
    if one.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def opened_doors(settings: Settings, is_grpc_asked: bool, listens: bool, tell: Callable[[str], object]) -> Iterator[Doors]:
    """The doors of a service; a path is gone when the context ends. Where TCP is not to listen yet it has the address only.

    `tell` hears why there is no gRPC, where nobody asked for it. Raises InvalidInput.
    """
    given = inherited()
    if given:
        http = [one for name, one in given if name != GRPC]
        grpc = [one for name, one in given if name == GRPC]
        if not http or len(grpc) > 1:
            raise InvalidInput(
                f"systemd gave {len(http)} sockets for HTTP and {len(grpc)} for gRPC (FileDescriptorName={GRPC}); give one or "
                "more for HTTP, and one or none for gRPC"
            )
        yield Doors(http, grpc[0] if grpc else None, passes_on=True)
    elif settings.uds:
        path = Path(settings.uds).absolute()
        with bound_path(path, settings.uds_mode) as one:
            if not settings.grpc_port:
                yield Doors([one], None)
                return
            with bound_path(path.with_name(f"{path.name}.grpc"), settings.uds_mode) as other:
                yield Doors([one], other, passes_on=True)
    else:
        one = bound_socket(settings.host, settings.port, listens=listens)
        yield Doors([one], grpc_socket(settings, is_grpc_asked, tell, listens))


def grpc_socket(
    settings: Settings, is_asked: bool, tell: Callable[[str], object], listens: bool = True
) -> socket.socket | None:
    """What has the address of gRPC; None where there is to be none, or another program has the port that nobody chose, which
    `tell` hears of. Raises InvalidInput where another program has one that was chosen.
    """
    if not settings.grpc_port:
        return None
    try:
        return bound_socket(settings.host, settings.grpc_port, "--grpc-port", listens)
    except InvalidInput as error:
        if is_asked or settings.grpc_port != Settings().grpc_port:
            raise
        tell(f"No gRPC: {error}")
        return None


@contextmanager
def bound_path(path: Path, mode: str) -> Iterator[socket.socket]:
    """A Unix socket that listens at `path`, with these permissions in octal; removed when the context ends, if it is ours.

    One that a dead service left is replaced. Raises InvalidInput where somebody listens there, or it can't be made.
    """
    if not MODE.fullmatch(mode):
        raise InvalidInput(f"setting 'uds_mode' is '{mode}'; it takes permissions in octal, as 0600")
    permissions = int(mode, 8)
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise InvalidInput(f"the path of a socket has at most {LONGEST_PATH} bytes, and {path} has more; choose a shorter one")
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # or two that begin at once would take each other's away
            _clear(path)
            before = os.umask(0o777 & ~permissions)  # nobody gets in between
            try:
                one.bind(str(path))
            finally:
                os.umask(before)
            path.chmod(permissions)
            one.listen(BACKLOG)
        finally:
            os.close(folder)
    except InvalidInput:
        one.close()
        raise
    except OSError as error:
        one.close()
        raise InvalidInput(f"can't listen on {path}: {error.strerror or error}; choose another --uds") from error
    one.setblocking(False)
    made = path.stat()
    try:
        yield one
    finally:
        with suppress(OSError):
            if os.path.samestat(path.stat(), made):
                path.unlink()


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises InvalidInput."""
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise InvalidInput(f"{path} is there and is no socket; choose another --uds, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(1.0)
        try:
            asked.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise InvalidInput(f"{path} is in use, as far as can be told ({error.strerror or error})") from error
    raise InvalidInput(f"another service listens on {path}; stop it or choose another --uds")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bound_socket(host: str, port: int, flag: str = "--port", listens: bool = True) -> socket.socket:
    """A listening address; port 0 picks a free one. Raises InvalidInput when it is taken or not ours."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidInput(f"can't listen on {host}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if listens:
            listener.listen(BACKLOG)
        else:  # or others could listen there: two that both allow it may have an address, as long as neither listens
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise InvalidInput(f"can't listen on {host} port {port}: {why}; stop what uses it or choose another {flag}") from error
    listener.setblocking(False)
    return listener
