"""Merging files and command-line pairs into a config, with errors that a user can read."""

from __future__ import annotations

import os
import sys
from ast import literal_eval
from typing import Any

from yacs.config import CfgNode as CN

from dassl.config.defaults import domains_of
from dassl.config.domains import Bool, Words
from dassl.config.files import read_yaml
from dassl.errors import UnknownNameError, UserError, nearest, shown


def merge_from_file(cfg: CN, path: str) -> None:
    """Merge a YAML file into ``cfg``.

    A file may name others that come first: ``BASE: [relative/path.yaml, ...]``, relative to its
    own folder. The later of them wins over the earlier, and the file itself over all of them.

    Raises:
        UserError: the file or one of its bases is missing or not a YAML mapping, ``BASE`` is not a
            list of texts or leads back to the file, or a key or the type of a value is wrong.
    """
    _merge_file(cfg, path, ())


def _merge_file(cfg: CN, path: str, above: tuple[str, ...]) -> None:
    """Merge a file; ``above`` are the real paths of the files that it is a base of."""
    tree = read_yaml(path)
    bases = tree.pop("BASE", [])
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise UserError(f"BASE in '{path}': expected a list of file names, got {shown(bases)}")
    above = (*above, os.path.realpath(path))
    for base in bases:
        base_path = os.path.normpath(os.path.join(os.path.dirname(path), base))
        if not os.path.isfile(base_path):
            raise UserError(f"BASE in '{path}': expected an existing file, got '{base}'")
        if os.path.realpath(base_path) in above:
            raise UserError(f"BASE in '{path}': expected no cycle of files, got '{base}'")
        _merge_file(cfg, base_path, above)
    _merge(cfg, tree, "", f" in '{path}'", _recorded(cfg))


def merge_from_dict(cfg: CN, tree: dict[str, Any], place: str) -> None:
    """Merge nested plain dicts, such as those of ``to_dict``, into ``cfg``.

    Raises:
        UserError: a key or the type of a value is wrong; the message names the file ``place``.
    """
    _merge(cfg, tree, "", f" in '{place}'", _recorded(cfg))


def trainer_in_file(path: str) -> str:
    """Return the TRAINER.NAME that a YAML file itself sets; "" if none, or without such a file."""
    node = read_yaml(path).get("TRAINER") if os.path.isfile(path) else None
    name = node.get("NAME") if isinstance(node, dict) else None
    return name if isinstance(name, str) else ""


def merge_from_list(cfg: CN, options: list[str] | None) -> None:
    """Merge ``[KEY, VALUE, KEY, VALUE, ...]`` into ``cfg``; values are Python literals or words.

    Raises:
        UserError: a key is unknown or has no value, or the type of a value is wrong.
    """
    options = list(options or [])
    if len(options) % 2:
        raise UserError(f"config options must be KEY VALUE pairs, but '{options[-1]}' has no value")
    for key, value in zip(options[::2], options[1::2], strict=True):
        tree: Any = value
        for part in reversed(key.split(".")):
            tree = {part: tree}
        _merge(cfg, tree, "", " on the command line", _recorded(cfg))


def set_key(cfg: CN, key: str, value: Any) -> None:
    """Set one key as a user's option, such as ``--seed``, does; the value is taken as it is."""
    *nodes, name = key.split(".")
    node = cfg
    for part in nodes:
        node = node[part]
    node[name] = value
    _recorded(cfg).add(key)


def set_keys(cfg: CN) -> frozenset[str]:
    """Return the dotted keys that files, pairs and options have set; the others are defaults.

    What Python code assigns (``cfg.OPTIM.LR = 0.1``) is not among them.
    """
    return frozenset(_recorded(cfg))


def _recorded(cfg: CN) -> set[str]:
    # Beside yacs's own attributes of the tree: clones have it, and no key or printout shows it.
    return cfg.__dict__.setdefault("__set_keys__", set())


def _merge(cfg: CN, tree: dict[str, Any], prefix: str, where: str, recorded: set[str]) -> None:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in cfg:
            known = nearest(name, cfg)
            raise UnknownNameError(
                f"{key}: expected a known key, got an unknown one{where}; {known}"
            )
        if isinstance(cfg[name], CN):
            if not isinstance(value, dict):
                raise UserError(f"{key}: expected a section of keys, got {shown(value)}{where}")
            _merge(cfg[name], value, key + ".", where, recorded)
        else:
            cfg[name] = _coerce(key, value, cfg[name], where)
            recorded.add(key)


def _coerce(key: str, value: Any, default: Any, where: str) -> Any:
    """Convert a value to the type of the default; a str that is a Python literal is read as one.

    What a declared domain of the key takes may be of another type; where nobody declared the key,
    as in the nodes of public files, a whole number may become a fraction.
    """
    domains = domains_of(key)
    words = next((domain for domain in domains if isinstance(domain, Words)), None)
    if isinstance(value, str):
        is_text = isinstance(default, str) if words is None else value not in ("True", "False")
        if _is_quoted(value) or not is_text:
            try:
                value = literal_eval(value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                pass
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        # one that is too large for a float is left to the domain of the key to refuse
        return float(value) if abs(value) <= sys.float_info.max else value
    if isinstance(default, (tuple, list)) and isinstance(value, (tuple, list)):
        return type(default)(value)
    undeclared_number = not domains and type(default) is int and isinstance(value, float)
    if undeclared_number or any(value in domain for domain in domains):
        return value
    expected = words or _kind_of(default)
    raise UserError(f"{key}: expected {expected}, got {shown(value)}{where}")


def _is_quoted(value: str) -> bool:
    return len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""


def _kind_of(default: Any) -> str:
    if isinstance(default, bool):
        return str(Bool())
    name = type(default).__name__
    kind = {"str": "text", "int": "whole number", "float": "number"}.get(name, name)
    return f"a {kind} such as {default!r}"


def to_dict(cfg: CN) -> dict[str, Any]:
    """Return the config as nested plain dicts, tuples as lists: what JSON and YAML can hold."""
    plain: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, CN):
            plain[key] = to_dict(value)
        else:
            plain[key] = with_lists(value)
    return plain


def with_lists(value: Any) -> Any:
    """Return a value with lists in place of tuples, wherever they are in it."""
    return [with_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested plain dicts by dotted key."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return found


def first_difference(
    old: dict[str, Any], new: dict[str, Any], ignore: tuple[str, ...] = (), prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """Find the first key, in alphabetical order, at which two configs of ``to_dict`` differ.

    Returns:
        The dotted key with its old and its new value, or None. Keys that only one of them has do
        not count: another version of the library may know more keys.
    """
    for key in sorted(set(old) & set(new)):
        name = prefix + key
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            found = first_difference(old[key], new[key], ignore, name + ".")
            if found is not None:
                return found
        elif old[key] != new[key] and name not in ignore:
            return name, old[key], new[key]
    return None
