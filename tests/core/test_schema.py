"""Values held against JSON Schemas: the same verdict as the jsonschema package, and faults a model can mend."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loom.core import schema_rules
from loom.core.schema import MAX_FAULTS, faults

NAMES = ("a", "b", "c d")
names = st.sampled_from(NAMES)
scalars = st.sampled_from([None, True, False, 0, 1, 2, 3, -1, 1.0, 1.5, 2.25, "", "a", "ab", "b1", "é", "2024-02-29"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
sizes = st.integers(0, 3)
types = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null"])
# The peer matches with `re`: nothing in which the two languages differ.
patterns = st.sampled_from(["a", "^a", "b$", "^[ab]*$", "[0-9]", "^.{2}$"])


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    by_name = st.dictionaries(names, inner, max_size=3)
    found: dict[str, st.SearchStrategy[Any]] = {
        "type": types | st.lists(types, min_size=1, max_size=2, unique=True),
        "enum": st.lists(values, min_size=1, max_size=3),
        "const": values,
        "properties": by_name,
        "patternProperties": st.dictionaries(patterns, inner, max_size=2),
        "additionalProperties": inner,
        "propertyNames": inner,
        "required": st.lists(names, max_size=2, unique=True),
        "dependentRequired": st.dictionaries(names, st.lists(names, max_size=2, unique=True), max_size=2),
        "dependentSchemas": by_name,
        "items": inner,
        "prefixItems": some,
        "contains": inner,
        "minContains": sizes,
        "maxContains": sizes,
        "uniqueItems": st.booleans(),
        "pattern": patterns,
        "multipleOf": st.sampled_from([1, 2, 0.5, 0.25]),
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "$ref": st.sampled_from(["#/$defs/one", "#/$defs/two", "#"]),
        "title": st.just("remark"),
        **dict.fromkeys(("allOf", "anyOf", "oneOf"), some),
        **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"), sizes),
        **dict.fromkeys(
            ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), st.sampled_from([0, 1, 1.5, 2])
        ),
    }
    one = st.sampled_from(sorted(found)).flatmap(lambda key: found[key].map(lambda value: (key, value)))
    return st.lists(one, max_size=4, unique_by=lambda pair: pair[0]).map(dict)


inner_schemas = st.recursive(st.booleans() | keywords(st.booleans()), keywords, max_leaves=6)
schemas = st.tuples(keywords(inner_schemas), inner_schemas, inner_schemas).map(
    lambda parts: {**parts[0], "$defs": {"one": parts[1], "two": parts[2]}}
)


def turns_in_a_circle(schema: Any, seen: frozenset[str] = frozenset()) -> bool:
    """Whether references lead back to themselves without going into the value, where the standard says nothing."""

    def here(part: Any, seen: frozenset[str]) -> bool:
        if not isinstance(part, dict):
            return False
        reference = part.get("$ref")
        if reference is not None:
            if reference in seen:
                return True
            target = schema if reference == "#" else schema["$defs"][reference.rpartition("/")[2]]
            if here(target, seen | {reference}):
                return True
        parts = [part.get(key) for key in ("not", "if", "then", "else")]
        parts += [p for key in ("allOf", "anyOf", "oneOf") for p in part.get(key, ())]
        parts += part.get("dependentSchemas", {}).values()
        return any(here(p, seen) for p in parts)

    defined = [(f"#/$defs/{name}", part) for name, part in schema["$defs"].items()]
    return any(here(part, frozenset({name})) for name, part in [("#", schema), *defined])


@given(schemas, st.lists(values, min_size=1, max_size=5))
@settings(max_examples=400, derandomize=True, deadline=None)
@example({"$defs": {"one": {"items": {"$ref": "#/$defs/one"}, "type": "array"}, "two": True}, "$ref": "#/$defs/one"},
         [[[]], [[1]], [], 1])  # fmt: skip
@example({"$defs": {"one": True, "two": True}, "enum": [[True], 1]}, [[1], [True], [1.0], True, 1.0])
@example({"$defs": {"one": True, "two": True}, "uniqueItems": True}, [[1, True], [1, 1.0], [[1], [True]], [{}, {}]])
def test_the_verdict_is_that_of_the_jsonschema_package(schema: dict[str, Any], found: list[Any]):
    if turns_in_a_circle(schema):
        for value in found:
            faults(schema, value)  # it comes to an end
        return
    assert schema_rules.fault(schema) == ""
    before = copy.deepcopy((schema, found))
    peer = jsonschema.Draft202012Validator(schema)
    assert [faults(schema, value) == [] for value in found] == [peer.is_valid(value) for value in found]
    assert (schema, found) == before


@pytest.mark.parametrize("schema", [
    {"items": [{"type": "integer"}, True], "additionalItems": False},
    {"items": [{"type": "integer"}], "additionalItems": {"type": "string"}},
    {"dependencies": {"a": ["b"], "b": {"maxProperties": 2}}},
    {"definitions": {"x": {"type": "string"}}, "additionalProperties": {"$ref": "#/definitions/x"}},
])  # fmt: skip
@given(value=values)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_so_it_is_for_what_is_common_of_draft_07(schema: dict[str, Any], value: Any):
    assert (faults(schema, value) == []) == jsonschema.Draft7Validator(schema).is_valid(value)


FORMATS = {
    "date": ("2024-02-29 2000-02-29 1900-12-31", "2023-02-29 1900-02-29 2024-13-01 2024-1-1 20240101 2024-02-30"),
    "time": ("12:00:00Z 00:00:00.5+23:59 23:59:60Z 22:59:60-01:00", "24:00:00Z 12:00:00 12:00Z 12:00:60Z 1:00:00Z"),
    "date-time": ("2024-02-29T12:00:00Z 2024-02-29t12:00:00.1-01:00", "2024-02-29 2024-02-29T12:00:00 x"),
    "email": ("a@b.c joe+tag@example.org o'hara@x-y.example", "a @b a@ a@b@c .a@b a@-b a..b@c a@b..c"),
    "uri": ("http://a.b/c?d#e urn:x:y mailto:a@b http://[::1]:80/", "a //a.b /c http://a:b/ http://é 1a:b a:%zz"),
    "uuid": ("123e4567-E89b-12d3-a456-426614174000", "123e4567e89b12d3a456426614174000 123e4567-e89b-12d3-a456"),
    "ipv4": ("0.0.0.0 127.0.0.1", "1.2.3 1.2.3.256 01.2.3.4 1.2.3.4/8 ١.2.3.4"),
    "ipv6": ("::1 fe80::1 ::ffff:1.2.3.4", "::1%eth0 1.2.3.4 ::1::2 12345::"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_checked(name: str):
    good, bad = FORMATS[name]
    schema = {"format": name}
    assert [text for text in good.split() if faults(schema, text)] == []
    assert [text for text in bad.split() if not faults(schema, text)] == []
    assert faults(schema, 5) == faults({"format": "unheard-of"}, "x") == []


@pytest.mark.parametrize("schema, value, said", [
    ({"const": 1}, True, "$ is True; it must be 1"),
    ({"properties": {"a": {"items": {"type": "null"}}}}, {"a": [None, 1]},
     "$.a[1] must be of type null, not integer (1)"),
    ({"additionalProperties": {"type": "null"}}, {"c d": 1}, "$['c d'] must be of type null, not integer (1)"),
    ({"propertyNames": {"maxLength": 0}}, {"b": 1},
     "$ has a field 'b' whose name is not allowed: it is 1 characters long; at most 0 is allowed"),
    ({"minProperties": 1}, {}, "$ is 0 fields large; at least 1 is allowed"),
    ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, "$ has the field 'a' and so needs the field 'b'"),
    ({"prefixItems": [True], "items": False}, [1, 2], "$ has 2 items; at most 1 are allowed"),
    ({"contains": {"const": 1}}, [2], "$ has 0 items that fit {'const': 1}; at least 1 must"),
    ({"contains": {"const": 1}, "maxContains": 1}, [1, 1], "$ has 2 items that fit {'const': 1}; at most 1 may"),
    ({"uniqueItems": True}, [1, 2, 1.0], "$[2] is the same as $[0]; all items must differ"),
    ({"exclusiveMinimum": 1}, 1, "$ is 1; it must be more than 1"),
    ({"exclusiveMaximum": 1}, 1.5, "$ is 1.5; it must be less than 1"),
    ({"multipleOf": 0.1}, 0.35, "$ is 0.35; it must be a multiple of 0.1"),
    ({"pattern": "^a$"}, "b\n", r"$ is 'b\n'; it must match '^a$'"),
    ({"format": "date"}, "x", "$ is 'x'; it must be of the format date"),
    ({"not": {"type": "null"}}, None, "$ is None; it must not fit {'type': 'null'}"),
    ({"properties": {"a": False}}, {"a": 1}, "$.a must not be there"),
    ({"oneOf": [True, {"type": "integer"}]}, 1, "$ fits 2 of the 2 forms it may have; it must fit exactly one"),
    (
        {"anyOf": [{"type": "string"}, {"properties": {"a": {"type": "string"}}, "required": ["b"]}]},
        {"a": 1},
        "$ fits none of the 2 forms it may have; for the nearest: $ lacks the required field 'b'; "
        "$.a must be of type string, not integer (1)",
    ),
])  # fmt: skip
def test_a_fault_says_where_it_is_and_what_would_be_right(schema: dict[str, Any], value: Any, said: str):
    assert faults(schema, value) == [said]


def test_numbers_are_multiples_as_they_are_written():
    for value, step in ((0.3, 0.1), (1e300, 1e-300), (19.99, 0.01), (10**30, 5), (7.0, 7)):
        assert faults({"multipleOf": step}, value) == []


def test_faults_are_few_and_on_one_line():
    many = {"additionalProperties": False}
    assert len(faults(many, {f"x\n{n}": n for n in range(100)})) == MAX_FAULTS
    assert all("\n" not in fault for fault in faults(many, {"x\ny": 1}))


def test_a_schema_of_schemas_without_end_comes_to_one():
    laughs = {"$defs": {f"l{n}": {"allOf": [{"$ref": f"#/$defs/l{n + 1}"}] * 10} for n in range(12)}}
    laughs["$defs"]["l12"] = {"type": "string"}
    (fault,) = faults({**laughs, "$ref": "#/$defs/l0"}, "x")
    assert "cannot be checked" in fault
    chain: dict[str, Any] = {
        "$defs": {f"c{n}": {"$ref": f"#/$defs/c{n + 1}"} for n in range(3000)},
        "$ref": "#/$defs/c0",
    }
    assert "cannot be checked" in faults(chain, 1)[0]
    assert faults({"$ref": "#"}, 1) == faults({"allOf": [{"$ref": "#"}]}, [1]) == []


REFUSED = [
    ({"$ref": "http://a/b"}, "$.$ref"),
    ({"$ref": "other.json#/a"}, "$.$ref"),
    ({"$ref": "#/$defs/x"}, "nothing of that name"),
    ({"$ref": "#x"}, "nothing of that name"),
    ({"properties": {"a": {"$dynamicRef": "#x"}}}, "$.properties.a.$dynamicRef"),
    ({"$recursiveRef": "#"}, "not supported"),
    ({"items": {"unevaluatedProperties": False}}, "$.items.unevaluatedProperties"),
    ({"allOf": [{"unevaluatedItems": False}]}, "$.allOf[0].unevaluatedItems"),
    ({"$defs": {"a": {"$id": "http://a/b"}}}, "$.$defs.a.$id"),
    ({"$schema": "http://json-schema.org/draft-04/schema#"}, "2020-12"),
    ({"typ": "string"}, "did you mean 'type'?"),
    ({"properties": {"a": {"requird": ["a"]}}}, "did you mean 'required'?"),
    ({"additionalproperties": False}, "did you mean 'additionalProperties'?"),
    ({"type": "str"}, "$.type is 'str'"),
    ({"type": []}, "$.type"),
    ({"enum": 1}, "$.enum"),
    ({"required": "a"}, "$.required"),
    ({"required": [1]}, "$.required"),
    ({"properties": []}, "$.properties"),
    ({"properties": {"a": 1}}, "$.properties.a is 1"),
    ({"anyOf": {}}, "$.anyOf"),
    ({"anyOf": []}, "$.anyOf"),
    ({"not": 1}, "$.not"),
    ({"minLength": -1}, "$.minLength"),
    ({"minItems": 1.5}, "$.minItems"),
    ({"minimum": "1"}, "$.minimum"),
    ({"exclusiveMinimum": True}, "$.exclusiveMinimum"),
    ({"multipleOf": 0}, "$.multipleOf"),
    ({"uniqueItems": 1}, "$.uniqueItems"),
    ({"pattern": "("}, "cannot be used"),
    ({"pattern": "(?=a)b"}, "lookaround"),
    ({"patternProperties": {"(": True}}, "cannot be used"),
    ({"dependentRequired": {"a": "b"}}, "$.dependentRequired.a"),
    ([], "a schema is an object"),
    ("x", "a schema is an object"),
]


@pytest.mark.parametrize("schema, said", REFUSED)
def test_a_schema_that_says_what_is_not_looked_at_is_refused(schema: Any, said: str):
    fault = schema_rules.fault(schema)
    assert said in fault and "\n" not in fault and fault.startswith(("$", "#"))


@pytest.mark.parametrize("schema", [
    True, {}, {"$schema": "https://json-schema.org/draft/2020-12/schema"}, {"$id": "http://a/b", "x-mine": 1},
    {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"$id": "#a"}}, "$ref": "#a"},
    {"default": {"typ": 1}, "examples": [{"$ref": "http://x"}], "const": {"$ref": "http://x"}, "enum": [{"typ": 1}]},
    {"$defs": {"a/b%c": {"type": "null"}}, "$ref": "#/$defs/a~1b%25c"}, {"$anchor": "x", "items": {"$ref": "#x"}},
    {"properties": {"typ": {"type": "string"}, "$ref": True}}, {"format": "unheard-of", "nullable": True},
])  # fmt: skip
def test_remarks_and_references_within_are_fine(schema: Any):
    assert schema_rules.fault(schema) == ""


@given(st.recursive(st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["#", "(", "type", "a"]),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["type", "properties", "items", "$ref", "anyOf", "pattern", "not", "minItems",
                                         "enum", "required", "dependencies", "$defs", "contains"]), inner, max_size=4),
                    max_leaves=12), values)  # fmt: skip
@settings(max_examples=300, derandomize=True, deadline=None)
def test_whatever_a_schema_holds_nothing_is_raised(schema: Any, value: Any):
    assert isinstance(schema_rules.fault(schema), str)
    assert all(isinstance(fault, str) for fault in faults(schema, value))
