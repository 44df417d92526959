"""The trial of an optimizer: classes that behave as those of packages do, and the
packages themselves where they are installed. Each row of `SETTINGS` is one setting of a
package, with what the trial finds."""

from __future__ import annotations

from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.optim.optimizer_args import (
    ArgumentError,
    has_known_state,
    optimizer_bytes,
    state_note,
)
from toolkit.optim.optimizers import (
    StateError,
    build_optimizer,
    load_state_tensors,
    state_tensors,
)
from toolkit.optim.trial import (
    LORA_SHAPES,
    OptimizerTrial,
    measured_bytes,
    measured_states,
    try_optimizer,
)

CPU = torch.device("cpu")

CLASSES = '''
import torch


class Momentum(torch.optim.Optimizer):
    """Steps by the mean of the gradients, which `remember` gives and keeps."""

    def __init__(self, params, lr=1e-3, **others):
        super().__init__(params, {"lr": lr})

    def remember(self, state, group, gradient):
        return state.setdefault("mean", torch.zeros_like(gradient)).lerp_(gradient, 0.1)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self.remember(self.state[p], group, p.grad), alpha=float(group["lr"]))


class Lists(Momentum):  # as SOAP of pytorch-optimizer 4.1.0
    def remember(self, state, group, gradient):
        means = state.setdefault("means", [torch.zeros_like(gradient), (torch.zeros(()), "count")])
        means[1][0].add_(1)
        return means[0].lerp_(gradient, 0.1) / means[1][0]


class WholeNumbers(Momentum):  # as heavyball 3.2.1: a view's number, and a set
    def remember(self, state, group, gradient):
        own = state.setdefault(0, {"seen": set(), "nothing": [], "no names": {}, "mean": torch.zeros_like(gradient)})
        assert all(type(own[key]) is kind for key, kind in (("seen", set), ("nothing", list), ("no names", dict)))
        own["seen"].add(len(own["seen"]) % 3)
        return own["mean"].lerp_(gradient, 0.1 * len(own["seen"]))


class LooksAhead(Momentum):  # as Ranger21 of pytorch_optimizer 4.1.0
    ahead = 0

    def remember(self, state, group, gradient):
        self.ahead = (self.ahead + 1) % 11
        return super().remember(state, group, gradient) * (1 if self.ahead else -5)

    def state_dict(self):
        return {**super().state_dict(), "ahead": self.ahead}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.ahead = state["ahead"]


class HalfState(Momentum):  # as ProdigyPlusScheduleFree 2.0.1
    def remember(self, state, group, gradient):
        mean = state.setdefault("mean", torch.zeros_like(gradient, dtype=torch.bfloat16))
        return mean.lerp_(gradient.bfloat16(), 0.1).to(gradient)


class NoRate(Momentum):  # as A2Grad of pytorch_optimizer 4.1.0
    def __init__(self, params, lr=1e-3, **others):
        torch.optim.Optimizer.__init__(self, params, {"beta": 0.9})


class NeedsSteps(Momentum):  # as Ranger21 of pytorch_optimizer 4.1.0
    def __init__(self, params, num_iterations, lr=1e-3):
        super().__init__(params, lr)


class NeedsItsGroups(Momentum):  # as Prodigy_adv of adv-optm 2.5.16
    def remember(self, state, group, gradient):
        group["kind"], group["seen"] = "float32", group.get("seen", torch.zeros(())) + 1
        return super().remember(state, group, gradient) / group["seen"]

    def load_state_dict(self, state):
        super().load_state_dict(state)
        assert all(group["kind"] == "float32" for group in self.param_groups)


class CannotLoad(Momentum):  # as Lion_adv of adv-optm 2.5.16
    def load_state_dict(self, state):
        raise KeyError("actual_state_precision")


class Forgets(Momentum):  # as kourkoutas_beta of adv-optm 2.5.16
    def remember(self, state, group, gradient):
        self.seen = getattr(self, "seen", 0) + 1
        return super().remember(state, group, gradient) / self.seen


class Compiled(Momentum):  # keeps a function
    def remember(self, state, group, gradient):
        state["step"] = torch.add
        return super().remember(state, group, gradient)


class Named(Momentum):  # a key that is the name of a place
    def remember(self, state, group, gradient):
        state["a/b"] = 1
        return super().remember(state, group, gradient)


class Packed(torch.Tensor):
    pass


class Subclass(Momentum):  # as AdamW8bit of torchao 0.18
    def remember(self, state, group, gradient):
        return state.setdefault("mean", torch.zeros_like(gradient).as_subclass(Packed)).lerp_(gradient, 0.1)


class TensorRate(Momentum):  # as AdamW8bit of torchao 0.18
    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr)
        for group in self.param_groups:
            group["lr"] = torch.tensor(group["lr"])

    def remember(self, state, group, gradient):
        assert isinstance(group["lr"], torch.Tensor), "lr was changed to a non-Tensor object"
        return super().remember(state, group, gradient)


class DividesByRate(Momentum):  # as DAdaptSGD of dadaptation 3.2
    def remember(self, state, group, gradient):
        return gradient / (1 / float(group["lr"]))


class RefusesZero(Momentum):
    def remember(self, state, group, gradient):
        assert float(group["lr"]) > 0, "the rate must be positive"
        return super().remember(state, group, gradient)


class KeepsOfAll(torch.optim.AdamW):  # a part of the state of a weight that was never stepped, which AdamW refuses
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("copy", torch.zeros_like(p))


class NoState(Momentum):
    def state_dict(self):
        raise NotImplementedError("not yet")


class OwnRate(Momentum):  # as AdaFactor of pytorch-optimizer 4.1.0
    def remember(self, state, group, gradient):
        group["params"][0].sub_(1e-3)
        return super().remember(state, group, gradient)


class NeedsGradients(Momentum):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            torch._foreach_norm([p.grad for p in group["params"]])
        super().step()


class DecaysAll(Momentum):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.99)
        super().step()


class DividesByGradient(Momentum):
    def remember(self, state, group, gradient):
        return gradient / gradient.norm()


class NeedsGroups(Momentum):  # as Muon of pytorch-optimizer 4.1.0
    def __init__(self, params, lr=1e-3, **others):
        super().__init__(params, lr)
        for group in self.param_groups:
            if "use_muon" not in group:
                raise ValueError("`use_muon` must be set.")


class Squares(Momentum):  # a matrix of each side, as SOAP without a limit
    def remember(self, state, group, gradient):
        state.setdefault("sides", [torch.eye(side) for side in gradient.shape])
        return super().remember(state, group, gradient)


class Averages(Momentum):  # a schedule-free one, whose name does not say it
    def __init__(self, params, lr=1e-3, use_schedulefree=True):
        super().__init__(params, lr)

    def train(self):
        pass

    def eval(self):
        pass
'''


