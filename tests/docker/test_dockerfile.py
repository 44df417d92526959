"""The image's recipe and the scripts beside it, read and linted: no Docker engine is
needed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.processes import output_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker"
SCRIPTS = sorted(FOLDER.glob("*.sh"))

EXCLUDED = "SC2310"
"""Functions are called in conditions on purpose: their exit code is what is asked for,
and they do without `set -e`."""


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, continued lines joined."""
    lines = [
        line
        for line in (FOLDER / "Dockerfile").read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (line.split(None, 1)[0].upper(), line.split(None, 1)[1])
        for line in joined.splitlines()
        if line.strip()
    ]


def all_of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def copied() -> list[tuple[str, str]]:
    """(source, target) of each COPY."""
    pairs = []
    for rest in all_of("COPY"):
        *sources, target = [word for word in rest.split() if not word.startswith("--")]
        pairs += [(source, target) for source in sources]
    return pairs


def tool(name: str) -> str:
    """The program that its package has put beside the interpreter."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(
        name
    )
    assert found, f"{name} is missing: pip install -r requirements-dev.txt"
    return found


def test_the_base_is_pinned_by_digest() -> None:
    (base,) = all_of("FROM")
    assert re.fullmatch(r"python:3\.11[\w.-]*@sha256:[0-9a-f]{64}", base)


def test_triton_finds_a_compiler() -> None:
    (packages,) = [rest for rest in all_of("RUN") if "apt-get install" in rest]
    assert {"gcc", "libc6-dev"} <= set(packages.split())


def test_every_copied_source_exists_and_reaches_the_builder() -> None:
    assert copied()
    ignore = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignore[0] == "*"
    let_in = [line[1:] for line in ignore if line.startswith("!")]
    for source, _ in copied():
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in let_in, f"{source} is kept out by .dockerignore"
        assert not any(
            fnmatch(source, line) for line in ignore[1:] if not line.startswith("!")
        ), source
    assert sorted(let_in) == sorted({source.split("/")[0] for source, _ in copied()}), (
        "more is sent than is copied"
    )


def test_the_whole_program_is_in_the_image() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/*.py")} - {
        "tests",
        "docs",
        "docker",
        "benchmarks",
        "output",
    }
    packages |= {path.parts[-3] for path in ROOT.glob("extensions/*/*.py")}
    targets = dict(copied())
    for name in packages | {"config"}:
        assert targets[name] == f"/opt/atelier/{name}"
    for path in FOLDER.iterdir():
        if path.suffix in (".sh", ".py"):
            assert targets[f"docker/{path.name}"] == "/opt/atelier/docker/"


def test_the_environment_is_that_of_the_lock_file() -> None:
    lock = "/opt/atelier/docker/requirements.lock"
    install = f"/opt/venv/bin/pip install --no-cache-dir --require-hashes -r {lock}"
    installs = [run for run in all_of("RUN") if "pip install" in run]
    assert installs == [f"python -m venv /opt/venv && {install}"]
    assert ("docker/requirements.lock", lock) in copied()
    default = re.search(r"ATELIER_PYTHON:-(\S+)}", (FOLDER / "start.sh").read_text())
    assert default and default[1] == "/opt/venv/bin/python"


def test_every_package_of_the_lock_has_a_hash_and_those_asked_for_their_version() -> (
    None
):
    lock = (FOLDER / "requirements.lock").read_text(encoding="utf-8")
    entries = lock.replace(" \\\n", " ").splitlines()
    versions = {}
    for entry in entries:
        assert re.search(r" --hash=sha256:[0-9a-f]{64}( |$)", entry), entry
        name, version = re.match(r"([\w.-]+)==([^\s;]+)", entry).groups()  # type: ignore[union-attr]
        versions.setdefault(name, set()).add(version)
    files = (ROOT / "requirements.txt", FOLDER / "requirements.txt")
    asked = [line for file in files for line in file.read_text().splitlines()]
    for name, _, version in (line.partition("==") for line in asked if "==" in line):
        canonical = name.lower().replace("_", "-")
        assert versions[canonical] == {version.strip()}, name
    assert len(versions) > len(files) * 40 and "://" not in lock


def test_tini_is_pid_1_and_passes_a_signal_on_once() -> None:
    (entry,) = all_of("ENTRYPOINT")
    command = json.loads(entry)  # the other form would put a shell between
    assert command == ["/usr/bin/tini", "--", "bash", "/opt/atelier/docker/start.sh"]
    assert any(re.search(r"apt-get install .*\btini\b", run) for run in all_of("RUN"))
    assert all_of("CMD") == []


def test_no_secret_is_in_the_image() -> None:
    for rest in (*all_of("ENV"), *all_of("ARG")):
        assert not re.search(r"(?i)token|password|secret|api_key", rest)


def test_the_user_that_start_sh_looks_for_is_made() -> None:
    user = re.search(r"RUN_AS:-(\w+)}", (FOLDER / "start.sh").read_text())
    assert user and any(
        re.search(rf"useradd .*\b{user[1]}\b", run) for run in all_of("RUN")
    )


def test_hadolint_passes() -> None:
    output_of(tool("hadolint"), FOLDER / "Dockerfile")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_passes_with_all_optional_checks(script: Path) -> None:
    output_of(tool("shellcheck"), "-x", "-o", "all", "-e", EXCLUDED, script)


def variables_read() -> set[str]:
    """Every environment variable that the scripts take from outside."""
    shell = "\n".join(path.read_text() for path in SCRIPTS)
    python = "\n".join(path.read_text() for path in FOLDER.glob("*.py"))
    names = set(re.findall(r"\$\{([A-Z][A-Z0-9_]+)[:}-]", shell))
    names |= set(re.findall(r"environ(?:\.get\(|\.pop\(|\[)\"([A-Z0-9_]+)\"", python))
    names |= {"RUN_ON_SUCCESS", "RUN_ON_FAILURE"}
    return names - {"BASH_SOURCE", "EUID", "LINENO", "BASHPID", "HOME", "LC_ALL"}


def test_the_guide_has_every_variable_in_its_table() -> None:
    rows = re.findall(
        r"^\| (.*?) \|", (ROOT / "docs" / "runpod.md").read_text(), re.MULTILINE
    )
    named = {name for row in rows for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", row)}
    assert variables_read() >= {
        "JOB_CONFIG_B64",
        "RUNPOD_API_KEY",
        "RESTART_PAUSES",
        "STOP_PAUSES",
        "RUN_AS",
    }
    assert variables_read() - named == set()


def test_the_image_of_the_guide_fits_the_recipe() -> None:
    guide = (ROOT / "docs" / "runpod.md").read_text()
    assert "docker build -f docker/Dockerfile" in guide
    for name in re.findall(r"JOB_CONFIG=(config/examples/\S+?\.yaml)", guide):
        assert (ROOT / name).is_file()
