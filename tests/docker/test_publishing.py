"""The workflows that publish the image, and the RunPod template that uses it. Nothing
is sent: the workflows are read and linted, the template is held against RunPod's
published schema."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.docker.test_dockerfile import EXCLUDED, tool
from tests.http_server import QuietHandler, serving
from tests.processes import output_of
from toolkit.system.nvidia import LEAST_DRIVER
from toolkit.system.torch_version import NEWEST, OLDEST
from toolkit.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATE = json.loads((ROOT / "docker" / "runpod_template.json").read_text())
GUIDE = (ROOT / "docs" / "runpod.md").read_text()


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PersistentMount(Strict):
    size: int = Field(ge=10)
    path: str


class TemplateMounts(Strict):
    persistent: PersistentMount


class CreateTemplateRequest(Strict):
    """The body of `POST /v2/templates`: components.schemas.CreateTemplateRequest of
    api-reference-v2/openapi.json in runpod/docs at a900806e (2026-08-20). Unknown keys
    are refused there as well (`unevaluatedProperties: false`)."""

    name: str = Field(min_length=1)
    image: str
    args: str = ""
    disk: int = Field(50, ge=1)
    env: dict[str, str] = {}
    ports: list[str] = []
    registry: str | None = None
    mounts: TemplateMounts | None = None
    allowedCudaVersions: list[str] = []
    category: Literal["CPU", "NVIDIA", "AMD"] = "NVIDIA"
    public: bool = False
    serverless: bool = False
    startJupyter: bool = True
    startSsh: bool = True


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_the_template_is_what_runpod_takes() -> None:
    template = CreateTemplateRequest.model_validate(TEMPLATE)
    with pytest.raises(ValidationError):
        CreateTemplateRequest.model_validate(
            {**TEMPLATE, "imageName": "the name of the older API"}
        )
    assert all(re.fullmatch(r"\d+/(tcp|http)", port) for port in template.ports)


def test_the_template_says_what_the_guide_says() -> None:
    mount = TEMPLATE["mounts"]["persistent"]
    assert (
        f"Container disk {TEMPLATE['disk']} GB; volume {mount['size']} GB, mounted at `{mount['path']}`"
        in GUIDE
    )
    assert "docker/runpod_template.json" in GUIDE
    assert TEMPLATE["image"].partition(":")[0] in GUIDE
    assert not TEMPLATE["startJupyter"], "the image has none"
    assert TEMPLATE["startSsh"] and "22/tcp" in TEMPLATE["ports"]


def test_the_cuda_of_torch_is_the_same_wherever_it_is_named() -> None:
    """That of the locked packages; a newer torch moves all of them."""
    lock = (ROOT / "docker" / "requirements.lock").read_text()
    runtime = re.search(r"^nvidia-cuda-runtime==(\d+)\.(\d+)", lock, re.MULTILINE)
    assert runtime
    major, minor = map(int, runtime.groups())
    allowed = [
        tuple(map(int, version.split(".")))
        for version in TEMPLATE["allowedCudaVersions"]
    ]
    assert allowed[0] == (major, minor) and allowed == sorted(allowed)
    assert {version[0] for version in allowed} == {major}
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert f"NVIDIA_REQUIRE_CUDA=cuda>={major}.{minor}\n" in dockerfile
    assert f"CUDA {major}.{minor} or newer: the pinned torch is built for it" in GUIDE
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        drivers = re.findall(r"driver (\d+) or newer", page.read_text("utf-8"))
        assert {*drivers} <= {str(LEAST_DRIVER[major])}, page


def test_continuous_integration_runs_the_same_script_as_everybody() -> None:
    commands = [
        step["run"]
        for step in steps(ROOT / ".github/workflows/ci.yml")
        if "run" in step
    ]
    assert commands == ["bash .ci/run"]


def test_a_tag_is_tried_with_every_version_of_pytorch_that_can_be_used() -> None:
    workflow = ROOT / ".github/workflows/versions.yml"
    [step] = [step for step in steps(workflow) if "run" in step]
    assert (step["run"], step["env"]) == (
        'bash .ci/versions "${TORCH}"',
        {"TORCH": "${{ matrix.torch }}"},
    )
    [job] = yaml.safe_load(workflow.read_text())["jobs"].values()
    supported = [f"{OLDEST[0]}.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)]
    assert job["strategy"]["matrix"] == {"torch": supported}


def test_an_image_is_pushed_only_after_it_has_trained_and_only_on_a_tag() -> None:
    order = steps(ROOT / ".github/workflows/image.yml")
    names = [step.get("name") for step in order]
    assert (
        names.index("Build")
        < names.index("Train the quickstart in the image")
        < names.index("Push")
    )
    pushing = [
        step
        for step in order
        if "docker push" in step.get("run", "") or "login" in step.get("uses", "")
    ]
    assert len(pushing) == 2 and all("refs/tags/v" in step["if"] for step in pushing)


@pytest.mark.parametrize(
    ("given", "method", "path", "said"),
    [
        ({}, "POST", "/v2/templates", "RUNPOD_TEMPLATE_ID of the repository to tpl_1"),
        ({"RUNPOD_TEMPLATE_ID": "old"}, "PATCH", "/v2/templates/old", "template=old\n"),
        ({"RUNPOD_API_KEY": ""}, "", "", "no template is published"),
    ],
)
def test_a_tag_publishes_the_template_with_its_image(
    given: dict[str, str], method: str, path: str, said: str
) -> None:
    asked: list[tuple[str, str, str | None]] = []
    bodies: list[Any] = []

    class Api(QuietHandler):
        def do_POST(self) -> None:
            asked.append((self.command, self.path, self.headers["Authorization"]))
            length = int(self.headers["Content-Length"])
            bodies.append(json.loads(self.rfile.read(length)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"id": "tpl_1"}')

        do_PATCH = do_POST

    with serving(Api) as url:
        known = {"RUNPOD_API_URL": url, "RUNPOD_API_KEY": "the-key", **given}
        template = [sys.executable, ROOT / ".ci" / "template", "ME/atelier:0.3.0"]
        found = output_of(*template, env={**os.environ, **known}, said="")
    assert said in found and "the-key" not in found
    assert asked == ([(method, path, "Bearer the-key")] if method else [])
    for body in bodies:
        assert body == {**TEMPLATE, "image": "ME/atelier:0.3.0", "public": True}
        CreateTemplateRequest.model_validate(body)
    last = steps(ROOT / ".github/workflows/image.yml")[-1]
    assert last["run"] == '.ci/template "${IMAGE}:${GITHUB_REF_NAME#v}"'
    assert "refs/tags/v" in last["if"]


def test_a_template_that_is_not_taken_fails_the_workflow() -> None:
    class Api(QuietHandler):
        def do_POST(self) -> None:
            self.send_error(403)

    with serving(Api) as url:
        env = {**os.environ, "RUNPOD_API_URL": url, "RUNPOD_API_KEY": "the-key"}
        done = subprocess.run(
            [sys.executable, ROOT / ".ci" / "template", "x"],
            env=env,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("RunPod does not take the template: HTTP Error 403")


def test_a_tag_is_tried_with_every_python_that_can_be_used() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/python.yml").read_text())[
        "jobs"
    ]["python"]
    versions = workflow["strategy"]["matrix"]["python"]
    least, most = (version.partition(".")[2] for version in (versions[0], versions[-1]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">=3.{least},<3.{int(most) + 1}"
    assert (
        f"Python {', '.join(versions[:-1])} or {versions[-1]}"
        in (ROOT / "README.md").read_text()
    )


def test_a_commit_is_checked_by_what_ci_checks_first() -> None:
    test_line = next(
        line
        for line in (ROOT / "README.md").read_text().splitlines()
        if "pytest" in line
    )
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0][
        "hooks"
    ]
    for hook in hooks[:3]:
        assert hook["entry"] in test_line
    for hook in hooks:
        assert (
            any((ROOT / word).exists() for word in hook["entry"].split())
            or hook["entry"] in test_line
        )


@pytest.mark.parametrize(("length", "code"), [(72, 0), (73, 1)])
def test_a_subject_has_at_most_72_characters(
    length: int, code: int, tmp_path: Path
) -> None:
    message = tmp_path / "message"
    message.write_text(f"{'x' * length}\n\n{'y' * 100}\n")
    assert (
        subprocess.run(
            [ROOT / ".ci" / "subject", message], capture_output=True
        ).returncode
        == code
    )


def test_the_notes_of_a_release_are_its_part_of_the_changelog() -> None:
    done = subprocess.run([ROOT / ".ci" / "notes"], capture_output=True, text=True)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    if f"## {VERSION} (unreleased)" in changelog:
        assert (
            done.returncode == 1 and f"write '## {VERSION} (YYYY-MM-DD)'" in done.stderr
        )
    else:
        assert done.returncode == 0 and done.stdout.strip() in changelog


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_names_exists_and_its_commands_are_sound(
    workflow: Path, tmp_path: Path
) -> None:
    text = workflow.read_text()
    for name in re.findall(r"(?<!: )(?:docker|config|\.ci|\.github)/[\w./-]+\w", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"--env (\w+)=", text):
        assert f"`{name}`" in GUIDE, name
    for number, step in enumerate(step for step in steps(workflow) if "run" in step):
        script = tmp_path / f"{number}.sh"
        given = " ".join(
            f'"${{{name}:=}}"'
            for name in ("IMAGE", "GITHUB_REF_NAME", "GITHUB_SHA", *step.get("env", {}))
        )
        script.write_text(f"#!/usr/bin/env bash\nset -e\n: {given}\n{step['run']}\n")
        output_of(tool("shellcheck"), "-o", "all", "-e", EXCLUDED, script)
