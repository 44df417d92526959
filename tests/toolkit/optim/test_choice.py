import pytest

from toolkit.config.train import OPTIMIZERS as CONFIG_NAMES
from toolkit.errors import UserError
from toolkit.optim.choice import (
    OPTIMIZERS,
    UNREADABLE,
    ArgumentError,
    check_choice,
    is_schedule_free,
    read_defaults,
    typed_arguments,
)
from toolkit.optim.optimizers import constructor_defaults, optimizer_class

DEFAULTS = {
    "weight_decay": 0.01,
    "warmup_steps": 0,
    "betas": (0.9, 0.999),
    "amsgrad": False,
    "beta3": None,
    "mode": "plain",
    "required": UNREADABLE,
}


def test_the_config_names_every_optimizer() -> None:
    assert set(CONFIG_NAMES) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_read_is_the_constructor(name: str) -> None:
    read, real = read_defaults(*OPTIMIZERS[name].split(":")), constructor_defaults(optimizer_class(name))
    assert list(read) == list(real)
    assert {key: value for key, value in read.items() if value is not UNREADABLE and value != real[key]} == {}


@pytest.mark.parametrize(
    "path",
    [
        "torch.optim.SGD",
        "torch.optim.sgd.SGD",
        "bitsandbytes.optim.PagedAdEMAMix8bit",
        "schedulefree.RAdamScheduleFree",
    ],
)
def test_a_dotted_path_is_read_as_it_is_imported(path: str) -> None:
    module, _, class_name = path.rpartition(".")
    assert list(read_defaults(module, class_name)) == list(constructor_defaults(optimizer_class(path)))


def test_what_cannot_be_read_is_left_for_later() -> None:
    assert read_defaults("torch.optim", "NoSuchOptimizer") is None
    assert read_defaults("no_such_package.optim", "X") is None
    check_choice("torch.nn.modules.NoSuchOptimizer.X", {"anything": 1})


def test_a_class_that_its_module_does_not_name_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"torch\.optim has no 'AdamWW'\. Did you mean 'AdamW'"):
        check_choice("torch.optim.AdamWW", {})
    check_choice("torch.optim.NAdam", {"momentum_decay": "0.004"})


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
        ({"weight_decai": 1}, r"adam has no 'weight_decai'\. Did you mean 'weight_decay'"),
        ({"weight_decay": "much"}, "weight_decay: 'much' is not a number, such as 0.01"),
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


def test_a_package_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"'no_such_package\.Adam': there is no package 'no_such_package' here"):
        check_choice("no_such_package.Adam", {})


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("schedulefree_adamw", True),
        ("schedulefree.SGDScheduleFree", True),
        ("adamw", False),
        ("torch.optim.SGD", False),
    ],
)
def test_schedule_free_optimizers_are_known_by_name(name: str, free: bool) -> None:
    assert is_schedule_free(name) is free
