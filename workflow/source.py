"""What a plugin file says, read from its source: classes, literal attributes, settings, digest. Nothing is imported."""

from __future__ import annotations

import ast
import enum
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path


class Unknown(enum.Enum):
    """Stands for a default that the source does not give as a literal."""

    REQUIRED = "required"
    COMPUTED = "computed"


@dataclass(frozen=True)
class Setting:
    """One field of a settings dataclass: its default (or Unknown) and its annotation as written."""

    default: object
    annotation: str


@cache
def read(path: Path, root: Path) -> Source:
    """The parsed file; `root` is the folder that holds `methods/`. Raises SyntaxError, ValueError or OSError."""
    return Source(path, root)


class Source:
    """One parsed file and what its names refer to, here or in other files below `root/methods`."""

    def __init__(self, path: Path, root: Path):
        self.path, self.root = path, root
        self.tree = ast.parse(path.read_bytes(), filename=str(path))

    @cached_property
    def classes(self) -> dict[str, ClassSource]:
        return {node.name: ClassSource(self, node) for node in self.tree.body if isinstance(node, ast.ClassDef)}

    @cached_property
    def constants(self) -> dict[str, object]:
        """Module-level names with literal values."""
        return dict(_literals(self.tree.body, {}))

    @cached_property
    def imports(self) -> dict[str, tuple[Path | None, str | None]]:
        """Local name -> (file it comes from or None where that lies elsewhere, name in that file or None for all)."""
        found: dict[str, tuple[Path | None, str | None]] = {}
        for node in import_statements(self.tree):
            if isinstance(node, ast.Import):
                found |= {a.asname: (self._file(a.name), None) for a in node.names if a.asname}
            elif isinstance(node, ast.ImportFrom):
                module = self._absolute(node)
                for alias in node.names:
                    submodule = self._file(f"{module}.{alias.name}")
                    origin = (submodule, None) if submodule else (self._file(module), alias.name)
                    found[alias.asname or alias.name] = origin
        return found

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Absolute names of the modules that importing this file imports at once (not inside functions, try or if)."""
        names: list[str] = []
        for node in self.tree.body:
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names.append(self._absolute(node))
        return tuple(names)

    @cached_property
    def plugins(self) -> tuple[Source, ...]:
        """The plugin files that this one imports from, by path; `methods/base` has a version of its own."""
        base = self.root / "methods" / "base"
        paths = {path for path, _ in self.imports.values() if path and not path.is_relative_to(base)}
        return tuple(read(path, self.root) for path in sorted(paths - {self.path}))

    def check(self, visited: frozenset[Path] = frozenset()) -> None:
        """Raise ValueError or SyntaxError if this file imports from a plugin that is not there or does not parse."""
        for module in self.modules:
            folder = self.root.joinpath(*module.split("."))
            if module.startswith("methods.") and not (folder.is_dir() or folder.with_suffix(".py").is_file()):
                raise ValueError(f"imports '{module}', which does not exist")
        for plugin in self.plugins:
            if plugin.path not in visited:
                plugin.check(visited | {self.path})

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the syntax tree without docstrings and positions, and of the plugins that it imports from."""
        return self._digest(frozenset())

    def _digest(self, visited: frozenset[Path]) -> str:
        total = hashlib.sha256(canonical(self.tree).encode())
        for plugin in self.plugins:
            if plugin.path not in visited:
                total.update(plugin._digest(visited | {self.path}).encode())
        return total.hexdigest()

    def lookup(self, name: str) -> ClassSource | Source | None:
        """The class or module that a module-level name refers to, followed through imports."""
        if name in self.classes:
            return self.classes[name]
        path, attribute = self.imports.get(name, (None, None))
        if path is None:
            return self._reexported(name)
        source = read(path, self.root)
        return source.lookup(attribute) if attribute else source

    def _reexported(self, name: str) -> ClassSource | None:
        """A class that a package gives out lazily: it is looked for in the package's modules."""
        modules = sorted(self.path.parent.glob("*.py")) if self.path.name == "__init__.py" else []
        found = (read(path, self.root).classes.get(name) for path in modules if path != self.path)
        return next(filter(None, found), None)

    def resolve(self, expression: ast.expr) -> ClassSource | Source | None:
        """The class or module that `Name` or `a.b.Name` refers to; None where it lies outside the plugins."""
        if isinstance(expression, ast.Name):
            return self.lookup(expression.id)
        if isinstance(expression, ast.Attribute):
            owner = self.resolve(expression.value)
            if isinstance(owner, ClassSource):
                return owner.nested(expression.attr)
            return owner.lookup(expression.attr) if owner else None
        return None

    def _absolute(self, node: ast.ImportFrom) -> str:
        """The module of a `from` import, with leading dots resolved."""
        if not node.level:
            return node.module or ""
        folder = self.path.parents[node.level - 1]
        parts = folder.relative_to(self.root).parts if folder.is_relative_to(self.root) else ()
        return ".".join([*parts, *filter(None, [node.module])])

    def _file(self, module: str) -> Path | None:
        """The file of a module below `methods`, or None."""
        if not module.startswith("methods."):
            return None
        stem = self.root.joinpath(*module.split("."))
        return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