@pytest.fixture(autouse=True)
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_a_package.py").write_text(CLASSES, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "of_a_package", raising=False)


SAME = "tried on weights of these shapes; its state is stored, and resumes with the same bits"
NO_STATE = (
    "Choose another optimizer, or set save.states: never to train without states."
)


SMALL = [(16, 64), (64, 16)]


def outcome(name: str, arguments: dict | None = None, **settings: object) -> list[str]:
    """What the log says of an optimizer, or the refusal."""
    settings = {"shapes": SMALL, **settings}
    try:
        return list(try_optimizer(name, 1e-3, arguments or {}, CPU, **settings).lines())
    except UserError as error:
        return [f"refused: {error}"]


@pytest.mark.parametrize(
    "name",
    [
        "Momentum",
        "Lists",
        "WholeNumbers",
        "LooksAhead",
        "HalfState",
        "NeedsItsGroups",
        "TensorRate",
        "Squares",
    ],
)
def test_a_state_of_any_kind_comes_back_to_the_same_bits(name: str) -> None:
    assert outcome(f"of_a_package.{name}") == [f"of_a_package.{name}: {SAME}"]


NOT_RESUMED = f"so no run could be resumed. {NO_STATE}"
ANOTHER = "Choose another optimizer."
REFUSALS = {
    "CannotLoad": f"cannot load the state that it has saved (no entry 'actual_state_precision'), {NOT_RESUMED}",
    "Compiled": f"keeps 'step' in its state as builtin_function_or_method, which cannot be stored, {NOT_RESUMED}",
    "Subclass": f"keeps 'mean' in its state as Packed, which cannot be stored, {NOT_RESUMED}",
    "KeepsOfAll": f"cannot load the state that it has saved (no entry 'step'), {NOT_RESUMED}",
    "NoState": f"cannot give its state: not yet. {NO_STATE}",
    "Named": f"keeps the key 'a/b' in its state, which cannot be stored, {NOT_RESUMED}",
    "NeedsGradients": "cannot step where one weight has a gradient of 0 and one has none: expected Tensor as element 3 "
    f"in argument 0, but got NoneType. {ANOTHER}",
    "DecaysAll": f"moves a weight that has no gradient. {ANOTHER}",
    "DividesByGradient": "with these arguments makes a weight whose gradient is 0 infinite or not a number. "
    + ANOTHER,
    "NoRate": f"takes no learning rate, so train.lr cannot be set. {ANOTHER}",
    "NeedsSteps": "cannot be made for groups of weights as a job has them: NeedsSteps.__init__() missing 1 required "
    "positional argument: 'num_iterations'. Write train.optimizer_params: {num_iterations: VALUE}.",
    "NeedsGroups": f"cannot be made for groups of weights as a job has them: `use_muon` must be set. {ANOTHER}",
}


