"""The documentation is the table, and the table is what is served."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs

from kelpie.server import table
from kelpie.server.openapi import describe
from tests.unit.server.world import World


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*(references(each) for each in value.values()))
    if isinstance(value, list):
        return set[str]().union(*(references(each) for each in value))
    return set()


async def test_the_document_describes_every_route_and_resolves_every_reference() -> None:
    async with World().client() as http:
        document = (await http.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    served = {(o.path, o.method.lower()) for o in table.operations()}
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert described == served
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


def test_every_operation_id_is_distinct_and_every_path_parameter_declared() -> None:
    document = describe(table.operations(), version="1")
    items = [(path, op) for path, item in document["paths"].items() for op in item.values()]
    ids = [op["operationId"] for _, op in items]
    assert len(set(ids)) == len(ids)
    for path, op in items:
        declared = {p["name"] for p in op["parameters"] if p["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))


async def test_the_page_is_self_contained_and_lists_every_route() -> None:
    async with World().client() as http:
        response = await http.get("/docs/")
    page = response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"(src|href)=\"(?!/openapi.json)", page)
    for operation in table.operations():
        assert operation.summary in page
        assert f"<code>{operation.path}</code>" in page


async def test_a_created_agent_keeps_the_documented_schema() -> None:
    async with World().client() as http:
        document = (await http.get("/openapi.json")).json()
        made = (await http.post("/v1/agents", json={"memory_blocks": []})).json()
    schema = {"$ref": "#/components/schemas/AgentOut", "components": document["components"]}
    validator = jsonschema_rs.validator_for(schema)
    assert [error.message for error in validator.iter_errors(made)] == []
