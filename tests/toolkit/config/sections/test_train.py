"""The keys of `train`: names, zeros, contradictions; and the section
`stop_when`."""

from __future__ import annotations

import re

import pytest
import torch

from tests.parts import needs_foreign_names
from tests.toolkit.config.conftest import trainer
from toolkit.config.sections.train import BACKENDS, TrainConfig
from toolkit.flow.settings import TIMESTEP_TYPES, FlowSettings
from toolkit.optim.schedules import SCHEDULES


def test_the_defaults_of_the_flow_are_those_of_the_config() -> None:
    assert FlowSettings(**FlowSettings.named_in(TrainConfig())) == FlowSettings()


@needs_foreign_names
@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("timestep_sampling: qwen_shift", "timestep_type", "model_shift"),
        ("timestep_type: QWEN_SHIFT", "timestep_type", "model_shift"),
        ("loss_type: l1", "loss_type", "mae"),
        ("loss_type: l2", "loss_type", "mse"),
        ("optimizer_type: prodigyopt", "optimizer", "prodigy"),
        ("optimizer: RMSprop", "optimizer", "rmsprop"),
        (
            "{lr_scheduler: StepLR, lr_scheduler_params: {step_size: 2}}",
            "lr_scheduler",
            "step",
        ),
        (
            "{lr_scheduler: EXPONENTIALLR, lr_scheduler_params: {gamma: 0.9}}",
            "lr_scheduler",
            "exponential",
        ),
        (
            "{lr_scheduler: linearLR, lr_scheduler_params: {total_iters: 9}}",
            "lr_scheduler",
            "LinearLR",
        ),
        ("lr_scheduler: constantlr", "lr_scheduler", "ConstantLR"),
        ("optimizer: torch.optim.SGD", "optimizer", "torch.optim.SGD"),
        (
            "optimizer: {name: bitsandbytes.optim.PagedAdEMAMix8bit, lr: 1}",
            "optimizer",
            "bitsandbytes.optim.PagedAdEMAMix8bit",
        ),
        (
            "optimizer_args: ['weight_decay=0.1', 'betas=0.9,0.99']",
            "optimizer_params",
            {"weight_decay": 0.1, "betas": "0.9,0.99"},
        ),
        (
            "optimizer_args: weight_decay=0.1 eps=1e-6",
            "optimizer_params",
            {"weight_decay": 0.1, "eps": 1e-6},
        ),
        (
            "{optimizer_args: [eps=1e-6], optimizer_params: {amsgrad: true}}",
            "optimizer_params",
            {"eps": 1e-6, "amsgrad": True},
        ),
        (
            "{lr_scheduler: step, lr_scheduler_args: [step_size=2, gamma=0.5]}",
            "lr_scheduler_params",
            {"step_size": 2, "gamma": 0.5},
        ),
        (
            "{lr_scheduler: piecewise_constant, lr_scheduler_params: {step_rules: '1:2,0.1'}}",
            "lr_scheduler_params",
            {"step_rules": "1:2,0.1"},
        ),
    ],
)
def test_what_is_written_reaches_the_field(
    section, line: str, field: str, value: object
) -> None:
    line = line if line.startswith("{") else "{" + line + "}"
    assert getattr(section(f"train: {line}").train, field) == value


@pytest.mark.parametrize(
    "name", sorted(name for name, kind in SCHEDULES.items() if not kind.needs)
)
def test_every_schedule_is_accepted_alone(section, name: str) -> None:
    assert (
        section(
            f"train: {{lr_scheduler: {name}, lr_warmup_steps: 0.1}}"
        ).train.lr_scheduler
        == name
    )


@pytest.mark.parametrize("name", [*TIMESTEP_TYPES, "qwen_shift"])
def test_every_timestep_type_is_accepted_alone(section, name: str) -> None:
    section(f"train: {{timestep_type: {name}}}")


# ------------------------------------------------------------ 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sigmoid_scale", "0 is out of range: must be > 0."),
        ("logit_std", "0 is out of range: must be > 0."),
        ("max_timestep", "0 is out of range: must be > 0."),
    ],
)
def test_zero_is_a_mistake_where_nothing_sensible_is_meant(
    faults, key: str, message: str
) -> None:
    assert faults(f"train: {{{key}: 0}}") == [f"train.{key}: {message}"]


