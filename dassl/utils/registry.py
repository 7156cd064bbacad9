"""A table of named classes."""

from __future__ import annotations

from typing import Any

from dassl.errors import UnknownNameError, nearest


class Registry:
    """Maps the names of classes or functions to themselves.

    ``@REGISTRY.register()`` above a class enters it under its own name, ``@REGISTRY.register("x")``
    under another; ``REGISTRY.get(name)`` finds it.

    Args:
        name: what the registry holds, such as "TRAINER"; appears in error messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Enter ``obj``, or return a decorator that does: without one, or for a name (str).

        Raises:
            KeyError: the name is taken, unless ``force`` is set.
        """
        name = obj if isinstance(obj, str) else ""
        if obj is not None and not name:
            self._enter(obj.__name__, obj, force)
            return None

        def decorator(decorated: Any) -> Any:
            self._enter(name or decorated.__name__, decorated, force)
            return decorated

        return decorator

    def _enter(self, name: str, obj: Any, force: bool) -> None:
        if name in self._objects and not force:
            raise KeyError(f"the {self._name} registry already has a '{name}'")
        self._objects[name] = obj

    def get(self, name: str) -> Any:
        """Return the object of that name.

        Raises:
            UnknownNameError: there is none; the message gives the nearest known names.
        """
        if name not in self._objects:
            kind = self._name.lower()
            raise UnknownNameError(f"unknown {kind} '{name}'; {nearest(name, self._objects)}")
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """Return all names, in the order in which they were entered."""
        return list(self._objects)
