"""Names that lead to modules."""

import pytest

from toolkit.errors import UserError
from toolkit.registry import Registry

SHAPES = Registry("shape", {"path": "pathlib:Path", "queue": "collections:deque", "absent": "no_such_module:X"})


def test_a_name_gives_its_object() -> None:
    from pathlib import Path

    assert SHAPES.load("path") is Path


def test_a_module_is_imported_only_when_its_name_is_used() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        SHAPES.load("absent")


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(UserError) as caught:
        SHAPES.load("quueue")
    assert str(caught.value) == ("unknown shape 'quueue'. Did you mean 'queue'? Known names: absent, path, queue.")