@pytest.mark.parametrize(
    "key",
    [
        "logit_mean", "mode_scale", "min_timestep", "num_timestep_buckets", "lr_warmup_steps", "lr_decay_steps",
        "discrete_flow_shift",
    ],
)  # fmt: skip
def test_zero_is_a_value_elsewhere(section, key: str) -> None:
    assert getattr(section(f"train: {{{key}: 0}}").train, key) == 0


@pytest.mark.parametrize(
    "key",
    ["discrete_flow_shift", "lr_decay_steps", "logit_std"],
)
def test_an_empty_value_is_the_default(section, key: str) -> None:
    assert (
        getattr(section(f"train: {{{key}: }}").train, key)
        == TrainConfig.model_fields[key].default
    )


def test_what_concerns_a_type_that_is_not_drawn_from_is_no_mistake(section) -> None:
    """With a bell over the loss all levels are drawn alike; a mixture could not be
    bent, a shift of 0 is no noise."""
    bent = (
        "timestep_type: qinglong_flux, content_or_style: style, linear_timesteps: true"
    )
    assert section(f"train: {{{bent}}}").train.noise_levels() == "linear"
    assert section(
        "train: {timestep_type: shift, discrete_flow_shift: 0, linear_timesteps: true}"
    )


# ------------------------------------------------------------ contradictions


@needs_foreign_names
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "timestep_type: next_sample",
            "train.timestep_type: 'next_sample' is unknown. Use 'sigmoid' or",
        ),
        (
            "optimizer: adamw9",
            "train.optimizer: 'adamw9' is unknown. Did you mean 'adamw'?",
        ),
        (
            "optimizer: torch.optim.",
            "train.optimizer: 'torch.optim.' is not a dotted path.",
        ),
        (
            "optimizer: no_such.Adam",
            "train.optimizer: 'no_such.Adam': there is no package 'no_such' here.",
        ),
        (
            "optimizer: Adagrad",
            "train.optimizer: 'Adagrad' is unknown. Use 'adamw' or 'adam' or 'sgd' or 'rmsprop' or",
        ),
        (
            "{optimizer: Lion, optimizer_params: {eps: 1}}",
            "train.optimizer_params: lion has no 'eps'.",
        ),
        (
            "{optimizer: RMSprop, optimizer_params: {betas: [0, 0]}}",
            "train.optimizer_params: rmsprop has no 'betas'.",
        ),
        (
            "optimizer_params: {weight_decai: 1}",
            "train.optimizer_params: adamw has no 'weight_decai'. Did you mean 'w",
        ),
        (
            "optimizer_params: {betas: 0.9}",
            "train.optimizer_params: betas: 0.9 is not 2 numbers",
        ),
        (
            "optimizer_args: [weight_decay]",
            "train.optimizer_args[0]: 'weight_decay' is not of the form name=value.",
        ),
        (
            "{optimizer_args: [eps=1], optimizer_params: {eps: 2}}",
            "train.optimizer_args[0].eps: 'process[0].train.",
        ),
        (
            "lr_scheduler: ExponentialLR",
            "train.lr_scheduler: exponential needs 'gamma', which is not given.",
        ),
        (
            "lr_scheduler: step",
            "train.lr_scheduler: step needs 'step_size', which is not given.",
        ),
        (
            "lr_scheduler_params: {gamma: 1}",
            "train.lr_scheduler_params: constant has no 'gamma'.",
        ),
        (
            "optimizer: schedulefree_adamw, lr_scheduler: cosine",
            "train.lr_scheduler: 'optimizer: schedulefree_adamw'",
        ),
        (
            "optimizer: schedulefree.SGDScheduleFree, lr_warmup_steps: 5",
            "train.lr_warmup_steps: 'optimizer: schedulefree.SGDScheduleFree' and a schedule cannot be combined.",
        ),
        (
            "optimizer: schedulefree.AdamWScheduleFree, lr_warmup_steps: 5",
            "train.lr_warmup_steps: 'optimizer: schedulefree.AdamWScheduleFree' and a schedule cannot be combined. Use "
            "'optimizer_params: {warmup_steps: 100}'.",
        ),
        (
            "optimizer: schedulefree.RAdamScheduleFree, lr_warmup_steps: 5",
            "train.lr_warmup_steps: 'optimizer: schedulefree.RAdamScheduleFree' and a schedule cannot be combined. "
            "Remove this key.",
        ),
        (
            "optimizer: schedulefree_adamw, ema_config: {use_ema: true}",
            "train.ema_config.use_ema: optimizer 'schedulefree_adamw' already averages the weights",
        ),
        ("{unet_lr: 0.1, lr: 0.2}", "train.unet_lr: 'unet_lr' and 'lr' mean the same"),
    ],
)
def test_what_is_wrong_is_one_line(faults, line: str, message: str) -> None:
    (found,) = faults(f"train: {line if line.startswith('{') else '{' + line + '}'}")
    assert found.startswith(message)


