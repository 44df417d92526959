"""Where a config named on the command line is looked for."""

from pathlib import Path

import pytest

from toolkit.errors import UserError
from toolkit.files.writing import (
    CONFIG_ROOT,
    EXTENSIONS_ROOT,
    TOOLKIT_ROOT,
    find_config,
    moved_examples,
)


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config").mkdir()


def test_roots_hold_the_program() -> None:
    assert (TOOLKIT_ROOT / "run.py").is_file()
    assert EXTENSIONS_ROOT.parent == CONFIG_ROOT.parent == TOOLKIT_ROOT


@pytest.mark.parametrize(
    ("files", "asked", "found"),
    [
        ("a.yaml config/a.yaml", "a.yaml", "a.yaml"),
        ("config/a.yaml", "a.yaml", "config/a.yaml"),
        ("a/photo.jpg config/a.yaml", "a", "config/a.yaml"),
        *(
            (f"config/{name}", "a", f"config/{name}")
            for name in ("a", "a.yaml", "a.yml", "a.json", "a.jsonc")
        ),
    ],
)
def test_the_path_as_given_comes_first_then_one_in_config(
    files: str, asked: str, found: str
) -> None:
    for file in map(Path, files.split()):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert find_config(asked) == Path(found)


def test_the_error_lists_the_places(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_config("nowhere")
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "config/nowhere" in message
    assert str(CONFIG_ROOT / "nowhere") in message


def test_an_example_that_runs_elsewhere_finds_what_it_names(tmp_path: Path) -> None:
    assert moved_examples() == {"config/examples": str(CONFIG_ROOT / "examples")}
    Path("config/examples").mkdir()
    assert moved_examples() == {}
