"""The package that `uv tool install .` makes: its requirements are those that are tested, and it works outside a
checkout."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import time
import tomllib
from itertools import chain
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.conftest import ROOT
from toolkit.version import VERSION

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pinned(*files: str) -> set[str]:
    """The lines `package==version` of these files of requirements."""
    lines = [line for file in files for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    return {line.strip() for line in lines if "==" in line}


def test_what_is_installed_is_what_is_tested() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {*PROJECT["dependencies"], *extras["track"], *extras["heic"]} >= pinned("requirements.txt")
    assert {*PROJECT["dependencies"], *chain(*extras.values())} <= pinned("requirements.txt", "requirements-dev.txt")
    assert {*extras["ui"]} <= {*PROJECT["dependencies"]}


def test_the_changelog_begins_with_this_version() -> None:
    """In releases, newest first, of at most a page each."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    versions = [tuple(map(int, release.split()[0].split("."))) for release in releases]
    assert releases[0].startswith(VERSION) and versions == sorted(versions, reverse=True)
    for release in releases:
        assert release.count("\n") <= 80
        headings = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert headings == [name for name in ("Added", "Changed", "Fixed", "Removed") if name in headings]


@pytest.fixture(scope="module")
def atelier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command of a wheel in an environment that has the other packages of this one."""
    pytest.importorskip("hatchling", reason="builds the wheel; not installed here")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    [wheel] = folder.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    [packages] = (folder / "venv" / "lib").glob("*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return str(python.with_name("atelier"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that has nothing of the program."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_plans_and_writes_jobs(atelier: str, elsewhere: Path) -> None:
    assert run(atelier, "--help").startswith("usage: atelier ")
    assert "quickstart (sd_trainer)" in run(atelier, "config/examples/quickstart.yaml", "--dry-run")
    plan = run(atelier, "config/examples/photos.yaml", "--dry-run")
    assert f"{Path(atelier).parents[1]}" in plan and "samples" in plan
    shutil.copytree(ROOT / "config" / "examples" / "photos" / "40_photo", "40_photo")
    told = subprocess.run([atelier, "lint", "40_photo"], capture_output=True, text=True).stderr
    assert "3 images checked" in told


@pytest.mark.slow
def test_the_page_answers(atelier: str, elsewhere: Path) -> None:
    environment = {**os.environ, "APP_AUTH": "a-token-of-a-test"}
    command = [atelier, "ui", "--port", "18976"]
    page = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        for path in ("/new", "/tools", "/static/ui.css"):
            asked = Request(f"http://127.0.0.1:18976{path}", headers={"Authorization": "Bearer a-token-of-a-test"})
            for _ in range(100):
                try:
                    with urlopen(asked, timeout=5) as answer:
                        assert answer.status == 200 and answer.read()
                    break
                except URLError:
                    assert page.poll() is None
                    time.sleep(0.1)
            else:
                pytest.fail(f"{path} was never answered")
    finally:
        page.terminate()
        page.wait(timeout=20)
