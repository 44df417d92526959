"""Finds the class behind a dotted path in the source, without executing the module that
it names: a file that is read, imported, checked or planned may be anybody's. The module
is imported when a training starts, and no sooner.

Nothing here imports a package on the way either: `importlib.util.find_spec` of a dotted
name would.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

from toolkit.errors import UserError, did_you_mean

MOST_BYTES = 4_000_000
"""Size of a module that is read; what a larger one holds is not known."""

MOST_HOPS = 40
"""Re-exports and base classes that are followed."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A module that was found, and not imported.

    >>> find_module("collections.abc").package
    'collections'
    """

    name: str
    file: Path | None
    """None: a namespace package, or one that is built in."""

    folders: tuple[str, ...]
    """Folders of a package's modules."""

    @property
    def package(self) -> str:
        """Dotted name of the package that relative imports of this module start
        from."""
        return self.name if self.folders else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class ClassSource:
    """What the source says of a class.

    >>> source = find_class("argparse.ArgumentParser")
    >>> source.node.name, source.own_method("parse_args").args.args[1].arg
    ('ArgumentParser', 'args')
    """

    module: Module
    """Where it is defined."""

    node: ast.ClassDef | None
    """None: what the name stands for is known only once the module is executed, or it
    is not a class."""

    is_other: bool = False
    """Whether it is a function or a module."""

    def lineage(self) -> Iterator[ClassSource]:
        """The class, then its bases, depth first, where the source names them; one
        whose `node` is None stands for those that it does not."""
        waiting = [self]
        seen = set[tuple[str, str]]()
        while waiting and len(seen) < MOST_HOPS:
            source = waiting.pop(0)
            yield source
            if source.node is None:
                continue
            key = (source.module.name, source.node.name)
            if key in seen:
                continue
            seen.add(key)
            bases = [
                _named(source.module, ast.unparse(base))
                for base in source.node.bases
                if not _is_plain(base)
            ]
            waiting[:0] = bases

    def method(self, name: str) -> Function | None:
        """The method that an instance has; None where there is none, or it cannot be
        known."""
        for source in self.lineage():
            own_method = source.own_method(name)
            if source.node is None or own_method is not None:
                return own_method
        return None

    def own_method(self, name: str) -> Function | None:
        """The definition of a method in the body of this class, not of its base
        classes. None where the class does not define it. With overloads it is the last
        one."""
        body = self.node.body if self.node else []
        methods = [
            node for node in body if isinstance(node, Function) and node.name == name
        ]
        return methods[-1] if methods else None  # those above it are its overloads


def find_module(name: str) -> Module:
    """The module of a dotted name. Raises UserError where there is none."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"{name!r} is not the dotted name of a module.")
    try:
        spec = find_spec(parts[0])  # of a name without dots: nothing is imported
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(missing_package(parts[0]))
    for index, part in enumerate(parts[1:], start=2):
        spec = _inside(spec, ".".join(parts[:index]))
        if spec is None:
            raise UserError(
                f"there is no module {part!r} in {'.'.join(parts[: index - 1])}."
            )
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    return Module(name, file, tuple(_folders(spec)))


def missing_package(name: str) -> str:
    """The message that no package has this import name. Where pip calls an installed
    package so, it names the package's modules."""

    def folded(text: str) -> str:
        return re.sub(r"[-_.]+", "-", text).lower()

    owned = [
        module
        for module, owners in packages_distributions().items()
        if folded(name) in map(folded, owners)
    ]
    public = [module for module in owned if not module.startswith("_")]
    if not public:
        return f"there is no package {name!r} here. Is it installed, and spelled right?"
    return f"{name!r} is the name for pip; in Python the package is called {public[0]!r}. Write that."


def _inside(package: ModuleSpec, name: str) -> ModuleSpec | None:
    """A module of a package, by the files in its folders."""
    for folder in _folders(package):
        loaders = (
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (SourceFileLoader, SOURCE_SUFFIXES),
        )
        spec = FileFinder(folder, *loaders).find_spec(name)
        if spec is not None:
            return spec
    return None


def _folders(package: ModuleSpec) -> Sequence[str]:
    return list(package.submodule_search_locations or ())


