"""A class is found in the source: nothing that it names is executed."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from toolkit.class_source import find_class, find_module
from toolkit.config.reading.findings import JobContext
from toolkit.config.sections.train import TrainConfig
from toolkit.errors import UserError
from toolkit.optim.optimizer_args import check_optimizer, imported_code

CANARY = "raise SystemExit('executed')\n"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of importable packages, each of which ends the program when it is
    executed."""
    files = {
        "evil/__init__.py": "from .parts import Opt as Opt\nfrom . import parts\nfrom .star import *\n",
        "evil/star.py": "from evil.parts import Other\n",
        "evil/parts.py": (
            "import torch\nfrom torch.optim import optimizer as o\n"
            "def make(): ...\n"
            "class Base(o.Optimizer):\n    def __init__(self, params, lr=1e-3, *, mu=0.5, nu=float('inf')): ...\n"
            "    def step(self, closure=None): ...\n"
            "class Opt(Base): ...\n"
            "class Other(torch.optim.AdamW):\n    def step(self, closure): ...\n"
            "class Plain: ...\n"
            "class Loop(Loop): ...\n"
            "Made = type('Made', (), {})\n"
        ),
        "spaces/inner/mod.py": "class Opt(Unknown): ...\n",
        "broken.py": "class Opt(:\n",
        "again.py": "from again import Opt\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if name == "broken.py" else text + CANARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_re_exports_and_bases_are_followed_without_executing_them(
    packages: Path,
) -> None:
    for path in ("evil.Opt", "evil.parts.Opt"):
        check_optimizer(path, {"mu": "0.25", "nu": 3})
        with pytest.raises(UserError, match="has no 'momentum'"):
            check_optimizer(path, {"momentum": 1})
    with pytest.raises(UserError, match="evaluates the loss several times"):
        check_optimizer("evil.Other", {})
    assert find_class("evil.Opt").module.file == packages / "evil" / "parts.py"
    assert not {"evil", "evil.parts", "evil.star"} & set(sys.modules)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("evil.parts.Plain", "is not an optimizer"),
        ("evil.parts.make", "is not an optimizer"),
        ("evil.parts.Loop", "is not an optimizer"),
        ("evil.parts.Optt", "evil.parts has no 'Optt'. Did you mean 'Opt'?"),
        ("evil.nothing.Opt", "there is no module 'nothing' in evil"),
        ("__main__.Opt", "'__main__.Opt': "),
    ],
)
def test_what_the_source_rules_out_is_refused(
    packages: Path, path: str, reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_optimizer(path, {})
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "path", ["evil.parts.Made", "spaces.inner.mod.Opt", "broken.Opt", "again.Opt"]
)
def test_what_only_executing_would_tell_is_left_to_the_training(
    packages: Path, path: str
) -> None:
    check_optimizer(path, {"anything": 1})
    assert not {path.partition(".")[0]} & set(sys.modules)


def test_the_plan_names_the_file_whose_code_a_training_runs(packages: Path) -> None:
    said = [
        each.message
        for each in TrainConfig(optimizer="evil.Opt").check(JobContext("x"))
    ]
    assert [
        message
        for message in said
        if f"imports {packages / 'evil' / '__init__.py'}" in message
    ]
    for name in ("adamw", "torch.optim.SGD", "schedulefree.SGDScheduleFree"):
        assert imported_code(name) == ""


def test_a_module_without_source_is_not_read_as_source(packages: Path) -> None:
    """One that is built in, and a compiled one, whatever its bytes would mean."""
    compiled = packages / f"compiled{EXTENSION_SUFFIXES[0]}"
    compiled.write_text("class Opt: ...\n")
    assert find_module("sys").file is None
    assert find_module("compiled").file == compiled
    assert find_class("sys.Opt").node is find_class("compiled.Opt").node is None
    check_optimizer("compiled.Opt", {"anything": 1})


def test_the_name_of_a_package_for_pip_leads_to_the_one_in_python() -> None:
    with pytest.raises(UserError) as caught:
        find_class("PyYAML.Loader")
    assert (
        str(caught.value)
        == "'PyYAML' is the name for pip; in Python the package is called 'yaml'. Write that."
    )
    with pytest.raises(
        UserError, match=r"^there is no package 'nowhere_at_all' here\. Is it installed"
    ):
        find_class("nowhere_at_all.Loader")
