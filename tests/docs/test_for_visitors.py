"""The files that a visitor of the repository reads name what exists: issue forms,
citation, security policy."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.conftest import ROOT
from toolkit.files import run_files
from toolkit.version import VERSION

FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
RUN_FILES = {
    value
    for name, value in vars(run_files).items()
    if name.isupper() and isinstance(value, str)
}
COMMANDS = {"run.py job.yaml --dry-run -v", "git describe"}


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_names_only_files_that_exist(form) -> None:
    for name in re.findall(
        r"`([^`]+)`|(\w+/\w+\.py)", form.read_text(encoding="utf-8")
    ):
        quoted, path = name
        assert quoted in RUN_FILES | COMMANDS or (ROOT / (quoted or path)).is_file(), (
            name
        )


def test_a_form_has_the_keys_that_github_needs() -> None:
    for form in FORMS:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= content.keys()
        assert all(
            part["type"] == "markdown" or part["attributes"]["label"]
            for part in content["body"]
        )


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    required = {"cff-version", "message", "title", "authors"}
    assert required <= citation.keys()
    assert (str(citation["version"]), citation["license"]) == (VERSION, "Apache-2.0")
