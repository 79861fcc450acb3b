"""Sockets that a service listens on. Knows addresses; never what comes, and no framework."""

from __future__ import annotations

import socket

from maasdam.errors import InvalidInput

BACKLOG = 2048


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
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise InvalidInput(f"can't listen on {host} port {port}: {why}; stop what uses it or choose another {flag}") from error
    listener.setblocking(False)
    return listener
