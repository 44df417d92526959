"""Names that lead to modules."""

import gc
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

import pytest

import extensions
from toolkit.errors import UserError
from toolkit.registry import (
    HINTED_TOOLS,
    LEFT_OUT,
    Registry,
    find_object,
    hinted_tool,
    is_present,
    load_needed,
    load_object,
    part_of,
)

SHAPES = Registry(
    "shape",
    {
        "path": "pathlib:Path",
        "queue": "collections:deque",
        "absent": "no_such_module:X",
    },
)


def test_a_name_gives_its_object() -> None:
    assert SHAPES.load("path") is Path


def test_a_module_is_imported_only_when_its_name_is_used() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        SHAPES.load("absent")


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(UserError) as caught:
        SHAPES.load("quueue")
    assert str(caught.value) == (
        "unknown shape 'quueue'. Did you mean 'queue'? Known names: absent, path, queue."
    )


def test_no_cycles_are_looked_for_while_a_module_is_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "of_this_test.py").write_text("import gc\nENABLED = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_object("of_this_test:ENABLED") is False and gc.isenabled()
    with pytest.raises(ModuleNotFoundError):
        load_object("no_such_module:X")
    assert gc.isenabled()
    gc.disable()
    try:
        load_object("pathlib:Path")
        assert not gc.isenabled(), "whoever disabled it enables it"
    finally:
        gc.enable()


# ------------------------------------------------------------ parts that may be absent

NOWHERE = "extensions.no_such_part.module:NAME"


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("toolkit.errors:UserError", ""),
        ("extensions.example.config:ExampleConfig", "extensions.example"),
        ("extensions.tools.any.config:AnyConfig", "extensions.tools.any"),
        ("extensions.tools.any", "extensions.tools.any"),
    ],
)
def test_the_part_of_an_entry_is_its_folder(path: str, part: str) -> None:
    assert part_of(path) == part


def test_entries_of_a_part_that_is_not_installed_are_left_out() -> None:
    shapes = Registry(
        "shape",
        {
            "path": "pathlib:Path",
            "ours": NOWHERE,
            "tool": "extensions.tools.no_such_tool.x:X",
        },
    )
    assert [*shapes] == ["path"]
    assert find_object(NOWHERE) is None
    with pytest.raises(
        UserError,
        match=r"^vae: x needs the extension 'no_such_part', which is not installed\.$",
    ):
        load_needed(NOWHERE, "vae: x")


def test_a_part_that_was_removed_leaves_a_folder_and_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`git rm` keeps `__pycache__`, which makes the folder a package to Python."""
    monkeypatch.setattr(extensions, "__path__", [*extensions.__path__, str(tmp_path)])
    (tmp_path / "no_such_part" / "__pycache__").mkdir(parents=True)
    assert find_spec("extensions.no_such_part") and find_object(NOWHERE) is None
    (tmp_path / "no_such_part" / "__init__.py").touch()
    invalidate_caches()
    assert is_present(NOWHERE)


@pytest.mark.parametrize("name", ["example", "other,example"])
def test_entries_of_a_part_that_without_names_are_left_out(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = "extensions.example.config:ExampleConfig"
    shapes = Registry("shape", {"ours": path, "path": "pathlib:Path"})
    assert find_object(path) is shapes.load("ours") is load_needed(path, "x")
    monkeypatch.setenv(LEFT_OUT, name)
    shapes.leave_out()
    assert [*shapes] == ["path"]
    assert not is_present(path) and find_object(path) is None
    with pytest.raises(
        UserError,
        match=r"^x needs the extension 'example', which '--without example' leaves out\.$",
    ):
        load_needed(path, "x")


@pytest.mark.parametrize("what", HINTED_TOOLS)
def test_a_message_advises_a_tool_only_where_it_is_there(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv(LEFT_OUT, HINTED_TOOLS[what])
    assert hinted_tool(what) == ""
    monkeypatch.setenv(LEFT_OUT, "tools")
    assert hinted_tool(what) == ""
    monkeypatch.delenv(LEFT_OUT)
    assert hinted_tool(what) in (HINTED_TOOLS[what], "")
