"""Settings of a method as a grid gives them: checked against the fields of its plugin, defaults filled in."""

from __future__ import annotations

import ast
from functools import cache

from workflow.documents import join
from workflow.errors import AtlasError, suggest
from workflow.registry import MethodInfo
from workflow.source import Unknown


def check(info: MethodInfo, given: dict, *, file: object, key: str) -> None:
    """Raise AtlasError for a setting that the method does not have or whose value does not fit its annotation."""
    for name, value in given.items():
        if name not in info.settings:
            message = f"method '{info.name}' has no setting '{name}'"
            raise AtlasError(message, file=file, key=join(key, str(name)), mend=suggest(str(name), info.settings))
        annotation = info.settings[name].annotation
        if not fits(value, annotation):
            message = f"{value!r} does not fit setting '{name}' of method '{info.name}'"
            raise AtlasError(message, file=file, key=join(key, name), mend=f"give {annotation}")


def resolve(info: MethodInfo, given: dict, *, file: object, key: str) -> dict:
    """All settings, ready for JSON: what is given, else the plugin's default where that is a literal.

    Numbers become floats where the field is one, so that 16 and 16.0 are one identity. Raises AtlasError like
    `check`, and for a field without default that is not given.
    """
    check(info, given, file=file, key=key)
    resolved = {}
    for name, setting in info.settings.items():
        value = given.get(name, setting.default)
        if value is Unknown.REQUIRED:
            message = f"method '{info.name}' needs the setting '{name}'"
            raise AtlasError(message, file=file, key=key, mend=f"add {name}: {setting.annotation}")
        if value is not Unknown.COMPUTED:
            resolved[name] = _plain(value, setting.annotation)
    return resolved


def _plain(value: object, annotation: str) -> object:
    if isinstance(value, tuple | list):
        return [_plain(item, "") for item in value]
    if isinstance(value, dict):
        return {str(k): _plain(v, "") for k, v in value.items()}
    real = isinstance(value, int) and not isinstance(value, bool) and annotation.split(" ")[0] == "float"
    return float(value) if real else value


@cache
def _parsed(annotation: str) -> ast.expr | None:
    try:
        return ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return None


def fits(value: object, annotation: str) -> bool:
    """False where the value surely does not fit an annotation such as `int | None` or `tuple[str, ...]`."""
    return _fits(value, _parsed(annotation))


_TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str, "dict": dict}
_SEQUENCES = ("tuple", "list", "Sequence", "set", "frozenset")


def _fits(value: object, expression: ast.expr | None) -> bool:
    match expression:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id=name) if name in _TYPES:
            return isinstance(value, _TYPES[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.Name(id=name) if name in _SEQUENCES:
            return isinstance(value, list | tuple)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return value is None or _fits(value, inner)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            choices = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return any(isinstance(c, ast.Constant) and c.value == value for c in choices)
        case ast.Subscript(value=ast.Name(id="dict")):
            return isinstance(value, dict)
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in _SEQUENCES:
            item = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            return isinstance(value, list | tuple) and all(_fits(v, item) for v in value)
    return True
