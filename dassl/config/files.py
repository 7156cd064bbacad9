"""Reading YAML: the one place that parses a config file or the config.yaml of a run."""

from __future__ import annotations

import os
from typing import Any

import yaml

from dassl.config.domains import MOST_BITS, is_storable
from dassl.errors import UserError, shown

DEEPEST = 50  # levels of nesting
MOST_VALUES = 100_000  # in one file, a value counted again wherever an alias repeats it
SECTION, LIST, MERGE = (f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "merge"))
PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML file: sections of text keys, with texts, numbers, True, False, null and lists.

    An empty file is an empty section. UTF-16 with a byte-order mark is read as well as UTF-8.

    Raises:
        UserError: the file is missing, cannot be read or holds something else; a key is twice in
            its section; or aliases repeat too much. One line with the file and the line in it.
    """
    if not is_storable(path):
        raise UserError(f"config file '{path}': expected a name in Unicode")
    if not os.path.isfile(path):
        kind = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"config file '{path}' {kind}")
    try:
        with open(path, "rb") as file:
            loader = yaml.SafeLoader(file.read())
        node = loader.get_single_node()
        if node is None:
            return {}
        _Check(loader, path).values(node, "", DEEPEST)
        tree = loader.construct_document(node)
    except (OSError, yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        reason = " ".join(reason.replace('in "<byte string>", ', "in ").split())
        raise UserError(f"config file '{path}' cannot be read: {reason}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        got = "a list" if isinstance(tree, list) else shown(tree)
        raise UserError(f"config file '{path}': expected a mapping of keys, got {got}")
    return tree


class _Check:
    """Refuses what a config cannot hold, before lists and sections are made of it."""

    def __init__(self, loader: yaml.SafeLoader, path: str) -> None:
        self.loader, self.path = loader, path
        self.counts: dict[int, int] = {}  # by the id of a node: aliases share nodes

    def values(self, node: yaml.Node, key: str, levels: int) -> int:
        """Check a node that is the value of ``key`` and return the number of values in it."""
        if id(node) in self.counts:
            return self.counts[id(node)]
        if levels == 0:
            raise self.error(node, key, f"at most {DEEPEST} levels of nesting", "more")
        if isinstance(node, yaml.MappingNode) and node.tag == SECTION:
            count = self.section(node, key, levels)
        elif isinstance(node, yaml.SequenceNode) and node.tag == LIST:
            count = 1 + sum(self.values(item, key, levels - 1) for item in node.value)
        else:
            self.scalar(node, key)
            count = 1
        if count > MOST_VALUES:
            raise self.error(node, key, f"at most {MOST_VALUES:,} values", f"{count:.2g}")
        self.counts[id(node)] = count
        return count

    def section(self, node: yaml.MappingNode, prefix: str, levels: int) -> int:
        count, lines = 1, dict[str, int]()
        for name, value in node.value:
            if name.tag not in ("tag:yaml.org,2002:str", MERGE):
                got = (
                    shown(name.value) if isinstance(name, yaml.ScalarNode) else "a list or section"
                )
                raise self.error(name, prefix, "text as a key", got)
            key = f"{prefix}.{name.value}".lstrip(".")
            if name.value in lines:
                first = lines[name.value]
                raise self.error(name, key, f"a key once, as in line {first}", "it again")
            lines[name.value] = name.start_mark.line + 1
            count += self.values(value, key, levels - 1)
        return count

    def scalar(self, node: yaml.Node, key: str) -> None:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if node.tag not in PLAIN or not isinstance(node, yaml.ScalarNode):
            raise self.error(node, key, "text, a number, True, False, null or a list", f"!!{kind}")
        try:
            value = self.loader.construct_object(node)
        except (ValueError, LookupError, yaml.YAMLError) as error:
            raise self.error(node, key, f"a value of type {kind}", shown(node.value)) from error
        if isinstance(value, int) and not is_storable(value):
            raise self.error(node, key, f"a whole number of at most {MOST_BITS:,} bits", "more")

    def error(self, node: yaml.Node, key: str, expected: str, got: str) -> UserError:
        where = f"line {node.start_mark.line + 1} of '{self.path}'"
        return UserError(f"{key or 'file'}: expected {expected}, got {got} in {where}")