@needs_foreign_names
@pytest.mark.parametrize(
    ("line", "warning"),
    [
        (
            "sigmoid_scale: 2, timestep_type: uniform",
            "sigmoid_scale: has no effect: only timestep_type sigmoid",
        ),
        ("sigmoid_scale: 2, timestep_type: shift", "sigmoid_scale: has no effect"),
        (
            "weighting_scheme: mode",
            "weighting_scheme: has no effect: mode only applies to timestep_type sigma.",
        ),
        (
            "lr_scheduler_power: 2, lr_scheduler: cosine",
            "lr_scheduler_power: has no effect: lr_scheduler cosine ignor",
        ),
        (
            "timestep_type: sigmoid, linear_timesteps: true",
            "timestep_type: has no effect: 'linear_timesteps: true' sa",
        ),
        (
            "sigmoid_scale: 2, linear_timesteps: true",
            "sigmoid_scale: has no effect: only timestep_type sig",
        ),
        (
            "timestep_type: weighted, linear_timesteps: true",
            "linear_timesteps: has no effect: timestep_type weighted",
        ),
        (
            "lr_scheduler: cosine_with_restarts, lr_scheduler_params: {T_0: 500}",
            "lr_scheduler_params.T_0: has no effect, as in ai-toolkit: the schedule is as long as the run. For",
        ),
        (
            "lr_scheduler: linear, lr_scheduler_params: {end_factor: 0.1}",
            "lr_scheduler_params.end_factor: the rate begins at a third, as in ai-toolkit. Give 'start_factor: 1'",
        ),
        (
            "ema_config: {ema_decay: 0.9}",
            "ema_config.ema_decay: has no effect without 'use_ema: true'.",
        ),
        (
            "steps: 3400, gradient_accumulation_steps: 4",
            "gradient_accumulation_steps: steps, save_every and sample_ev",
        ),
        (
            "max_train_steps: 10, gradient_accumulation_steps: 4",
            "would stop after 10, which are 2 optimizer steps.",
        ),
        ("gradient_accumulation_steps: 4", "steps: 1000 is 4,000 micro-batches; "),
        (
            "epochs: 3, gradient_accumulation_steps: 4",
            "with this key ai-toolkit counts micro-batches.",
        ),
    ],
)
def test_a_key_that_the_rest_makes_no_use_of_is_a_warning(
    load, line: str, warning: str
) -> None:
    (found,) = load(trainer(f"train: {{{line}}}")).warnings
    assert warning in found.split(": process[0].train.", 1)[1]


@needs_foreign_names
def test_of_steps_and_epochs_in_a_section_of_their_own_one_decides(load) -> None:
    """With epochs nothing is said of how many batches `steps` would be."""
    found = load(
        trainer(
            "training: {steps: 3400, epochs: 10}",
            "train: {gradient_accumulation_steps: 4}",
        )
    ).warnings
    assert [line.split(": process[0].", 1)[1] for line in found] == [
        "training.steps: has no effect: 'epochs: 10' takes precedence. Remove one of them.",
        "train.gradient_accumulation_steps: steps, save_every and sample_every count optimizer steps of 4 "
        "micro-batches; with this key ai-toolkit counts micro-batches.",
    ]


