"""YAML documents: values, the place of each key, and sentences for what cannot be read."""

import pytest

from sed_sr.options.errors import UserError
from sed_sr.options.yaml_text import parse_yaml, to_yaml


def test_value_and_place_of_every_key():
    tree, sources = parse_yaml("a: 1\nb:\n  c: [x, true]\n  d: null\n", "file.yml")
    assert tree == {"a": 1, "b": {"c": ("x", True), "d": None}}
    assert sources == {
        ("a",): "file.yml:1", ("b",): "file.yml:2", ("b", "c"): "file.yml:3", ("b", "d"): "file.yml:4",
    }  # fmt: skip


def test_scientific_notation_is_a_number():
    text = "[1e-4, 3e5, -1E+2, .5e1, 2.e3, 1.5, 10]"
    assert parse_yaml(text, "x")[0] == (0.0001, 3e5, -100.0, 5.0, 2000.0, 1.5, 10)


def test_every_text_is_written_so_that_it_reads_back_as_text():
    tree = {"a": ["1e5", "1e-4", ".5e1", "null", "yes", "1", "1.5", "x", "", "-"], "b": [1e-5, 1e300, 0.1, 3, True]}
    assert parse_yaml(to_yaml(tree), "x")[0] == {key: tuple(value) for key, value in tree.items()}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("name: [a", "not valid YAML"),
        ("name: a\nname: b", "file.yml:2: the key name is given twice"),
        ("name: !!python/name:os.system x", "file.yml:1: cannot read the value"),
        ("name: &x [*x]", "an anchor inside itself"),
        ("seed: 2026-13-45", "file.yml:1"),
        ("seed: !!bool x", "file.yml:1"),
        ("<<: {a: 1}", "file.yml:1: a key should be a plain word"),
        ("\x00", "not valid YAML"),
    ],
)
def test_unreadable_document_is_refused_in_a_sentence(text, fragment):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "file.yml")
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_that_expand_to_too_many_values_are_refused():
    text = "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9 if i else 1}]\n" for i in range(9))
    with pytest.raises(UserError, match="more than 10000 values"):
        parse_yaml(text, "file.yml")
