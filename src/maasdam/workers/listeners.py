"""One address, a listener for each worker. Knows SO_REUSEPORT; never what comes.

The kernel spreads connections among the listeners by who asks from where. One that is closed resets what waits in it, so a
listener is kept open while its worker is replaced.
"""

from __future__ import annotations

import socket
import sys

from maasdam.api.listening import BACKLOG
from maasdam.errors import InvalidInput


def check_spread() -> None:
    """Raise InvalidInput where one address can't be shared by several listeners that each get their part."""
    if sys.platform != "linux":  # others have the option, and give all to one, or have it not
        raise InvalidInput(f"several workers on one address need Linux (SO_REUSEPORT), and this is {sys.platform}; start one")


def share(bound: socket.socket) -> None:
    """Let others of this user have the same address from now on; until now it was `bound`'s alone."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def spread(bound: socket.socket, count: int) -> list[socket.socket]:
    """So many listeners on the address of one that is bound, and does not listen yet; one that does is every worker's."""
    if bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return [bound, *(bound.dup() for _ in range(count - 1))]
    share(bound)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a service before may not be over yet
    listeners = [bound, *(_beside(bound) for _ in range(count - 1))]
    for one in listeners:
        one.listen(BACKLOG)
        one.setblocking(False)
    return listeners


def _beside(bound: socket.socket) -> socket.socket:
    one = socket.socket(bound.family, bound.type)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if bound.family == socket.AF_INET6:
        only = bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    one.bind(bound.getsockname())
    return one
