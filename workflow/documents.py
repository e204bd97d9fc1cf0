"""Reading YAML and checking documents against the schemas: every problem becomes one AtlasError."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from workflow.errors import AtlasError, suggest

CHECKED_OFTEN = (("result", None), ("grid", "recipe"), ("grid", "entry"))
MOST_NODES, MOST_DEEP = 1_000_000, 100
SCHEMAS = Path(__file__).parent / "schemas"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe YAML 1.1, but a repeated key is an error, `1e-3` is a number, and `on`, `off`, `yes` and `no` are words."""

    def descend_resolver(self, current_node: yaml.Node | None, current_index: object) -> None:
        """Called on the way down to each value. The parser in C ends the process where values nest without end."""
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > MOST_DEEP:
            raise yaml.YAMLError(f"values are nested more than {MOST_DEEP} deep")
        super().descend_resolver(current_node, current_index)

    def ascend_resolver(self) -> None:
        self.depth -= 1
        super().ascend_resolver()

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _nodes(node, {}) > MOST_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_NODES:,} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _nodes(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """How many values a document has where each alias is written out; one that holds itself has no end of them."""
    if node not in known:
        known[node] = math.inf
        inside = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[node] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_nodes(one, known) for one in inside))
    return known[node]


_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise AtlasError(f"cannot read the file: {reason}", file=path, mend="give the path of a YAML file") from problem
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else path
        raise AtlasError(f"not valid YAML: {problem.problem}", file=where, mend="correct that line") from problem
    except yaml.YAMLError as problem:
        raise AtlasError(f"not valid YAML: {problem}", file=path, mend="correct the file") from problem
    if not isinstance(document, dict):
        raise AtlasError("the file holds no mapping of keys to values", file=path, mend="see config/README.md")
    return document


def parse_value(text: str) -> object:
    """One value as YAML reads it: `8` is a number, `[a, b]` a list, anything that is no YAML a text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


@cache
def _accepts(schema: str, definition: str | None) -> Callable[[object], object]:
    """A function that raises unless a document fits the schema: compiled code, ten times as fast as `validator`, which
    says better what is wrong."""
    import fastjsonschema

    return fastjsonschema.compile(_read(schema, definition), use_default=False)


def _read(schema: str, definition: str | None) -> dict:
    document = json.loads((SCHEMAS / f"{schema}.schema.json").read_text())
    return {"$defs": document["$defs"], "$ref": f"#/$defs/{definition}"} if definition else document


@cache
def validator(schema: str, definition: str | None = None) -> Validator:
    """The compiled validator of `schemas/<schema>.schema.json`, or of one of its definitions.

    References (all of them to `$defs`) are looked up here: the general way takes a third of the time of a check.
    """
    document = _read(schema, definition)

    def local(checker, reference: str, instance: object, schema: dict):
        yield from checker.descend(instance, document["$defs"][reference.removeprefix("#/$defs/")])

    return extend(Draft202012Validator, {"$ref": local})(document)


def check(document: object, schema: str, definition: str | None = None, *, file: object, key: str = "") -> None:
    """Raise an AtlasError for the first thing in the document that its schema does not allow.

    `file` is where the document comes from, `key` the path of the document inside that file.
    """
    if (schema, definition) in CHECKED_OFTEN and _fits(document, schema, definition):
        return
    errors = list(validator(schema, definition).iter_errors(document))
    if not errors:
        return
    error = min(errors, key=lambda e: (e.validator != "additionalProperties", len(e.absolute_path)))
    path = join(key, *error.absolute_path)
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        unknown = next(name for name in error.instance if name not in known)
        message, path, mend = f"unknown key '{unknown}'", join(path, unknown), suggest(str(unknown), known)
    elif error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        message, mend = f"the key '{missing}' is missing", f"add {missing}: ..."
    elif error.validator == "enum":
        message = f"'{error.instance}' is not allowed here"
        mend = suggest(str(error.instance), [str(value) for value in error.validator_value])
    else:
        message, mend = _plain(error), _mend(error)
    raise AtlasError(message, file=file, key=path or None, mend=mend)


def _fits(document: object, schema: str, definition: str | None) -> bool:
    try:
        _accepts(schema, definition)(document)
    except ValueError:  # fastjsonschema's errors are that; what is wrong is for `validator` to say
        return False
    return True


def join(key: str, *parts: object) -> str:
    """A key path as people write it: join("methods", 2, "rank") is "methods[2].rank"."""
    for part in parts:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    return key


_KINDS = {
    "array": "a list",
    "object": "a mapping of keys to values",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def _expected(schema: dict) -> str:
    """What a schema asks for, in words."""
    if "$ref" in schema:
        return {"names": "a list of names", "one_or_more": "a name or a list of names"}.get(
            schema["$ref"].rsplit("/", 1)[-1], "something else"
        )
    if "const" in schema:
        return f"'{schema['const']}'"
    types = schema.get("type", [])
    return " or ".join(_KINDS[kind] for kind in ([types] if isinstance(types, str) else types))


_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def _mend(error: ValidationError) -> str:
    if error.validator == "anyOf":
        return f"give {' or '.join(_expected(option) for option in error.validator_value)}"
    if error.validator == "type":
        return f"give {_expected({'type': error.validator_value})}"
    if error.validator in _BOUNDS:
        return f"give a number {_BOUNDS[error.validator]} {error.validator_value}"
    return "see config/README.md"


def _plain(error: ValidationError) -> str:
    if error.validator in ("anyOf", "type", *_BOUNDS):
        return f"{error.instance!r} does not fit here"
    return error.message