@pytest.mark.parametrize(("name", "reason"), REFUSALS.items())
def test_what_a_class_cannot_do_is_refused_before_the_first_step(
    name: str, reason: str
) -> None:
    assert outcome(f"of_a_package.{name}") == [f"refused: of_a_package.{name} {reason}"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("DividesByRate", "float division by zero"),
        ("RefusesZero", "the rate must be positive"),
    ],
)
def test_a_rate_of_0_is_refused_where_the_training_begins_with_it(
    name: str, why: str
) -> None:
    assert outcome(f"of_a_package.{name}") == [f"of_a_package.{name}: {SAME}"]
    assert outcome(f"of_a_package.{name}", begins_at_zero=True) == [
        f"refused: of_a_package.{name} cannot step at a learning rate of 0, with which the training begins: "
        f"{why}. Set lr_warmup_steps: 0 and a learning rate above 0, or choose another optimizer."
    ]


def test_an_argument_does_not_mend_a_class_that_needs_groups() -> None:
    with pytest.raises(UserError, match="made for groups of weights") as caught:
        try_optimizer("of_a_package.NeedsGroups", 1e-3, {"use_muon": True})
    assert not isinstance(caught.value, ArgumentError), "there is none to correct"


@pytest.mark.parametrize("name", ["CannotLoad", "Compiled", "Subclass"])
def test_a_run_without_states_needs_no_state_that_comes_back(name: str) -> None:
    assert outcome(f"of_a_package.{name}", keeps_state=False) == []


@pytest.mark.parametrize(
    ("difference", "said"),
    [(1.0, "100"), (13.08, "1,308"), (0.1, "10"), (2e-7, "2e-05")],
)
def test_the_share_by_which_steps_differ_is_told_in_percent(
    difference: float, said: str
) -> None:
    [line] = OptimizerTrial("adamw", difference, moves_at_zero=False).lines()
    assert f" its steps differ by {said} % of their size. " in line


def test_an_argument_that_a_class_needs_is_given_as_the_message_says() -> None:
    assert outcome("of_a_package.NeedsSteps", {"num_iterations": 5}) == [
        f"of_a_package.NeedsSteps: {SAME}"
    ]


def test_a_state_that_is_not_whole_is_a_warning() -> None:
    [line] = outcome("of_a_package.Forgets")
    assert line.startswith(
        "warning: of_a_package.Forgets: its state does not come back whole: after a resume its steps "
    )
    assert line.endswith(" % of their size. A run that was stopped ends as another one")


def test_a_class_with_a_rate_of_its_own_is_a_warning() -> None:
    warning = "warning: of_a_package.OwnRate moves weights at a learning rate of 0: it does not follow train.lr alone"
    assert outcome("of_a_package.OwnRate") == [warning, f"of_a_package.OwnRate: {SAME}"]


def test_the_shapes_of_a_training_are_tried() -> None:
    """Vectors, what a rank has none of, and a weight that is too large to be made for
    it."""
    shapes = [(0,), (7,), (3, 4, 5, 5), (8192, 8192), (16, 640)]
    assert try_optimizer("adamw", 1e-3, {}, CPU, shapes=shapes).difference == 0
    with pytest.raises(
        UserError,
        match=r"^torch\.optim\.Muon cannot be made .*: Muon only supports 2D parameters",
    ):
        try_optimizer("torch.optim.Muon", 1e-3, {}, CPU, shapes=shapes)
    assert (
        try_optimizer("torch.optim.Muon", 1e-3, {}, CPU, shapes=[(0,)]).difference == 0
    )