@needs_foreign_names
@pytest.mark.parametrize(
    "line",
    [
        "timestep_type: shift, discrete_flow_shift: 2.2, sigmoid_scale: 0.8",
        "timestep_type: logsnr, logit_mean: -6, logit_std: 2",
        "timestep_type: sigma, weighting_scheme: mode, mode_scale: 0.8",
        "timestep_type: sigma, weighting_scheme: logit_normal, logit_mean: 1",
        "sigmoid_scale: 1.0, mode_scale: 1.29, lr_scheduler_power: 1",
        "linear_timesteps: true",
        "steps: 3400, gradient_accumulation: 4",
        "steps: 3400, gradient_accumulation_steps: 1",
        "steps: 0, epochs: 2",
        "epochs: 2",
        "steps: 9, epochs: 0",
        "timestep_type: linear, linear_timesteps: true",
        "optimizer: prodigy, lr: 1",
        "lr_scheduler: rex, lr_scheduler_params: {min_lr_ratio: 0.1}, lr_decay_steps: 0.5",
    ],
)
def test_a_key_that_is_used_or_at_its_default_is_no_warning(load, line: str) -> None:
    assert load(trainer(f"train: {{{line}}}")).warnings == ()


@needs_foreign_names
@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ("train: {steps: %s}", "train.steps"),
        ("train: {epochs: %s}", "train.epochs"),
        ("train: {lr_warmup_steps: %s}", "train.lr_warmup_steps"),
        ("train: {batch_size: %s}", "train.batch_size"),
        ("train: {lr: %s}", "train.lr"),
        ("train: {ddp_timeout: %s}", "train.ddp_timeout"),
        ("stop_when: {below: 1, smooth: %s}", "stop_when.smooth"),
        ("network: {rank: %s}", "network.rank"),
        ("logging: {log_every: %s}", "logging.log_every"),
        ("train: {gradient_accumulation: %s}", "train.gradient_accumulation"),
        ("train: {num_timestep_buckets: %s}", "train.num_timestep_buckets"),
        (
            "train: {timestep_type: shift, discrete_flow_shift: %s}",
            "train.discrete_flow_shift",
        ),
        ("network: {linear_alpha: %s}", "network.linear_alpha"),
        ("sample: {prompts: [a], seed: %s}", "sample.seed"),
        ("sample: {prompts: [a --d %s]}", "sample.prompts[0].--d"),
        ("sample: {prompts: [a], width: %s}", "sample.width"),
        ("sample: {samples: [{prompt: a, height: %s}]}", "sample.samples[0].height"),
        ("sample: {prompts: [a], sample_steps: %s}", "sample.sample_steps"),
        ("sample: {prompts: [a], flow_shift: %s}", "sample.flow_shift"),
        ("sample: {prompts: [a], guidance_scale: %s}", "sample.guidance_scale"),
    ],
)
def test_a_number_with_which_a_run_could_only_hang_or_fail_is_refused(
    faults, lines: str, place: str
) -> None:
    (fault,) = faults(lines % (10**40))
    assert fault.startswith(f"{place}: {10**40} is out of range: must be <")


@needs_foreign_names
def test_the_transformers_rate_is_the_rate(section) -> None:
    assert section("train: {unet_lr: 0.25}").train.lr == 0.25


# ------------------------------------------------------------ stop_when


@needs_foreign_names
@pytest.mark.parametrize(
    "lines",
    [
        ("stop_when: {metric: grad_norm, below: 0.5}",),
        ("stop_condition: {loss_name: grad_norm, threshold: 0.5}",),
    ],
)
def test_the_places_and_names_of_stop_when(section, lines) -> None:
    found = section(*lines).stop_when
    assert (found.metric, found.below) == ("grad_norm", 0.5)
    assert found.smooth == 20


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("{}", "stop_when.below"),
        ("{below: 1, smooth: 0}", "stop_when.smooth"),
        ("{below: .nan}", "stop_when.below"),
        ("{below: low}", "stop_when.below"),
    ],
)
def test_a_mistake_of_stop_when_is_named_at_its_place(
    faults, given: str, fault: str
) -> None:
    found = faults(f"stop_when: {given}")
    assert len(found) == 1, found
    assert found[0].startswith(fault)


def test_the_backends_are_those_of_this_pytorch() -> None:
    """tensorrt is torch_tensorrt's; those for tests and for finding errors run no
    models."""
    for_tests = re.compile(r".*(?:TESTING_ONLY|minifier_backend)")
    known = {
        name
        for name in torch._dynamo.list_backends(exclude_tags=())
        if not for_tests.fullmatch(name)
    }
    assert {*BACKENDS} - {"tensorrt"} == known
