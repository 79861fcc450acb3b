"""What a request may say: a field that nobody reads is refused by its name, never ignored. Knows names; never meanings.

A caller who misspells `top_k` must hear of it, not get five labels. Fields that ask for nothing may be there: clients send
them by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.routing import APIRoute

from maasdam.errors import InvalidField

UNKNOWN = "unknown_parameter"
_NONE = "; there are none here"


def check_known(given: Iterable[str], known: Iterable[str], what: str = "field", where: str = "") -> None:
    """Raise InvalidField for the first of `given` that is not among `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            param = f"{where}.{name}" if where else name
            there = f"; those here are: {', '.join(known)}" if known else _NONE
            raise InvalidField(f"unknown {what} '{param[:100]}'{there}", param[:100], UNKNOWN)


def check_neutral(
    given: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], where: str = "", advice: str = "leave it out"
) -> None:
    """Raise InvalidField for a field of `given` that this service can't honour and that asks for something.

    `neutral`: names of such fields -> the values that ask for nothing; null never does. Fields of other names pass.
    """
    for name, value in given.items():
        if value is None or name not in neutral:
            continue
        if not any(value == nothing and type(value) is type(nothing) for nothing in neutral[name]):
            param = f"{where}.{name}" if where else name
            raise InvalidField(f"'{param}' is not supported; {advice}", param, "unsupported_parameter")


def check_text(given: str, name: str) -> None:
    """Raise InvalidField for a text without a character."""
    if not given:
        raise InvalidField(f"'{name}' is empty; send at least one character", name)


def check_query(query: bytes) -> None:
    """The same for a route that reads no query."""
    if query:
        check_known((name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)), (), "query parameter")


async def only_known(request: Request) -> None:
    """For every route of the framework: refuse what its query and its form hold beyond what the route declares."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    declared = route.dependant
    check_known(request.query_params, [field.alias for field in declared.query_params], "query parameter")
    if request.headers.get("content-type", "").startswith("multipart/") and declared.body_params:
        form = await request.form()
        check_known(form.keys(), [field.alias for field in declared.body_params], "form field")
        names = [name for name, _ in form.multi_items() if not name.endswith("[]")]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidField(f"'{twice[:100]}' is there more than once; send it once", twice[:100])
