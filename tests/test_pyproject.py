"""The package that `uv tool install .` makes: its requirements are those that are
tested, and it works outside a checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.conftest import ROOT, TURNED_HEIC
from tests.processes import output_of
from toolkit.version import VERSION

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]


def pinned(*files: str) -> set[str]:
    """The lines `package==version` of these files of requirements."""
    lines = [
        line
        for file in files
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
    ]
    return {line.strip() for line in lines if "==" in line}


def test_what_is_installed_is_what_is_tested() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {*PROJECT["dependencies"]} == pinned("requirements.txt")
    assert {*PROJECT["dependencies"], *chain(*extras.values())} <= pinned(
        "requirements.txt", "requirements-dev.txt"
    )
    assert {*extras["ui"]} <= {*PROJECT["dependencies"]}


def test_the_changelog_begins_with_this_version() -> None:
    """In releases, newest first, each with its headings in one order."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    versions = [tuple(map(int, release.split()[0].split("."))) for release in releases]
    assert releases[0].startswith(VERSION) and versions == sorted(
        versions, reverse=True
    )
    for release in releases:
        headings = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert headings == [
            name
            for name in ("Added", "Changed", "Fixed", "Removed")
            if name in headings
        ]


@pytest.fixture(scope="module")
def atelier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command of a wheel in an environment that has the other packages of this
    one."""
    pytest.importorskip("hatchling", reason="builds the wheel; not installed here")
    folder = tmp_path_factory.mktemp("wheel")
    module = (sys.executable, "-m")
    output_of(*module, "hatchling", "build", "-t", "wheel", "-d", folder)
    output_of(*module, "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    [wheel] = folder.glob("*.whl")
    pip = (*module, "pip", "--python", python, "install")
    output_of(*pip, "--quiet", "--no-deps", "--no-index", wheel)
    [packages] = (folder / "venv" / "lib").glob("*/site-packages")
    (packages / "others.pth").write_text(
        "\n".join(site.getsitepackages()), encoding="utf-8"
    )
    return str(python.with_name("atelier"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that has nothing of the program."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str) -> str:
    return output_of(*command, cwd=Path())


@pytest.mark.slow
def test_the_command_plans_and_writes_jobs(atelier: str, elsewhere: Path) -> None:
    plan = run(atelier, "config/examples/photos.yaml", "--dry-run")
    assert f"{Path(atelier).parents[1]}" in plan and "images: " in plan
    shutil.copytree(ROOT / "config" / "examples" / "photos" / "40_photo", "40_photo")
    told = subprocess.run(
        [atelier, "lint", "40_photo"], capture_output=True, text=True
    ).stderr
    assert "3 images checked" in told


@pytest.mark.slow
def test_the_command_is_ours_whatever_pythonpath_names(
    atelier: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a checkout of ai-toolkit, as far as the names go. Site-packages has one
    folder of ours."""
    for name in ("run.py", "launch.py", *(f"{one}/__init__.py" for one in FOLDERS)):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"raise SystemExit('the {name} of another program')")
    monkeypatch.setenv("PYTHONPATH", ".")
    assert ends([atelier, "--version"]).startswith("Atelier")
    plan = ends([atelier, "config/examples/quickstart.yaml", "--dry-run"])
    assert plan.startswith("quickstart (sd_trainer)")
    [site] = (Path(atelier).parents[1] / "lib").glob("*/site-packages")
    ours = {path.name for path in site.iterdir() if not path.name.startswith("_")}
    ours = {name for name in ours if not name.endswith(".dist-info")}
    assert ours == {"atelier", "atelier.pth", "others.pth"}


FOLDERS = ("toolkit", "extensions", "jobs", "config", "docs")


