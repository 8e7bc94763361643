"""Hashes of the code of functions that users write. Imports no JAX."""

import ast
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Fields of syntax trees that do not change what code does.
_IDLE = {"ctx", "kind", "type_comment", "lineno", "col_offset"}
_HERE = str(Path(__file__).parents[1])
_LIBRARIES = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
#: Hashes of this process: a file may be edited while its functions are in use.
_KNOWN: dict[tuple[int, ...], tuple[tuple[Any, ...], str]] = {}


def users_code(functions: Iterable[Any]) -> list[Any]:
    """Return those that are neither None nor defined in this package."""
    return [f for f in functions if f is not None and not _is_ours(f)]


def code_sha256(functions: Iterable[Any]) -> str:
    """Return a hash of the code of functions, as it was when this was first called for them.

    It covers, of each function:

    - its source without comments, docstrings, formatting and decorators (the objects that these
      made are followed instead); without source its bytecode, and the version of Python;
    - its defaults, and the values that it takes from enclosing functions;
    - the constants, functions and classes of its module that it names, and those of other modules
      outside of the standard library, installed packages and this package; in turn of each.

    Objects of other types count by their type alone.
    """
    functions = tuple(functions)
    key = tuple(map(id, functions))
    if key not in _KNOWN:
        reader = _Reader()
        for function in functions:
            reader.read(function)
        text = "\n".join(reader.parts)
        # The functions are kept, so that their ids are not given to others.
        _KNOWN[key] = functions, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return _KNOWN[key][1]


def _is_ours(function: Any) -> bool:
    return _is_in(_places(getattr(function, "func", function)), (_HERE,))


def _is_library(value: Any) -> bool:
    """Return whether a function, class or module is not the user's own."""
    if _is_in(_places(value), (_HERE, *_LIBRARIES)):
        return True
    if isinstance(value, types.ModuleType):
        return not _places(value)  # built in
    # What is typed in, and the classes of a recipe, have no module with a file.
    module = sys.modules.get(value.__module__ or "")
    is_main = module is None or module.__name__ == "__main__"
    return not (is_main or _places(module) or isinstance(value, types.FunctionType))


def _places(value: Any) -> list[str]:
    """Return the file or folders that a function, class or module is from; [] if it has none."""
    if isinstance(value, types.FunctionType):
        found = [value.__code__.co_filename]
    elif isinstance(value, types.ModuleType):
        # Not by attributes: modules that are imported when they are used would be.
        file = vars(value).get("__file__")
        found = [file] if file else list(vars(value).get("__path__", ()))
    else:
        module = sys.modules.get(getattr(value, "__module__", None) or "")
        return [] if module is None else _places(module)
    return [place for place in found if Path(place).exists()]


def _is_in(places: Iterable[str], folders: Iterable[str]) -> bool:
    return any(Path(place).is_relative_to(f) for place in places for f in folders)


