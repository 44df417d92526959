"""Names that lead to modules."""

import gc
from pathlib import Path

import pytest

from toolkit.errors import UserError
from toolkit.registry import Registry, load_object

SHAPES = Registry("shape", {"path": "pathlib:Path", "queue": "collections:deque", "absent": "no_such_module:X"})


def test_a_name_gives_its_object() -> None:
    assert SHAPES.load("path") is Path


def test_a_module_is_imported_only_when_its_name_is_used() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        SHAPES.load("absent")


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(UserError) as caught:
        SHAPES.load("quueue")
    assert str(caught.value) == ("unknown shape 'quueue'. Did you mean 'queue'? Known names: absent, path, queue.")


def test_no_cycles_are_looked_for_while_a_module_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
