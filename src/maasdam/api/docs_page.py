"""/docs as plain HTML, written from the OpenAPI document. Fetches nothing: the service must document itself offline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
code,pre{font:14px/1.4 ui-monospace,monospace}pre{background:#f5f5f5;padding:.7rem;overflow:auto}
h3{margin:1.5rem 0 .2rem}h3 b{display:inline-block;min-width:4.5rem}summary{cursor:pointer;color:#555}p{margin:.2rem 0}
"""


def welcome(version: str, has_public_docs: bool) -> str:
    """What a browser sees at "/": what this is, and how to go on."""
    docs = '<a href="/docs">Every route</a>' if has_public_docs else "<code>/docs</code> lists every route"
    return _html(
        f"Maasdam {escape(version)}",
        "<p>Trained models as an API: OpenAI's under <code>/v1</code>, the Open Inference Protocol under <code>/v2</code>.</p>"
        f"<p>{docs}. {'' if has_public_docs else KEY_NEEDED}</p>"
        '<p><a href="/health">/health</a> says how the service does. Keys: <code>maasdam keys create NAME</code>.</p>',
    )


KEY_NEEDED = (
    "A browser sends no key: read it with <code>curl -H 'Authorization: Bearer KEY' …/docs</code>, or let all read it with "
    "the setting <code>public_docs = true</code> (<code>MAASDAM_PUBLIC_DOCS=true</code>)."
)


def refused(status: int, message: str) -> str:
    """What a browser sees of /docs where a key is needed."""
    return _html(f"{status}: this page needs a key", f"<p>{escape(message)}</p><p>{KEY_NEEDED}</p>")


def _html(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><h1>{title}</h1>{body}</body></html>"
    )


def page(spec: Mapping[str, Any]) -> str:
    """One page: every route, by tag, with what it takes and what it answers."""
    info = spec["info"]
    by_tag: dict[str, list[str]] = {}
    for path, methods in spec["paths"].items():
        for method, route in methods.items():
            tag = (route.get("tags") or ["Other"])[0]
            by_tag.setdefault(tag, []).append(_route(path, method, route, spec))
    parts = [f"<h2>{escape(tag)}</h2>{''.join(routes)}" for tag, routes in by_tag.items()]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return _html(
        title,
        f"<p>{escape(info.get('description', ''))}</p>"
        "<p>Send <code>Authorization: Bearer KEY</code> with every request. The same as data: "
        f'<a href="/openapi.json">/openapi.json</a>.</p>{"".join(parts)}',
    )


def _route(path: str, method: str, route: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    out = [f"<h3><b>{method.upper()}</b> <code>{escape(path)}</code></h3>"]
    out.append(f"<p>{escape(route.get('description') or route.get('summary', ''))}</p>")
    for parameter in route.get("parameters", ()):
        about = parameter.get("description") or parameter.get("schema", {}).get("type", "")
        out.append(f"<p><code>{escape(parameter['name'])}</code> ({escape(parameter['in'])}) {escape(about)}</p>")
    for kind, content in route.get("requestBody", {}).get("content", {}).items():
        schema = json.dumps(_resolved(content.get("schema", {}), spec), indent=2)
        out.append(f"<details><summary>{escape(kind)}</summary><pre>{escape(schema)}</pre></details>")
    return "".join(out)


def _resolved(schema: Any, spec: Mapping[str, Any], depth: int = 4) -> Any:
    """The schema with its references replaced by what they name."""
    if isinstance(schema, list):
        return [_resolved(inner, spec, depth) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema and depth:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return _resolved(spec["components"]["schemas"].get(name, {}), spec, depth - 1)
    return {key: _resolved(value, spec, depth) for key, value in schema.items() if key != "title"}
