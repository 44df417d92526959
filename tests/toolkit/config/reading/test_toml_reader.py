"""Places of keys and values in TOML, and its faults."""

from __future__ import annotations

import pytest

from toolkit.config.reading.located import Diagnostics
from toolkit.config.reading.toml_reader import read_toml
from toolkit.errors import ConfigErrors

TEXT = """\
# a comment = 1
a = 1
  "b c".d = [
  "x = 1",   # a bracket ] in a comment
]
text = '''
[no.head]
c = 3
'''
[table]
e = { f = 2 }
[[rows]]
g = 'one'
[[rows]]
g = 'two'
  [[rows.parts]]
  h = 1
[[rows]]
  [[rows.parts]]
  h = 2
  [[rows.parts]]
  h = 3
  [rows.parts.more]
  i = 4
"""


@pytest.mark.parametrize(
    ("path", "value", "key", "at"),
    [
        (("a",), 1, (2, 1), (2, 5)),
        (("b c", "d"), ["x = 1"], (3, 3), (3, 13)),
        (("text",), "[no.head]\nc = 3\n", (6, 1), (6, 8)),
        (("table", "e"), {"f": 2}, (11, 1), (11, 5)),
        (("rows", 1, "g"), "two", (15, 1), (15, 5)),
        (("rows", 1, "parts", 0, "h"), 1, (17, 3), (17, 7)),
        (("rows", 2, "parts", 0, "h"), 2, (20, 3), (20, 7)),
        (("rows", 2, "parts", 1, "h"), 3, (22, 3), (22, 7)),
        (("rows", 2, "parts", 1, "more", "i"), 4, (24, 3), (24, 7)),
    ],
)
def test_each_value_has_its_line_and_column(
    path: tuple, value: object, key: tuple, at: tuple
) -> None:
    root = read_toml(TEXT, Diagnostics("f"))
    assert root is not None
    node, rest = root.find(path)
    assert rest == () and node.data() == value
    assert (node.key_at[:2], node.value_at[:2]) == (key, at)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a = 1\nb\n", "f:2:2: not valid TOML: no '=' follows the key."),
        ("a = 1\na = 2\n", "f:2:6: not valid TOML: this key is given twice."),
        (
            'a = "C:\\models"\n',
            "f:1:10: not valid TOML: '\\' begins an escape within double quotes.",
        ),
        ("a = True\n", "f:1:5: not valid TOML: this value is none of TOML."),
        ('a = "x\n', "f:1:7: not valid TOML: the quote that opens here is not closed."),
        ("a = [1, 2\n", "f:1:1: not valid TOML: a bracket is not closed"),
        (
            'a = "C:\\Users"\n',
            "f:1:10: not valid TOML: '\\' begins an escape within double quotes.",
        ),
        (
            "a = 1, 2\n",
            "f:1:6: not valid TOML: more follows the value on this line. A list needs brackets: [1, 2].",
        ),
        (
            '{"a": 1}',
            "f:1:1: holds JSON, not TOML. Rename it, so that it ends in .json.",
        ),
        (
            '[{"a": 1}]',
            "f:1:1: holds JSON, not TOML. Rename it, so that it ends in .json.",
        ),
        ("a: 1\nb: 2\n", "f:1:1: holds YAML, not TOML."),
    ],
)
def test_a_fault_is_told_with_line_and_column(text: str, fault: str) -> None:
    diagnostics = Diagnostics("f")
    assert read_toml(text, diagnostics) is None
    with pytest.raises(ConfigErrors) as error:
        diagnostics.raise_errors()
    assert str(error.value).startswith(fault)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('a = "x\nb = [1,\nc = {x = 1\nd = tru\ne = 5\ne = 6\n', [1, 2, 3, 4, 6]),
        ("a = [1,\nb = 2\nc = x\n", [1, 3]),
        ("a = 1\nb = [\n 1,\n 2\n", [2]),
        ("a = '''\n1\nb = 2\n", [1]),
    ],
)
def test_all_faults_are_told_each_at_its_own_line(text: str, lines: list[int]) -> None:
    diagnostics = Diagnostics("f")
    assert read_toml(text, diagnostics) is None
    with pytest.raises(ConfigErrors) as error:
        diagnostics.raise_errors()
    assert [int(line.split(":")[1]) for line in str(error.value).splitlines()] == lines


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a = " + "[" * 5000, "1:1: nested deeper than 64 levels."),
        ("a = " + "[" * 70 + "]" * 70, "1:1: nested deeper than 64 levels."),
        (".".join("a" * 3000) + " = 1", "1:1: nested deeper than 64 levels."),
        ("a = " + "{b = " * 5000, "1:1: nested deeper than 64 levels."),
        (".".join("a" * 200_000) + " = 1", "1:1: nested deeper than 64 levels."),
        (
            "\nx = {" + ".".join("a" * 200_000) + " = 1}",
            "2:1: nested deeper than 64 levels.",
        ),
        (
            "\na = " + "9" * 5000,
            "2:1: not valid TOML: a number has more than 4,300 digits.",
        ),
        ("a = 2024-99-99", "not valid TOML"),
        ("a: 2024-99-99", "not valid TOML"),
    ],
)
def test_what_no_config_holds_is_one_line(text: str, fault: str) -> None:
    diagnostics = Diagnostics("c.toml")
    assert read_toml(text, diagnostics) is None
    with pytest.raises(ConfigErrors) as caught:
        diagnostics.raise_errors()
    assert fault in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_list_of_many_lines_is_read_in_time_that_grows_with_it() -> None:
    """One more attempt per line would take minutes."""
    text = "a = [\n" + "'x',\n" * 20_000 + "]\nb = 1\n"
    root = read_toml(text, Diagnostics("c.toml"))
    assert (
        root is not None
        and len(root.value["a"].value) == 20_000
        and root.value["b"].value_at[:2] == (20_003, 5)
    )


def test_a_key_that_fills_screens_is_cut_in_messages() -> None:
    diagnostics = Diagnostics("c.toml")
    root = read_toml("x" * 50_000 + " = 1", diagnostics)
    assert root is not None
    (key,) = root.value
    diagnostics.error(root.value[key], f"{key}: unknown key.")
    with pytest.raises(ConfigErrors) as caught:
        diagnostics.raise_errors()
    assert len(str(caught.value)) < 300 and "xxx... unknown key." in str(caught.value)