def test_a_trial_changes_no_random_number_of_the_run() -> None:
    before = torch.random.get_rng_state()
    try_optimizer("prodigy", 1.0, {})
    assert torch.equal(torch.random.get_rng_state(), before)


# ------------------------------------------------------------ the state itself


def test_what_the_class_raises_is_told_as_its_own() -> None:
    weights = [nn.Parameter(torch.ones(2, 3))]
    optimizer = build_optimizer("of_a_package.CannotLoad", weights, 1e-3, {})
    weights[0].grad = torch.ones(2, 3)
    optimizer.step()
    state = state_tensors(optimizer, ["w"])
    assert set(state[0]) == {"w/mean"} and state[1] == {}
    with pytest.raises(
        StateError,
        match=r"^cannot load the state that it has saved \(no entry 'actual_",
    ):
        load_state_tensors(
            build_optimizer("of_a_package.CannotLoad", weights, 1e-3, {}), ["w"], *state
        )


def test_places_of_lists_and_keys_of_numbers_are_in_the_names() -> None:
    weights = [nn.Parameter(torch.ones(2, 3))]
    named: dict[str, set[str]] = {}
    for name in ("Lists", "WholeNumbers"):
        optimizer = build_optimizer(f"of_a_package.{name}", weights, 1e-3, {})
        weights[0].grad = torch.ones(2, 3)
        optimizer.step()
        tensors, plain = state_tensors(optimizer, ["w"])
        named[name] = {*tensors, *plain}
    assert named["Lists"] == {"w/means/[0]", "w/means/[1]/(0)", "w/means/[1]/(1)"}
    assert named["WholeNumbers"] == {
        "w/<0>/seen/{0}",
        "w/<0>/nothing/[]",
        "w/<0>/no names/<>",
        "w/<0>/mean",
    }


def test_a_list_that_an_earlier_version_stored_as_one_value_still_loads() -> None:
    weights = [nn.Parameter(torch.ones(2, 3))]
    optimizer = build_optimizer("of_a_package.Momentum", weights, 1e-3, {})
    load_state_tensors(
        optimizer, ["w"], {"w/mean": torch.ones(2, 3)}, {"w/order": [1, 0]}
    )
    assert optimizer.state[weights[0]]["order"] == [1, 0]


# ------------------------------------------------------------ bytes


def grown(power: int):
    """A state whose bytes are that power of the long side."""
    return lambda shapes: {shape: max(shape) ** power * min(shape) for shape in shapes}


@pytest.mark.parametrize("power", [0, 1, 2])
def test_a_measurement_follows_the_power_by_which_the_state_grows(power: int) -> None:
    shapes = [(16, 3072), (3072, 16), (16, 12288)]
    expected = sum(max(shape) ** power * min(shape) for shape in shapes)
    assert measured_bytes(shapes, grown(power), {}) == pytest.approx(expected, rel=1e-6)


def test_small_weights_are_measured_as_they_are_and_each_once() -> None:
    asked: list[tuple[int, ...]] = []

    def sizes_of(shapes: list[tuple[int, ...]]) -> dict[tuple[int, ...], int]:
        asked.extend(shapes)
        return {shape: 4 * prod(shape) for shape in shapes}

    known: dict[tuple[int, ...], int] = {}
    assert measured_bytes([(8, 64), (64, 8), (8, 64)], sizes_of, known) == 4 * 3 * 512
    assert measured_bytes([(8, 64)], sizes_of, known) == 4 * 512 and sorted(asked) == [
        (8, 64),
        (64, 8),
    ]


