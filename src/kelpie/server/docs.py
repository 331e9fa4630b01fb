"""The page at ``/docs``: the OpenAPI document for people, in one self-contained file.

Loads nothing from anywhere, runs no script, and escapes everything it shows.
"""

from __future__ import annotations

from html import escape
from typing import Any, Final

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1b1f23; background: #fff; }
h2 { border-bottom: 1px solid #d0d7de; margin-top: 2.5rem; text-transform: capitalize; }
details { border: 1px solid #d0d7de; border-radius: 6px; margin: .5rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; }
code { font-family: ui-monospace, monospace; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700; }
table { border-collapse: collapse; margin: .5rem 0; }
td, th { border: 1px solid #d0d7de; padding: .2rem .6rem; text-align: left; }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117; } }
"""

POLICY: Final = b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"


def render_page(document: dict[str, Any]) -> bytes:
    """Return the page for an OpenAPI document."""
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(_card(path, method, operation))
    sections = "".join(
        f"<h2>{escape(tag)}</h2>{''.join(cards)}" for tag, cards in sorted(groups.items())
    )
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{escape(info['description'])} The same as data: "
        f'<a href="/openapi.json">/openapi.json</a>.</p>{sections}</body></html>'
    )
    return page.encode()


def _card(path: str, method: str, operation: dict[str, Any]) -> str:
    head = f'<span class="method">{method.upper()}</span> <code>{escape(path)}</code>'
    parts = [f"<details><summary>{head} {escape(operation['summary'])}</summary>"]
    rows = "".join(_row(parameter) for parameter in operation["parameters"])
    if rows:
        parts.append(f"<table><tr><th>parameter</th><th>in</th><th>type</th></tr>{rows}</table>")
    body = operation.get("requestBody")
    if body is not None:
        schema = body["content"]["application/json"]["schema"]
        parts.append(f"<p>Body: <code>{escape(_name(schema))}</code></p>")
    answers = ", ".join(
        f"{status} {escape(answer['description'])}"
        for status, answer in operation["responses"].items()
    )
    parts.append(f"<p>Answers: {answers}</p></details>")
    return "".join(parts)


def _row(parameter: dict[str, Any]) -> str:
    name = escape(parameter["name"]) + ("" if parameter["required"] else " (optional)")
    return (
        f"<tr><td><code>{name}</code></td><td>{parameter['in']}</td>"
        f"<td>{escape(_name(parameter['schema']))}</td></tr>"
    )


def _name(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_name(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    return str(schema.get("type", "any"))
