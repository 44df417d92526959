from __future__ import annotations

import json
import math
import tomllib
from math import prod
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.processes import python
from toolkit.errors import UserError
from toolkit.optim.optimizer_args import (
    ARGUMENTS,
    EXTRAS,
    REQUIRED,
    ArgumentError,
    check_optimizer,
    find_optimizer,
    is_schedule_free,
    named_arguments,
    optimizer_bytes,
    optimizer_class,
    requires_single_lr,
    signature_of,
    takes_any_name,
    takes_argument,
    typed_arguments,
    unnamed_arguments,
)
from toolkit.optim.optimizers import build_optimizer, state_tensors
from toolkit.optim.trial import try_optimizer

DEFAULTS = {
    "weight_decay": 0.01,
    "warmup_steps": 0,
    "betas": (0.9, 0.999),
    "amsgrad": False,
    "beta3": None,
    "mode": "plain",
    "required": REQUIRED,
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_table_has_the_arguments_of_the_constructor(name: str) -> None:
    assert signature_of(optimizer_class(name)) == (ARGUMENTS[name], False)


def test_the_table_is_read_by_every_reader_of_json() -> None:
    """JSON has no infinity, which Python's reader takes."""
    text = (ROOT / "toolkit/optim/optimizers.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)
    assert ARGUMENTS["prodigy"]["growth_rate"] == math.inf


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torch.nn.Linear", "'torch.nn.Linear' is not an optimizer"),
        ("torch.optim.Optimizer", "'torch.optim.Optimizer' is not an optimizer"),
        ("torch.optim.AdamV", r"torch\.optim has no 'AdamV'\. Did you mean 'Adam'"),
        ("torch.optim.LBFGS", "evaluates the loss several times"),
        (
            "torch.nn.no_such_module.X",
            "there is no module 'no_such_module' in torch.nn",
        ),
        ("json.dumps", "'json.dumps' is not an optimizer"),
        ("os.path", "'os.path' is not an optimizer"),
        ("math.sqrt", "'math.sqrt' is not an optimizer"),
        ("torch.optim", "'torch.optim' is not an optimizer"),
        ("torch.optim.lr_scheduler", "'torch.optim.lr_scheduler' is not an optimizer"),
        ("torch.optim.adamw", "'torch.optim.adamw' is not an optimizer"),
        ("torch.distributed.optim", "'torch.distributed.optim' is not an optimizer"),
        ("torch..optim.X", "not the dotted path of a class"),
        ("torch.optim.adamv", "has no 'adamv'"),
        (
            "no_such_package.Adam",
            r"'no_such_package\.Adam': there is no package 'no_such_package' here",
        ),
    ],
)
def test_a_dotted_path_is_looked_at_before_anything_runs(
    path: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_optimizer(path, {})


def test_arguments_of_a_dotted_path_are_those_of_its_constructor() -> None:
    check_optimizer("bitsandbytes.optim.PagedAdEMAMix8bit", {"alpha": "4"})
    with pytest.raises(ArgumentError, match=r"no 'momentun'\. Did you mean 'momentum'"):
        check_optimizer("torch.optim.SGD", {"momentun": 0.9})


def test_the_source_has_the_arguments_of_the_constructor() -> None:
    """Of the optimizers that are named by a dotted path; a default that is not a
    literal is not known."""
    names = ["bitsandbytes.optim.PagedLion8bit", "schedulefree.SGDScheduleFree"]
    for name in [
        *(f"torch.optim.{each}" for each in torch.optim.__all__ if each[0].isupper()),
        *names,
    ]:
        if name.endswith(("LBFGS", ".Optimizer")):
            continue
        found, (made, takes_any) = (
            named_arguments(find_optimizer(name)),
            signature_of(optimizer_class(name)),
        )
        assert not takes_any and not takes_any_name(find_optimizer(name))
        assert found == {
            key: found[key] if found[key] is REQUIRED else made[key] for key in made
        }, name


def test_values_of_a_dotted_path_are_tried_on_a_small_weight() -> None:
    with pytest.raises(
        ArgumentError, match="NAdam refuses them: Invalid weight_decay value: -1"
    ):
        try_optimizer("torch.optim.NAdam", 1e-4, {"weight_decay": -1})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "adafactor",
            {"relative_step": True},
            "adafactor refuses them: Cannot combine manual `lr`",
        ),
        (
            "adamw",
            {"weight_decay": -1},
            "adamw refuses them: Invalid weight_decay value: -1. Correct or remove",
        ),
        (
            "adamw8bit",
            {"betas": "1.5,0.9"},
            "adamw8bit refuses them: Invalid beta parameter at index 0: 1.5.",
        ),
        (
            "sgd",
            {"nesterov": True},
            "sgd refuses them: Nesterov momentum requires a momentum",
        ),
        (
            "adamw",
            {"capturable": True},
            "adamw with these arguments cannot step a weight on cpu: If capturable=True",
        ),
        (
            "torch.optim.SparseAdam",
            {},
            "cannot step a weight on cpu: SparseAdam does not support dense gradients",
        ),
    ],
)
def test_what_would_fail_in_training_fails_when_it_is_tried(
    name: str, arguments: dict, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        try_optimizer(name, 1e-4, arguments, torch.device("cpu"))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_plan_refuses_every_value_that_a_run_refuses(name: str) -> None:
    """What the plan takes is tried together, and one by one where that fails."""
    shapes = [(64, 64)]  # the least of which bitsandbytes keeps 8 bits
    given = ARGUMENTS[name].keys() - {"capturable", "fsdp_in_use"}  # by the device
    for value in (0, -1, 1, 2, 2.5, True, None, "x", [2, 3], [None, 0.9]):
        taken = {}
        for argument in given:
            try:
                check_optimizer(name, {argument: value})
            except ArgumentError as error:
                assert argument in str(error)
            else:
                taken[argument] = value
        if not taken:
            continue
        try:
            try_optimizer(name, 1e-4, taken, shapes=shapes)
        except UserError:
            for argument in taken:
                try_optimizer(name, 1e-4, {argument: value}, shapes=shapes)


@pytest.mark.parametrize("name", ["adamw", "torch.optim.SGD"])
def test_gradient_ascent_is_refused(name: str) -> None:
    check_optimizer(name, {"maximize": "false"})
    for value in (True, "True"):
        with pytest.raises(
            ArgumentError, match="maximize: true would make the loss larger"
        ):
            check_optimizer(name, {"maximize": value})


def test_betas_may_be_whole_numbers() -> None:
    """torch refuses (0, 0.9), as people write it for discriminators."""
    for name in ("adamw", "torch.optim.AdamW", "muon"):
        try_optimizer(name, 1e-4, {"betas": [0, 0.9]}, torch.device("cpu"))


def test_checking_an_optimizer_loads_no_package() -> None:
    code = (
        "import sys\nfrom toolkit.optim.optimizer_args import ARGUMENTS, check_optimizer\n"
        "for name in (*ARGUMENTS, 'torch.optim.SGD', 'schedulefree.SGDScheduleFree'):\n"
        "    check_optimizer(name, {'weight_decay': 0})\nprint({'torch', 'schedulefree'} & set(sys.modules))"
    )
    assert python(code) == "set()\n"


@pytest.mark.parametrize(
    ("given", "typed"),
    [
        ({"weight_decay": 1}, {"weight_decay": 1}),
        ({"weight_decay": "1e-2"}, {"weight_decay": 0.01}),
        ({"warmup_steps": 0.5}, {"warmup_steps": 0.5}),
        ({"betas": [0.8, 0.9]}, {"betas": (0.8, 0.9)}),
        ({"betas": "0.9,0.95"}, {"betas": (0.9, 0.95)}),
        ({"betas": "(0.9, 0.95)"}, {"betas": (0.9, 0.95)}),
        ({"amsgrad": "True"}, {"amsgrad": True}),
        ({"amsgrad": "false"}, {"amsgrad": False}),
        ({"beta3": "0.5"}, {"beta3": 0.5}),
        ({"beta3": "none"}, {"beta3": None}),
        ({"mode": "0.5"}, {"mode": "0.5"}),
        ({"required": [1]}, {"required": [1]}),
    ],
)
def test_arguments_take_the_type_of_their_default(given: dict, typed: dict) -> None:
    assert typed_arguments("adam", DEFAULTS, given) == typed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"weight_decai": 1},
            r"adam has no 'weight_decai'\. Did you mean 'weight_decay'",
        ),
        (
            {"weight_decay": "much"},
            "weight_decay: 'much' is not a number, such as 0.01",
        ),
        ({"weight_decay": True}, "weight_decay: True is not a number"),
        ({"betas": "0.9"}, r"betas: '0.9' is not 2 numbers, such as \[0.9, 0.999\]"),
        ({"betas": [0.9, 0.99, 0.999]}, "is not 2 numbers"),
        ({"amsgrad": 1}, "amsgrad: 1 is not true or false"),
        ({"mode": 1}, "mode: 1 is not a str"),
        ({"lr": 1}, "'lr' has its own key"),
    ],
)
def test_a_wrong_argument_is_a_mistake_with_a_hint(given: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        typed_arguments("adam", DEFAULTS, given)


# ------------------------------------------------------------ what a class declares

DECLARED = """
import torch

class Base(torch.optim.SGD):
    def train(self): ...
    def eval(self): ...

class Averages(Base):
    def __init__(self, params, lr=1e-3, warmup_steps=0): ...

class MayAverage(Base):
    def __init__(self, params, lr=1e-3, use_schedulefree=True): ...

class TakesAnyName(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.99), **kwargs): ...

class PassesOn(TakesAnyName):
    def __init__(self, params, lr=1e-3, eps=1e-8, **kwargs): ...

class OfUnknown(make_base()):
    def __init__(self, params, lr=1e-3, eps=1e-8, **kwargs): ...
"""


@pytest.fixture
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "declared.py").write_text(DECLARED, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("name", "arguments", "free"),
    [
        ("schedulefree_adamw", {}, True),
        ("schedulefree.SGDScheduleFree", {}, True),
        ("adamw", {}, False),
        ("torch.optim.SGD", {}, False),
        ("declared.Averages", {}, True),
        ("declared.MayAverage", {}, True),
        ("declared.MayAverage", {"use_schedulefree": True}, True),
        ("declared.MayAverage", {"use_schedulefree": False}, False),
        ("declared.MayAverage", {"use_schedulefree": "false"}, False),
        ("declared.TakesAnyName", {}, False),
        ("not_installed.SomethingScheduleFree", {}, True),
    ],
)
def test_an_optimizer_is_schedule_free_by_its_class(
    name: str, arguments: dict, free: bool, declared: None
) -> None:
    assert is_schedule_free(name, arguments) is free