def find_class(path: str) -> ClassSource:
    """The class behind "package.module.Class". Raises UserError where there is none, or
    it is something else."""
    if not all(part.isidentifier() for part in path.split(".")):
        raise UserError(
            "this is not the dotted path of a class. Write package.module.Class."
        )
    module_name, _, name = path.rpartition(".")
    module = find_module(module_name)
    source = _named(module, name)
    if source.node is None and _is_complete(module) and name not in _names(module):
        classes = sorted(word for word in _names(module) if word[:1].isupper())
        hint = did_you_mean(name, classes, list_all=False) if classes else ""
        raise UserError(f"{module_name} has no {name!r}. {hint}".rstrip())
    if source.node is None and not source.is_other:
        with suppress(UserError):
            inner = find_module(path)
            # Its package may mean what the module holds by the same name.
            same = _named(inner, name)
            is_other = same.is_other or not (same.node or name in _assigned(inner))
            return ClassSource(inner, same.node, is_other)
    return source


# ------------------------------------------------------------ the source


@lru_cache(maxsize=64)
def _tree(file: Path, mark: tuple[int, int]) -> ast.Module | None:
    """The parsed source; None where it is too large or not Python. mark: of the file as
    it is now."""
    try:
        return ast.parse(file.read_bytes()) if mark[1] <= MOST_BYTES else None
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _body(module: Module) -> list[ast.stmt]:
    if module.file is None or module.file.suffix not in SOURCE_SUFFIXES:
        return []
    try:
        about = module.file.stat()
    except OSError:
        return []
    tree = _tree(module.file, (about.st_mtime_ns, about.st_size))
    return list(_flat(tree.body)) if tree else []


def _flat(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, with those in its `if`, `try` and `with`."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for block in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(node, block, []):
                    yield from _flat(
                        inner.body if isinstance(inner, ast.ExceptHandler) else [inner]
                    )


def _named(module: Module, name: str, hops: int = 0) -> ClassSource:
    """The class behind a name, possibly a dotted one, in a module."""
    unknown, (first, _, rest) = ClassSource(module, None), name.partition(".")
    if hops > MOST_HOPS:
        return unknown
    for node in reversed(_body(module)):
        if isinstance(node, ast.ClassDef) and node.name == first and not rest:
            return ClassSource(module, node)
        if isinstance(node, Function) and node.name == name:
            return ClassSource(module, None, is_other=True)
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name
                if name == bound:
                    return ClassSource(module, None, is_other=True)
                if not rest:
                    continue
                if name.startswith(f"{bound}."):
                    return (
                        _in_module(alias.name, name.removeprefix(f"{bound}."), hops)
                        or unknown
                    )
                if first == bound.partition(".")[0]:
                    return _in_module(first, rest, hops) or unknown
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == first:
                    inner = f"{alias.name}.{rest}" if rest else alias.name
                    return _in_module(_source_of(module, node), inner, hops) or unknown
                if alias.name == "*":
                    source = _in_module(_source_of(module, node), name, hops)
                    if source is not None and source.node is not None:
                        return source
    return unknown


def _in_module(module_name: str, name: str, hops: int) -> ClassSource | None:
    """The class in the module of that name; None where there is no such module. A
    package may hold the name as a module."""
    try:
        module = find_module(module_name)
        source = _named(module, name, hops + 1)
        first, _, rest = name.partition(".")
        if source.node is None and rest and module.folders:
            return _named(find_module(f"{module_name}.{first}"), rest, hops + 1)
    except UserError:
        return None
    return source


def _source_of(module: Module, node: ast.ImportFrom) -> str:
    """The name of the module that `from ... import` reads."""
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    return ".".join(
        [*parts[: len(parts) - node.level + 1], *filter(None, [node.module])]
    )


def _names(module: Module) -> set[str]:
    """The names that a module's source gives to something."""
    names = set[str]()
    for node in _body(module):
        if isinstance(node, ast.ClassDef | Function):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                names.add(alias.asname or alias.name.partition(".")[0])
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


def _assigned(module: Module) -> set[str]:
    """The names that a module's own statements assign to."""
    return {
        target.id
        for node in _body(module)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _is_complete(module: Module) -> bool:
    """Whether a module has no names but those in its source."""
    body = _body(module)
    stars = any(
        isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in body
    )
    makes = {"__getattr__", "globals", "exec", "setattr"}
    return bool(body) and not stars and not makes & _names(module)


def _is_plain(base: ast.expr) -> bool:
    """Whether a base class is one without methods that matter."""
    return ast.unparse(base).partition("[")[0].rpartition(".")[2] in (
        "object",
        "Generic",
        "Protocol",
        "ABC",
    )
