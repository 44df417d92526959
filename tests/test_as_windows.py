"""What Windows needs of the program, as far as another system can show it: the process
of `as_windows/sitecustomize.py` for a job, and rules for the source. The workflow
windows.yml runs the program there."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import python

SOURCES = [
    path
    for name in ("toolkit", "jobs", "extensions", "run.py", "launch.py")
    for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
]
LOCKS = ("lock').open('a')",)
"""Of files in which nothing is written."""


def without_encoding(text: str) -> list[str]:
    """The calls that read or write text in the encoding of the system: `open` and
    `fdopen` with a mode of text or none, and the methods of paths."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        name = getattr(node.func, "attr" if is_method else "id", "")
        if any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        given = [word.value for word in node.keywords if word.arg == "mode"]
        given += node.args[:1] if is_method and name == "open" else node.args[1:2]
        modes = {
            value.value
            for mode in given
            for value in ast.walk(mode)
            if isinstance(value, ast.Constant) and isinstance(value.value, str)
        }
        of_text = {mode for mode in modes if mode and set(mode) <= set("rwax+t")}
        is_open = name in ("open", "fdopen") and (
            of_text or (not is_method and not modes)
        )
        is_path = is_method and {"read_text": 1, "write_text": 2}.get(name, 0) > len(
            node.args
        )
        if (is_open or is_path) and not ast.unparse(node).endswith(LOCKS):
            found.append(ast.unparse(node))
    return found


def test_every_text_file_is_opened_with_an_encoding() -> None:
    assert len(SOURCES) > 300
    for call in ("p.read_text()", "open(p)", "p.open('w')", "os.fdopen(3, 'w')"):
        assert without_encoding(call) == [call]
    found = {
        f"{path.relative_to(ROOT)}: {call}"
        for path in SOURCES
        for call in without_encoding(path.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks /proc for files")
def test_what_another_system_plays_of_windows_is_played(tmp_path: Path) -> None:
    """In modules of the program alone, of which __main__ is one here."""
    script = """
import errno, os, signal, tempfile
assert not hasattr(os, "fork") and not hasattr(os, "getuid") and os.getpid()
assert not hasattr(signal, "SIGKILL") and signal.SIGTERM
try:
    import fcntl
except ImportError:
    print("no fcntl")
with open("opened", "w") as held:
    os.replace("job", "opened")
os.replace("opened", "closed")
"""
    (tmp_path / "job").write_text("x")
    opened = tmp_path / "opened.txt"
    environment = {**os.environ, **AS_WINDOWS, "AS_WINDOWS": str(opened)}
    assert python(script, cwd=tmp_path, env=environment, said="") == "no fcntl\n"
    assert opened.read_text() == "os.rename of opened, which is open\n"


AS_WINDOWS = {"PYTHONPATH": str(ROOT / "tests" / "as_windows")}
LONGEST = 120
"""Characters of a path below the training folder, of the 260 that Windows has."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks /proc for files")
def test_a_job_reaches_no_name_of_posix_and_replaces_no_open_file(
    run_py, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    """One whole job with saves, samples, a state and the removal of older ones, begun
    twice."""
    pictures = make_pictures(tmp_path / "pictures", "a", "b", "c")
    save = {"save_every": 1, "max_step_saves_to_keep": 1, "dtype": "float32"}
    size = {"width": 64, "height": 64, "sample_steps": 2}
    sample = {"sample_every": 2, "prompts": ["a cat"], **size}
    job = write_job(trainer(pictures, save=save, sample=sample))
    opened = tmp_path / "opened.txt"
    given = {**AS_WINDOWS, "AS_WINDOWS": str(opened)}
    for flags in ([], ["--restart"]):
        done = run_py(job, *flags, env=given)
        assert done.returncode == 0, done.stderr
    assert not opened.exists(), opened.read_text()
    output = tmp_path / "output"
    names = [str(path.relative_to(output)) for path in output.rglob("*")]
    assert names and max(map(len, names)) <= LONGEST
    forbidden = [name for name in names if set(name) & set('<>:"|?*')]
    assert forbidden == []


@pytest.mark.slow
def test_every_module_can_be_imported_without_names_of_posix() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
    ]
    script = f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
    python(script, env={**os.environ, **AS_WINDOWS})