def test_a_start_measures_what_a_dry_run_cannot_know() -> None:
    name, shapes = "of_a_package.Squares", [(16, 3072), (3072, 16)]
    weights = sum(map(prod, shapes))
    assert optimizer_bytes(name, {}, shapes) == 8 * weights
    assert state_note(name, {}, shapes) == (
        f"optimizer {name} is not in the tables of this program. Its state is taken to be two numbers per weight; it "
        "is measured, and the class tried, before the first step"
    )
    with measured_states(lambda: CPU):
        real = 4 * (weights + 2 * (16**2 + 3072**2))
        assert optimizer_bytes(name, {}, shapes) == pytest.approx(real, rel=0.05)
        assert state_note(name, {}, shapes).startswith(
            f"warning: optimizer {name} keeps 7"
        )
        assert optimizer_bytes("of_a_package.Compiled", {}, shapes) == pytest.approx(
            4 * weights, rel=0.01
        )
        # What cannot be made is refused by the trial; until then it is taken for one
        # with two numbers.
        assert optimizer_bytes("of_a_package.NeedsGroups", {}, shapes) == 8 * weights
        assert state_note("of_a_package.NeedsGroups", {}, shapes) == ""
    assert optimizer_bytes(name, {}, shapes) == 8 * weights


def test_the_state_of_soap_is_that_of_its_matrices_and_their_limit() -> None:
    shapes = [(16, 3072), (3072, 16)]
    weights = sum(map(prod, shapes))
    assert optimizer_bytes(
        "pytorch_optimizer.SOAP", {}, shapes
    ) / weights == pytest.approx(1544, abs=1)
    assert optimizer_bytes("soap", {}, shapes) / weights == pytest.approx(8, abs=0.1)
    assert state_note("soap", {}, shapes) == ""


@pytest.mark.skipif(
    find_spec("pytorch_optimizer") is None,
    reason="pytorch_optimizer is not installed here",
)
def test_a_large_state_is_a_warning_with_a_limit_that_helps() -> None:
    name, shapes = "pytorch_optimizer.SOAP", [(16, 3072), (3072, 16)]
    remedy = "Give optimizer_params: {max_precondition_dim: 16}"
    assert (
        state_note(name, {}, shapes)
        == f"warning: optimizer {name} keeps 1,544 bytes of state per weight. {remedy}"
    )
    assert state_note(name, {"max_precondition_dim": 16}, shapes) == ""


# ------------------------------------------------------------ the packages

WHOLE, WARNED, REFUSED = "same bits", "warned", "refused"

SETTINGS: list[tuple[str, dict, str]] = [
    *((f"torch.optim.{name}", {}, WHOLE) for name in ("AdamW", "Muon", "Adafactor")),
    *(
        (f"bitsandbytes.optim.{name}", {}, WHOLE)
        for name in ("AdamW8bit", "PagedAdamW8bit", "Lion8bit", "AdEMAMix8bit", "PagedAdEMAMix8bit")
    ),
    ("prodigyopt.Prodigy", {}, WHOLE),
    ("prodigyplus.ProdigyPlusScheduleFree", {}, WHOLE),
    ("prodigyplus.ProdigyPlusScheduleFree", {"use_schedulefree": False}, WHOLE),
    ("prodigyplus.ProdigyPlusScheduleFree", {"use_focus": True}, WHOLE),
    *((f"schedulefree.{name}ScheduleFree", {}, WHOLE) for name in ("AdamW", "RAdam", "SGD")),
    ("transformers.Adafactor", {"relative_step": False, "scale_parameter": True}, WHOLE),
    ("transformers.Adafactor", {"relative_step": False, "scale_parameter": False}, WHOLE),
    ("came_pytorch.CAME", {}, WHOLE),
    ("lion_pytorch.Lion", {}, WHOLE),
    *((f"dadaptation.DAdapt{name}", {}, WHOLE) for name in ("Adam", "Lion", "AdaGrad", "SGD", "Adan")),
    *((f"adv_optm.{name}_adv", {}, WHOLE) for name in ("AdamW", "Adopt", "Prodigy")),
    ("adv_optm.SignSGD_adv", {}, WHOLE),
    ("adv_optm.AdamW_adv", {"nnmf_factor": True}, WHOLE),
    ("adv_optm.AdamW_adv", {"kourkoutas_beta": True}, WARNED),
    ("adv_optm.AdamW_adv", {"state_precision": "int8_sr"}, WARNED),
    ("adv_optm.Prodigy_adv", {"nnmf_factor": True}, WHOLE),
    # Of weights that are far wider than high they make an AdamW, whose state they
    # cannot load.
    *((f"adv_optm.{name}_adv", {}, REFUSED) for name in ("Muon", "AdaMuon", "Lion")),
    ("adv_optm.Lion_adv", {"nnmf_factor": True}, REFUSED),
    *(
        (f"pytorch_optimizer.{name}", {}, WHOLE)
        for name in (
            "StableAdamW", "ScheduleFreeAdamW", "Prodigy", "Lion", "CAME", "AdEMAMix", "Adan", "ADOPT", "SOAP", "ASGD",
        )
    ),
    ("pytorch_optimizer.AdaFactor", {}, WHOLE),
    ("pytorch_optimizer.Ranger21", {"num_iterations": 400}, WHOLE),
    *((f"pytorch_optimizer.{name}", {}, REFUSED) for name in ("Ranger21", "A2Grad", "AliG")),
    ("pytorch_optimizer.Muon", {}, REFUSED),
    ("pytorch_optimizer.AdaMuon", {}, REFUSED),
    # Where Triton is installed and no GPU is there it would take Triton's kernels.
    ("optimi.StableAdamW", {"triton": False}, WHOLE),
    *((f"optimi.{name}", {}, WHOLE) for name in ("AdamW", "Lion", "Adan")),
    *((f"torchao.optim.{name}", {}, REFUSED) for name in ("AdamW8bit", "AdamW4bit", "AdamWFp8")),
    ("heavyball.AdamW", {"compile_step": False}, WHOLE),
]  # fmt: skip
"""adv-optm 2.5.16, bitsandbytes 0.50.2, came-pytorch 0.1.3, dadaptation 3.2, heavyball
3.2.1, lion-pytorch 0.2.5, prodigy-plus-schedule-free 2.0.1, prodigyopt 1.1.2,
pytorch-optimizer 4.1.0, schedulefree 1.4.1, torch 2.13.0, torch-optimi 0.3.3, torchao
0.18.0, transformers 5.24.0, on a CPU."""

