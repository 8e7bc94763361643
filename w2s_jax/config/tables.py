"""Tables of declarations (losses, methods, phase kinds), empty until they are first read."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

from w2s_jax.config.extensions import EXTENSIONS
from w2s_jax.core import errors


class Declaration(Protocol):
    """An entry of a `Table`."""

    @property
    def name(self) -> str:
        """The key of the entry."""


Spec = TypeVar("Spec", bound=Declaration)


class Table(Mapping[str, Spec]):
    """A mapping of names to declarations, in the order of `EXTENSIONS`.

    The first read imports the modules that `EXTENSIONS` lists for `group`; each calls `add` while
    it is imported. The `__init__` of a package with such modules ends with `load()`: the order of
    the entries then does not depend on which module is imported first, and built-in entries come
    before those that a user adds.

    Args:
      group: a key of `EXTENSIONS`, and the name of an entry in error messages.
    """

    def __init__(self, group: str):
        self._group = group
        self._entries: dict[str, Spec] = {}
        self._loaded = False

    def load(self) -> None:
        """Import the modules of the built-in entries, once."""
        if self._loaded:
            return
        # Set first: the modules' packages call this method while they are imported.
        self._loaded = True
        try:
            for module in EXTENSIONS[self._group]:
                importlib.import_module(module)
        except BaseException:
            self._loaded = False
            raise

    def add(self, spec: Spec) -> Spec:
        """Add an entry under its name and return it.

        Raises:
          InputError: if the name is taken.
        """
        if spec.name in self._entries:
            raise errors.InputError(f"{self._group} {spec.name!r} is already registered")
        self._entries[spec.name] = spec
        return spec

    def pop(self, name: str) -> Spec:
        """Remove an entry and return it, for tests."""
        return self._entries.pop(name)

    def named(self, name: str, field: str) -> Spec:
        """Return the entry of that name.

        Raises:
          InputError: if there is none; with `field`, the nearest name, and all names.
        """
        if not isinstance(name, str) or name not in self:
            raise errors.unknown(field, name, self)
        return self[name]

    def __getitem__(self, name: str) -> Spec:
        self.load()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(self._entries)

    def __len__(self) -> int:
        self.load()
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Table({self._group!r}, {list(self._entries)})"