def test_only_an_argument_that_is_declared_is_advised(declared: None) -> None:
    found = [
        takes_argument(f"declared.{name}", "warmup_steps")
        for name in ("Averages", "MayAverage", "Missing")
    ]
    assert found == [True, False, False] and takes_argument(
        "schedulefree_adamw", "warmup_steps"
    )


def test_an_argument_that_is_not_named_is_reported_though_the_class_takes_any(
    declared: None,
) -> None:
    given = {"weight_decay": 0.1, "wieght_decay": 0.1}
    for name, known in (
        ("TakesAnyName", "betas, weight_decay"),
        ("PassesOn", "betas, eps, weight_decay"),
    ):
        assert list(unnamed_arguments(f"declared.{name}", given)) == [
            f"declared.{name} does not name 'wieght_decay' among its arguments, and may ignore it. Did you mean "
            f"'weight_decay'? Known names: {known}."
        ]
    # What a base that is not in the source takes is not known.
    assert not [
        *unnamed_arguments("declared.OfUnknown", given),
        *unnamed_arguments("declared.Averages", given),
    ]
    assert not [*unnamed_arguments("adamw", given)], "which is an error there"


def test_the_types_of_named_arguments_are_checked_where_a_class_takes_any_name(
    declared: None,
) -> None:
    check_optimizer("declared.TakesAnyName", {"weight_decay": "0.1", "other": "x"})
    with pytest.raises(
        ArgumentError, match=r"betas: 0\.9 is not 2 numbers, such as \[0\.9, 0\.99\]\."
    ):
        check_optimizer("declared.TakesAnyName", {"betas": 0.9})