@dataclass(frozen=True, eq=False)
class ClassSource:
    """One class of a file, with what it inherits."""

    source: Source
    node: ast.ClassDef

    @cached_property
    def own(self) -> dict[str, object]:
        """Literal attributes of the class body itself."""
        return dict(_literals(self.node.body, self.source.constants))

    @cached_property
    def assigned(self) -> set[str]:
        """Every name that the class body assigns, literal or not."""
        return {name for name, _ in _assignments(self.node.body)}

    @cached_property
    def lineage(self) -> tuple[ClassSource, ...]:
        """This class, then its bases, depth first, as far as their source lies among the plugins."""
        found = {self: None}
        for base in self.node.bases:
            resolved = self.source.resolve(base)
            if isinstance(resolved, ClassSource):
                found |= dict.fromkeys(resolved.lineage)
        return tuple(found)

    def attribute(self, name: str, default: object = None) -> object:
        """A literal attribute, own or inherited. Raises ValueError where the nearest definition is not literal."""
        for cls in self.lineage:
            if name in cls.own:
                return cls.own[name]
            if name in cls.assigned:
                raise ValueError(f"{cls.node.name}.{name} is not a literal, so it cannot be read without importing")
        return default

    def nested(self, name: str) -> ClassSource | None:
        """A class defined inside this one or a base, or given there as `name = OtherClass`."""
        for cls in self.lineage:
            for node in cls.node.body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return ClassSource(cls.source, node)
                if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                    resolved = cls.source.resolve(node.value)
                    return resolved if isinstance(resolved, ClassSource) else None
        return None

    def fields(self) -> dict[str, Setting]:
        """Fields of a dataclass in the order of its constructor, inherited ones first."""
        found: dict[str, Setting] = {}
        for cls in reversed(self.lineage):
            for node in cls.node.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    annotation = ast.unparse(node.annotation).strip("'\"")
                    if "ClassVar" not in annotation:
                        found[node.target.id] = Setting(_default(node.value, cls.source.constants), annotation)
                elif isinstance(node, ast.Assign):
                    for name, value in _assignments([node]):
                        if name in found:
                            found[name] = Setting(_default(value, cls.source.constants), found[name].annotation)
        return found


def _assignments(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of `a = v`, `a = b = v`, `a, b = v, w` and `a: T = v`."""
    for node in body:
        if isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
            yield node.target.id, node.value
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(target.elts, node.value.elts, strict=False)
                    yield from ((name.id, value) for name, value in pairs if isinstance(name, ast.Name))


def _literals(body: list[ast.stmt], constants: dict[str, object]) -> Iterator[tuple[str, object]]:
    for name, expression in _assignments(body):
        value = _literal(expression, constants)
        if value is not Unknown.COMPUTED:
            yield name, value


def _literal(expression: ast.expr, constants: dict[str, object]) -> object:
    if isinstance(expression, ast.Name):
        return constants.get(expression.id, Unknown.COMPUTED)
    try:
        return ast.literal_eval(expression)
    except (ValueError, TypeError):
        return Unknown.COMPUTED


def _default(value: ast.expr | None, constants: dict[str, object]) -> object:
    """A field's default: a literal, a module constant, or either inside `field(default=...)`."""
    if value is None:
        return Unknown.REQUIRED
    if not (isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field")):
        return _literal(value, constants)
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    if "default" in given:
        return _literal(given["default"], constants)
    factory = given.get("default_factory")
    if isinstance(factory, ast.Lambda):
        return _literal(factory.body, constants)
    if isinstance(factory, ast.Name) and factory.id in ("dict", "list", "tuple"):
        return {"dict": {}, "list": [], "tuple": ()}[factory.id]
    return Unknown.COMPUTED if factory else Unknown.REQUIRED


def import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements at any depth. Only statements are walked, which is several times faster than `ast.walk`."""
    for name in ("body", "orelse", "finalbody", "handlers"):
        for child in getattr(node, name, ()):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child
            else:
                yield from import_statements(child)


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
_CHECKS_ONLY = frozenset({"learns", "no_gradient", "patience", "tiny", "vectors_only"})  # what no number depends on


def canonical(tree: ast.AST) -> str:
    """The tree as text that is the same for every version of Python (unlike `ast.dump`).

    Docstrings are dropped, and attributes of classes that cannot change a number.
    """
    pieces: list[str] = []
    _canonical(tree, pieces)
    return "".join(pieces)


def _canonical(node: ast.AST, out: list[str]) -> None:
    out.append(f"({type(node).__name__}")
    for name in node._fields:
        value = getattr(node, name, None)
        if name in _IGNORED or value is None or value == []:
            continue
        out.append(f" {name}=")
        if isinstance(value, list):
            if name == "body" and isinstance(node, _DOCUMENTED) and _is_docstring(value[0]):
                value = value[1:]
            if name == "body" and isinstance(node, ast.ClassDef):
                value = [kept for item in value if (kept := _without_declarations(item))]
            for item in value:
                _canonical(item, out) if isinstance(item, ast.AST) else out.append(repr(item))
        elif isinstance(value, ast.AST):
            _canonical(value, out)
        else:
            out.append(repr(value))
    out.append(")")


def _without_declarations(node: ast.stmt) -> ast.stmt | None:
    """A statement of a class body without targets that only the checks read; None if nothing is left."""
    if not isinstance(node, ast.Assign):
        return node
    kept = [t for t in node.targets if not (isinstance(t, ast.Name) and t.id in _CHECKS_ONLY)]
    return ast.copy_location(ast.Assign(kept, node.value), node) if kept else None


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
