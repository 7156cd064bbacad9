"""Properties that hold for any input, on examples that hypothesis makes (the same in every run)."""

from __future__ import annotations

import io
import math
import string

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dassl.config import get_cfg_default, merge_from_list, read_yaml
from dassl.config.defaults import check_domains
from dassl.engine.resume import digest_of
from dassl.errors import UserError, escaped, is_control
from dassl.json_file import parse_json
from dassl.utils import read_json, write_json

same_examples = settings(
    derandomize=True,
    database=None,
    deadline=None,  # no test times anything, hypothesis's own checks included
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
plain = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
# characters that mean something to YAML and JSON, and so lead further into their parsers
syntax = st.text(st.sampled_from("{}[]:,-?|>&*!#%@`'\"\\\n \tab1.e+~<=\ud800\0"), max_size=60)


def without_infinity(value):
    """Return the value as JSON can hold it."""
    if isinstance(value, dict):
        return {name: without_infinity(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_infinity(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_one_line(error: UserError) -> bool:
    return not any(map(is_control, str(error)))


@same_examples
@given(st.text())
def test_what_is_shown_holds_nothing_that_a_terminal_obeys(text):
    shown = escaped(text)
    assert not any(map(is_control, shown)) and escaped(shown) == shown
    if not any(map(is_control, text)) and text.isascii():
        assert shown == text
    assert is_one_line(UserError(text))


@same_examples
@given(plain)
def test_json_that_is_written_is_read_again(tmp_path, value):
    path = str(tmp_path / "file.json")
    write_json(value, path)
    assert read_json(path) == without_infinity(value)


@same_examples
@given(st.binary(max_size=60) | syntax.map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_are_json_or_one_line(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    try:
        value = read_json(str(path))
    except UserError as error:
        assert str(path) in str(error) and is_one_line(error)
    else:
        write_json(value, str(path))
        assert read_json(str(path)) == value


@same_examples
@given(st.dictionaries(st.text(string.ascii_letters), st.integers(), min_size=1), st.data())
def test_a_name_that_is_there_twice_is_found(members, data):
    name = data.draw(st.sampled_from(sorted(members)))
    lines = [f'"{key}": {value}' for key, value in members.items()]
    lines.insert(data.draw(st.integers(0, len(lines))), f'"{name}": 0')
    found = [number for number, line in enumerate(lines, 2) if line.startswith(f'"{name}"')]
    text = "{\n" + ",\n".join(lines) + "\n}"
    with pytest.raises(UserError, match=f'"{name}" is there twice, again in line {found[1]}$'):
        parse_json(text, "it")


@same_examples
@given(st.binary(max_size=60) | syntax.map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_are_a_section_of_yaml_or_one_line(tmp_path, content):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    try:
        tree = read_yaml(str(path))
    except UserError as error:
        assert str(path) in str(error) and is_one_line(error)
    else:
        assert isinstance(tree, dict) and all(isinstance(name, str) for name in tree)


@same_examples
@given(
    st.sampled_from(["OPTIM.LR", "SEED", "INPUT.SIZE", "USE_CUDA", "DATASET.ROOT", "OPTIM.NAME"]),
    syntax | st.text(max_size=20) | plain.map(repr),
)
def test_any_value_of_a_key_is_in_its_domain_or_one_line(key, text):
    cfg = get_cfg_default()
    try:
        merge_from_list(cfg, [key, text])
        check_domains(cfg, section=key)
    except UserError as error:
        assert str(error).startswith(f"{key}: expected ") and is_one_line(error)
    else:
        section, _, name = key.rpartition(".")
        value = (cfg[section] if section else cfg)[name]
        assert math.isfinite(value) if isinstance(value, float) else value == value


@same_examples
@given(plain, plain)
def test_a_digest_outlives_a_file_and_tells_values_apart(one, other):
    state = {"values": one, "tensor": torch.arange(6.0).reshape(2, 3).t()}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert digest_of(torch.load(file, weights_only=True)) == digest_of(state)
    if repr(one) != repr(other):  # nan is not itself, and 1 is 1.0 and True
        assert digest_of(one) != digest_of(other)
    assert digest_of({**state, "tensor": state["tensor"] + 1}) != digest_of(state)