SLOW = ("torchao", "heavyball")


def test_the_settings_are_those_that_were_tried_and_what_they_come_to() -> None:
    counts = {
        kind: sum(row[2] == kind for row in SETTINGS)
        for kind in (WHOLE, WARNED, REFUSED)
    }
    assert len(SETTINGS) == 61 and counts == {WHOLE: 47, WARNED: 2, REFUSED: 12}


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        pytest.param(
            *row,
            id=f"{row[0]}-{'-'.join(row[1])}",
            marks=[pytest.mark.slow] * row[0].startswith(SLOW),
        )
        for row in SETTINGS
    ],
)
def test_each_setting_resumes_to_the_same_bits_or_is_reported(
    name: str, arguments: dict, expected: str
) -> None:
    package = name.partition(".")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed here")
    *warnings, last = outcome(name, arguments, shapes=LORA_SHAPES)
    found = (
        REFUSED
        if last.startswith("refused: ")
        else WARNED
        if last.startswith("warning: ")
        else WHOLE
    )
    assert found == expected, last
    assert bool(warnings) == name.endswith("pytorch_optimizer.AdaFactor"), (
        "which moves weights at a rate of 0"
    )


RESUMED = [
    row[:2]
    for row in SETTINGS
    if row[2] == WHOLE and not row[0].startswith(("heavyball", "bitsandbytes"))
]
MEASURED = [row for row in RESUMED if has_known_state(*row)]
MEASURED += [row for row in RESUMED if not has_known_state(*row)][::4]
"""All that are in the tables, and some that are measured."""


@pytest.mark.parametrize(("name", "arguments"), MEASURED)
def test_the_tables_have_the_bytes_of_the_real_state(
    name: str, arguments: dict
) -> None:
    """Of the factors of a LoRA; what is not in the tables is measured to within a
    tenth."""
    package = name.partition(".")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed here")
    shapes = [(16, 640), (640, 16)]
    weights = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = build_optimizer(name, weights, 1e-3, arguments)
    for weight in weights:
        weight.grad = torch.cos(torch.arange(weight.numel())).view_as(weight)
    optimizer.step()
    kept = sum(bytes_of(optimizer.state[weight]) for weight in weights)
    with measured_states(lambda: CPU):
        within = 0.01 if has_known_state(name, arguments) else 0.1
        assert optimizer_bytes(name, arguments, shapes) == pytest.approx(
            kept, rel=within
        )


def bytes_of(value: object) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    parts = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, list)
        else ()
    )
    return sum(map(bytes_of, parts))