class _Reader:
    """Collects the description of values, of which a hash is made."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def read(self, value: Any) -> None:
        """Add the description of a value."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self.parts.append(repr(value))
            return
        if id(value) in self._seen:
            self.parts.append(f"again {self._seen[id(value)]}")
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        self._read_object(value)

    def _read_object(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, types.FunctionType):
            self._read_function(value)
        elif isinstance(value, functools.partial):
            self._read_all("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self._read_all("method", (value.__func__, value.__self__))
        elif isinstance(value, type):
            self._read_class(value)
        elif isinstance(value, types.ModuleType):
            self.parts.append(f"module {value.__name__}")
        elif isinstance(value, dict):
            self._read_all(f"dict {len(value)}", (x for item in value.items() for x in item))
        elif isinstance(value, list | tuple):
            self._read_all(f"{kind.__name__} {len(value)}", value)
        elif isinstance(value, set | frozenset):
            self._read_all(f"set {len(value)}", sorted(value, key=repr))
        elif isinstance(value, re.Pattern | Path):
            self.parts.append(repr(value))
        elif isinstance(value, np.ndarray | np.generic) or _is_jax_array(value):
            array = np.asarray(value)
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            self.parts.append(f"array {array.dtype} {array.shape} {digest}")
        else:
            self._read_instance(value)

    def _read_all(self, what: str, values: Iterable[Any]) -> None:
        self.parts.append(what)
        for value in values:
            self.read(value)

    def _read_function(self, function: types.FunctionType) -> None:
        if _is_library(function):
            self.parts.append(f"function {function.__module__}.{function.__qualname__}")
            return
        code = function.__code__
        self.parts.append(f"function {_source(code) or _bytecode(code)}")
        self._read_all("defaults", (function.__defaults__, function.__kwdefaults__))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._read_all(f"from outside {name}", (cell.cell_contents,))
            except ValueError:  # not assigned yet
                self.parts.append(f"from outside {name}")
        names = _names(code)
        self._read_named("global", names, function.__globals__, ())

    def _read_named(
        self, where: str, names: set[str], there: dict[str, Any], outer: tuple[Any, ...]
    ) -> None:
        """Add what code names of a namespace, and of the user's modules in it."""
        for name in sorted(names & there.keys()):
            value = there[name]
            self._read_all(f"{where} {name}", (value,))
            is_module = isinstance(value, types.ModuleType) and value not in outer
            if is_module and not _is_library(value):
                self._read_named(f"{where} {name}", names, vars(value), (*outer, value))

    def _read_class(self, value: type) -> None:
        if _is_library(value):
            self.parts.append(f"class {value.__module__}.{value.__qualname__}")
            return
        self._read_all(f"class {value.__qualname__}", value.__bases__)
        for name, member in sorted(vars(value).items()):
            if isinstance(member, staticmethod | classmethod):
                member = member.__func__
            elif isinstance(member, property):
                member = (member.fget, member.fset)
            # What Python adds follows from the rest.
            generated = isinstance(member, types.FunctionType) and not _places(member)
            special = name.startswith("__") and not isinstance(member, types.FunctionType)
            if not (generated or special or name.startswith("__annotate")):
                self._read_all(f"member {name}", (member,))

    def _read_instance(self, value: Any) -> None:
        kind = type(value)
        self._read_all("instance", (kind, getattr(value, "__wrapped__", None)))
        own = (types.FunctionType, functools.partial)
        for name, member in sorted(getattr(value, "__dict__", {}).items()):
            # Of a library's objects only what its decorators made of functions.
            if isinstance(member, own) or not _is_library(kind):
                self._read_all(f"member {name}", (member,))


def _is_jax_array(value: Any) -> bool:
    return "jax" in sys.modules and isinstance(value, sys.modules["jax"].Array)


def _names(code: types.CodeType) -> set[str]:
    """Return the names of globals and attributes that code and the functions in it use."""
    found = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found |= _names(inner)
    return found


# --- source --------------------------------------------------------------------------------------


def _source(code: types.CodeType) -> str | None:
    """Return the syntax tree of a function as text; None if its source cannot be found."""
    try:
        lines, _ = inspect.findsource(code)
        tree = _parsed("".join(lines))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    found = [node for node in ast.walk(tree) if _is_of(node, code)]
    # Of several lambdas on a line, all count.
    return "; ".join(_text(node, top=True) for node in found) or None


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _is_of(node: ast.AST, code: types.CodeType) -> bool:
    """Return whether a node is where the code of a function begins."""
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    first = min(n.lineno for n in (node, *node.decorator_list))
    return node.name == code.co_name and first == code.co_firstlineno


def _text(node: Any, *, top: bool = False) -> str:
    """Return a syntax tree as text, which is the same for all versions of Python."""
    if isinstance(node, list):
        return f"[{', '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(_fields(node))
    if top:
        fields.pop("decorator_list", None)
    return f"{type(node).__name__}({', '.join(f'{n}={_text(v)}' for n, v in fields.items())})"


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    has_docstring = (
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and ast.get_docstring(node, clean=False) is not None
    )
    for name, value in ast.iter_fields(node):
        if name == "body" and has_docstring:
            value = value[1:]
        if name not in _IDLE and value is not None and value != []:
            yield name, value


def _bytecode(code: types.CodeType) -> str:
    """Return what a function without source does, in this version of Python."""
    constants = [
        _bytecode(value) if isinstance(value, types.CodeType) else repr(value)
        for value in code.co_consts
    ]
    parts = (code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars)
    return f"{sys.implementation.cache_tag} {parts}"
