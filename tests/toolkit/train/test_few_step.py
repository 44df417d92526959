from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.toolkit.train.test_flow_step import make_batch
from toolkit.config.sections.few_step import FewStepLossConfig
from toolkit.contracts.data import BatchSpec, PromptEmbeds, Size
from toolkit.contracts.model import DynamicShift
from toolkit.contracts.training import StepLosses
from toolkit.optim.ema import copy_into
from toolkit.train.few_step import FewStepMixture, Teacher

SIZE = Size(8, 8)
SPECS = [
    BatchSpec(epoch, (0, 1), (position, position + 1))
    for epoch in range(20)
    for position in range(0, 100, 2)
]


def mixture(seed: int = 1, first_step: int = 0, **few: object) -> FewStepMixture:
    family = SimpleNamespace(
        prediction="flow", shares_prefix=False, tokens=lambda size: 16
    )
    settings = FewStepLossConfig(lora="a.safetensors", **few)
    model = SimpleNamespace(family=family, dynamic_shift=DynamicShift())
    beside = (
        SimpleNamespace(),
        Teacher(Role({}), first_step),
        nullcontext,
        nullcontext,
    )
    return FewStepMixture(model, seed, settings, *beside, weighting_scheme="sigma_sqrt")


def test_the_share_is_drawn_by_the_seed_and_the_place() -> None:
    chosen = [
        [mixture(seed, 7, share=0.5).is_few(spec, 7) for spec in SPECS]
        for seed in (1, 1, 2)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert not any(mixture(1, 7).is_few(spec, 6) for spec in SPECS)
    # all of them where nothing is given
    assert all(mixture(1, 7).is_few(spec, 7) for spec in SPECS)
    assert sum(chosen[0]) / len(SPECS) == pytest.approx(0.5, abs=0.04)


def test_levels_are_those_of_sampling_with_the_lora() -> None:
    step = mixture(flow_shift=3)
    assert len({t for spec in SPECS for t in step.sample_t(spec, SIZE)}) > len(SPECS)
    step._is_active = True
    few = [t for spec in SPECS for t in step.sample_t(spec, SIZE)]
    assert sorted(set(few)) == pytest.approx([0.5, 0.75, 0.9, 1.0])
    assert all(few.count(level) > len(few) / 6 for level in set(few))
    # stretched, as the model's own sampling is
    assert mixture().schedule(SIZE)[-1] == pytest.approx(0.02)


class Role:
    """What the teacher asks of a role."""

    def __init__(
        self, parameters: dict[str, Tensor], averages: dict[str, Tensor] | None = None
    ) -> None:
        self.parameters, self.ema = (
            parameters,
            averages and SimpleNamespace(averages=averages),
        )
        self.further: dict[str, dict[str, Tensor]] = {}


@pytest.mark.parametrize("average", [0.0, 5.0])
def test_the_teacher_is_the_mean_of_the_network_since_the_first_step(
    average: float,
) -> None:
    weight = torch.ones(2)
    role = Role({"a": weight}, {"a": torch.full((2,), average)} if average else None)

    def of(first_step: int, step: int) -> float:
        """The weight that teaches after a resume; where that has not begun -1."""
        teacher = Teacher(role, first_step)
        if kept:
            copy_into(role.further["few_step_loss"], kept)
        for _ in range(2):  # of micro-batches that are computed again: nothing more
            role.before_step(step)
        kept.update(
            {
                name: tensor.clone()
                for name, tensor in role.further["few_step_loss"].items()
            }
        )
        with teacher.teaching():
            taught = weight[0].item()
        return taught if teacher.has_begun(step) else -1

    kept: dict[str, Tensor] = {}
    first = average or 1
    assert of(10, 9) == -1
    assert of(10, 10) == first
    weight += 1
    # 3 = 0.3 x 10 steps
    assert of(10, 11) == pytest.approx(first + (2 - first) / 3) and weight[0] == 2
    # the job has more steps than before, and then it begins anew
    assert of(20, 19) == -1
    assert of(20, 20) == (average or 2)


class Noted:
    """Notes whether its block is entered."""

    def __init__(self, notes: list[bool]) -> None:
        self.notes = notes

    def __enter__(self) -> None:
        self.notes.append(True)

    def __exit__(self, *_: object) -> None:
        self.notes.append(False)


def test_the_lora_is_active_for_the_share_alone_and_its_levels_count_alike(
    monkeypatch,
) -> None:
    step, seen = mixture(share=0.5), {}
    active: list[bool] = []
    step._with_lora = lambda: Noted(active)

    def backward(self, batch, backward) -> StepLosses:
        t_B = torch.tensor([0.5])
        seen[bool(active and active[-1])] = step.weighting(t_B).item()
        return StepLosses({"network": torch.ones(1)})

    monkeypatch.setattr("toolkit.train.flow_step.FlowMatchingStep.backward", backward)
    for spec in SPECS[:40]:
        found = step.backward(SimpleNamespace(spec=spec), SimpleNamespace(step=0))
        assert ("loss/few_step" in found.numbers) == step.is_few(spec, 0)
    assert seen == {True: 1.0, False: 4.0}


class Flow:
    """With the few-step LoRA: velocity 5, and 2 more with the network. Without it: t
    for the caption, t - 1 for the negative prompt, both times 4 with the network."""

    family = SimpleNamespace(
        prediction="flow",
        shares_prefix=False,
        tokens=lambda size: 16,
        guidance=3.0,
        embeds_guidance=False,
    )
    dynamic_shift = DynamicShift()

    def __init__(self) -> None:
        self.few = self.network = True

    @contextmanager
    def without(self, part: str) -> Iterator[None]:
        setattr(self, part, False)
        yield
        setattr(self, part, True)

    def prefetch_timesteps(self, levels) -> None:
        pass

    def predict_velocity(
        self, x_t_BCHW: Tensor, t_B: Tensor, prompts: PromptEmbeds, references
    ) -> Tensor:
        assert not torch.is_grad_enabled()
        alone_B = (t_B - prompts.embeds_BLD[:, 0, 0]) * (4 if self.network else 1)
        v_B = torch.full_like(t_B, 7 if self.network else 5) if self.few else alone_B
        return v_B.view(-1, 1, 1, 1).expand_as(x_t_BCHW)

    def apply_cfg(self, cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
        return uncond_BCHW + scale * (cond_BCHW - uncond_BCHW)


@pytest.mark.parametrize(
    ("keys", "added"),
    [({}, 2), ({"guidance_scale": 1}, 0), ({"guidance_scale": 1.5}, 0.5)],
)
def test_the_target_is_the_few_step_lora_and_what_the_network_changes_in_many_guided_steps(
    keys, added
) -> None:
    flow, few = (
        Flow(),
        FewStepLossConfig(lora="a.safetensors", flow_shift=3, share=1, **keys),
    )
    network = SimpleNamespace(disabled=partial(flow.without, "network"))
    step = FewStepMixture(
        flow,
        1,
        few,
        network,
        Teacher(Role({}), 0),
        nullcontext,
        partial(flow.without, "few"),
    )
    step._is_active = True
    batch = make_batch(torch.zeros(32, 2, 4, 4))
    negative = PromptEmbeds(torch.ones(32, 1, 1), (1,) * 32)
    x_t_BCHW, target_BCHW, t_B = step.lesson(
        replace(batch, extra_prompts={"few_step_loss": negative}), 1
    )
    assert len(set(t_B.tolist())) == 4
    noise_BCHW, _ = step.sample_noise_and_t(batch.spec, batch.latents_BCHW.shape[1:])
    assert torch.allclose(
        x_t_BCHW, noise_BCHW + 7 * (t_B - 1).view(-1, 1, 1, 1), atol=1e-5
    )
    following = {1.0: 0.9, 0.9: 0.75, 0.75: 0.5, 0.5: 0.0}
    # of two Euler steps
    mean = [0.75 * t + 0.25 * following[round(t, 2)] + added for t in t_B.tolist()]
    assert target_BCHW.mean((1, 2, 3)).tolist() == pytest.approx(
        [5 + 3 * v for v in mean], abs=1e-5
    )