def ends(command: Sequence[str], code: int = 0) -> str:
    """All that a command prints which ends in this code."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_program_comes_from_the_wheel(atelier: str, elsewhere: Path) -> None:
    python = Path(atelier).with_name("python")
    code = "import sys, run, toolkit; print(run.__file__, toolkit.__file__, *sys.path, sep='\\n')"
    program, package, *path = ends([python, "-c", code]).splitlines()
    installed = Path(atelier).parents[1]
    assert Path(program).is_relative_to(installed) and Path(package).is_relative_to(
        installed
    )
    # of the tests, which may lie in ROOT
    others = {Path(entry).resolve() for entry in site.getsitepackages()}
    places = {Path(entry).resolve() for entry in path if entry} - others
    assert not [place for place in places if place.is_relative_to(ROOT)]


@pytest.mark.slow
def test_iphone_photographs_the_small_model_and_the_guides_are_installed(
    atelier: str, elsewhere: Path
) -> None:
    """`new` reads HEIC, finds the small model by the name that the pages give it, and
    names guides that can be opened; the job trains."""
    shutil.copytree(
        ROOT / "config" / "examples" / "photos" / "40_photo", "datasets/robot"
    )
    shutil.copy(TURNED_HEIC, "datasets/robot")
    model = "config/examples/tiny_mascots"
    said = ends([atelier, "new", "my_char", "datasets/robot", "--model", model])
    assert "4 x" in said and "pi-heif" not in said
    job = Path("config/my_char.yaml").read_text(encoding="utf-8")
    pages = re.findall(r"\S*docs/\w+\.md", job)
    assert pages and all(
        page.startswith("file:///") and opened(page).startswith("# ") for page in pages
    )
    assert "this will not start" not in ends(
        [atelier, "config/my_char.yaml", "--dry-run"]
    )
    own = job.replace(model_path(job), model)  # as somebody writes it
    assert f'"{model}"' in own
    Path("own.yaml").write_text(own, encoding="utf-8")
    ends([atelier, "own.yaml", "--dry-run"])


@pytest.mark.slow
def test_every_page_that_is_named_is_installed(atelier: str, elsewhere: Path) -> None:
    """In the help and in messages, as an address; and every link of an installed page
    leads to an installed file."""
    help_ = ends([atelier, "--help"])
    assert help_.startswith("usage: atelier ")
    [index, *_] = re.findall(r"file://\S+docs/index\.md", help_)
    assert opened(index).startswith("# ")
    told = ends([atelier, "--nosuch"], code=2)
    assert opened(re.search(r"file://\S+\.md", told)[0])
    [site] = (Path(atelier).parents[1] / "lib").glob("*/site-packages")
    # pages of other programs
    of_others = {
        "docs/dataset_config.md",
        "docs/train.md",
        "docs/spec.md",
    }
    named = {
        page
        for file in site.rglob("*.py")
        for page in re.findall(r"docs/\w+\.md", file.read_text("utf-8"))
    }
    assert named and not [
        page for page in named - of_others if not (site / "atelier" / page).is_file()
    ]
    missing = []
    for page in (page for page in site.rglob("*.md") if "dist-info" not in str(page)):
        links = re.findall(
            r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")
        )
        missing += [
            (page.name, link)
            for link in links
            if "://" not in link and not (page.parent / link).exists()
        ]
    assert missing == []


@pytest.mark.slow
def test_extensions_of_the_working_folder_are_found(
    atelier: str, elsewhere: Path
) -> None:
    page = (ROOT / "docs" / "extensions.md").read_text(encoding="utf-8")
    for name, text in re.findall(
        r"```python\n# (extensions/my_extension/\S+)\n(.*?)```", page, re.DOTALL
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    process = {"type": "my_type", "folder_path": "photos"}
    Path("job.yaml").write_text(
        json.dumps(
            {"job": "extension", "config": {"name": "mine", "process": [process]}}
        )
    )
    assert "works on photos" in ends([atelier, "job.yaml"])
    assert "my_type" in ends([atelier, "--list-extensions"])


@pytest.mark.slow
def test_a_remedy_names_the_command_of_the_environment(
    atelier: str, elsewhere: Path
) -> None:
    python, environment = Path(atelier).with_name("python"), Path(atelier).parents[1]
    ask = [
        python,
        "-c",
        "from toolkit.data.pixels.images import install_command; print(install_command('pi-heif'))",
    ]
    assert ends(ask) == f"{python} -m pip install pi-heif\n"
    (environment / "pipx_metadata.json").touch()  # as pipx does
    try:
        assert ends(ask) == "pipx inject venv pi-heif\n"
    finally:
        (environment / "pipx_metadata.json").unlink()


EXTENSION = """
from extensions.sd_trainer.process import SdTrainerProcess
from toolkit.train.run import Callback, Run, Saved


class Mine(SdTrainerProcess):
    def build_callbacks(self) -> list[Callback]:
        reveal_type(self.section)
        return super().build_callbacks()


class Right(Callback):
    def on_save(self, run: Run, saved: Saved) -> None:
        print(saved.files[0].name)


class Wrong(Callback):
    def on_save(self, run: Run, saved: str) -> None:
        pass
"""


@pytest.mark.slow  # mypy has no cache of what is installed
def test_the_types_of_what_is_installed_reach_an_extension(
    atelier: str, elsewhere: Path
) -> None:
    Path("ext.py").write_text(EXTENSION, encoding="utf-8")
    python = str(Path(atelier).with_name("python"))
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "ext.py"]
    found = subprocess.run(command, capture_output=True, text=True).stdout
    note, error, *_ = (one for one in found.splitlines() if one.startswith("ext.py"))
    assert 'Revealed type is "extensions.sd_trainer.config.SdTrainerConfig"' in note
    assert error.startswith('ext.py:18: error: Argument 2 of "on_save" is incompatible')


def opened(address: str) -> str:
    """The text at a `file://` address."""
    with urlopen(address) as page:
        text: str = page.read().decode("utf-8")
    return text


def model_path(job: str) -> str:
    """The model of a job."""
    return re.search(r"name_or_path: [\"']?(\S+[^\s\"'])", job)[1]


@pytest.mark.slow
def test_the_page_answers(atelier: str, elsewhere: Path) -> None:
    environment = {**os.environ, "APP_AUTH": "a-token-of-a-test"}
    command = [atelier, "ui", "--port", "18976"]
    page = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        for path in ("/new", "/tools", "/static/ui.css"):
            asked = Request(
                f"http://127.0.0.1:18976{path}",
                headers={"Authorization": "Bearer a-token-of-a-test"},
            )
            for _ in range(600):  # a busy machine
                try:
                    with urlopen(asked, timeout=5) as answer:
                        assert answer.status == 200 and answer.read()
                    break
                except (URLError, TimeoutError):
                    assert page.poll() is None
                    time.sleep(0.1)
            else:
                pytest.fail(f"{path} was never answered")
    finally:
        page.terminate()
        page.wait(timeout=20)