@pytest.mark.parametrize(
    "name", ["prodigy", "prodigyplus", "prodigy_adv", "dadaptation.DAdaptAdam"]
)
def test_which_find_one_rate_for_all_weights(name: str) -> None:
    assert requires_single_lr(name) and not requires_single_lr("soap")


def test_a_short_name_of_an_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("toolkit.optim.optimizer_args.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        check_optimizer("soap", {})
    assert str(caught.value) == (
        "'soap' needs the package pytorch-optimizer (the extra 'pytorch-optimizer'), which is not installed. Run: "
        "pip install pytorch-optimizer==4.1.0"
    )


def test_the_extras_of_the_short_names_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]["optional-dependencies"]
    assert {extra: extras[extra] for extra, _ in EXTRAS.values()} == {
        e: [package] for e, package in EXTRAS.values()
    }


# ------------------------------------------------------------ bytes


SHAPES = [(96, 64), (40, 8), (100,), (5, 4, 6, 7)]


def kept(name: str, arguments: dict) -> int:
    """Bytes of the state's tensors with more than one number."""
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    optimizer = build_optimizer(name, parameters, 1e-3, arguments)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors, _ = state_tensors(optimizer, ["a", "b", "c", "d"])
    tables = ("qmap1", "qmap2")  # one of 256 numbers, shared by all
    return sum(
        t.numel() * t.element_size()
        for name, t in tensors.items()
        if t.numel() > 1 and not name.endswith(tables)
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("adamw", {}),
        ("adam", {}),
        ("sgd", {}),
        ("sgd", {"momentum": 0.9}),
        ("torch.optim.SGD", {"momentum": 0.9}),
        ("rmsprop", {}),
        ("rmsprop", {"momentum": 0.9, "centered": True}),
        ("lion", {}),
        ("muon", {}),
        ("adafactor", {}),
        ("adafactor", {"beta1": 0.9}),
        ("prodigy", {}),
        ("prodigy", {"slice_p": 8}),
        ("schedulefree_adamw", {}),
        ("adamw8bit", {}),
        ("lion8bit", {}),
    ],
)
def test_the_bytes_are_those_of_the_real_state(name: str, arguments: dict) -> None:
    assert optimizer_bytes(name, arguments, SHAPES) == pytest.approx(
        kept(name, arguments), abs=16
    )


def test_a_class_nobody_knows_is_taken_to_keep_two_numbers() -> None:
    assert optimizer_bytes("some.package.Optimizer", {}, SHAPES) == 8 * sum(
        map(prod, SHAPES)
    )
