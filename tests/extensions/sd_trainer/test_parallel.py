"""What a job may ask for when several processes run it, and what the plan says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.plan import data_parallel_notes
from tests.processes import environment
from toolkit.config import load_job
from toolkit.config.train import TrainConfig
from toolkit.errors import ConfigErrors
from toolkit.optim.optimizer_args import ELEMENTWISE


@pytest.fixture
def found(
    tmp_path: Path, trainer, write_job, make_pictures, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Errors, or else warnings, of a job that so many processes run, each from its key on."""
    monkeypatch.chdir(tmp_path)
    folder = make_pictures(tmp_path / "pictures", "a")

    def found(processes: int, train: dict | None = None, **changes: object) -> list[str]:
        job = write_job(trainer(folder, train=train, **changes))
        with several(monkeypatch, processes):
            try:
                lines = load_job(job, lambda name: SdTrainerConfig).warnings
            except ConfigErrors as errors:
                lines = str(errors).splitlines()
        return [line.split("process[0].", 1)[1] for line in lines]

    return found


@contextmanager
def several(monkeypatch: pytest.MonkeyPatch, processes: int) -> Iterator[None]:
    with monkeypatch.context() as patched:
        for name, value in environment(0, processes, 29500).items():
            patched.setenv(name, value)
        yield


def test_several_processes_need_no_change_of_the_job(found) -> None:
    assert found(2) == found(8, {"parallel": "ddp", "ddp_timeout": 60}) == []


def test_what_concerns_several_processes_is_pointed_out_when_there_is_one(found) -> None:
    assert found(1, {"parallel": "fsdp", "ddp_timeout": 5}) == [
        f"train.{key}: has no effect with one process. Start several with torchrun."
        for key in ("parallel", "ddp_timeout")
    ]


def test_keys_of_the_wrapper_that_is_not_used_have_no_effect(found) -> None:
    warnings = found(2, {"ddp_gradient_as_bucket_view": True, "ddp_static_graph": True})
    assert [warning.split(":")[0] for warning in warnings] == [
        "train.ddp_gradient_as_bucket_view",
        "train.ddp_static_graph",
    ]


def test_a_step_within_the_backward_pass_is_refused(found) -> None:
    assert found(1, {"fused_backward_pass": True}) == []
    [mistake] = found(2, {"fused_backward_pass": True})
    assert mistake.startswith("train.fused_backward_pass: updates each parameter before the gradients of 2")


SHARED_OUT = {"parallel": "fsdp", "gradient_accumulation": 4}


@pytest.mark.parametrize(
    ("train", "changes", "mistake"),
    [
        ({"batch_size": 2}, {}, "train.batch_size: 2: 'train.parallel: fsdp' needs 1"),
        (
            {"gradient_accumulation": 3},
            {},
            "train.gradient_accumulation: 3: 'train.parallel: fsdp' needs a multiple",
        ),
        ({"compile": True}, {}, "train.compile: does not work with 'train.parallel: fsdp'"),
        ({}, {"network": {"type": "dora"}}, "network.type: 'dora' needs the norms of whole weights"),
        ({}, {"quantize": True}, "model.quantize: does not work with 'train.parallel: fsdp': FSDP2 shards parameters"),
        ({}, {"modulation_table": True}, "model.modulation_table: does not work with 'train.parallel: fsdp'"),
        ({}, {"blocks_to_swap": 1}, "model.blocks_to_swap: does not work with 'train.parallel: fsdp'"),
    ],
)
def test_what_a_model_that_is_shared_out_rules_out(found, tiny_model, train, changes, mistake: str) -> None:
    if changes and "network" not in changes:
        changes = {"model": {"name_or_path": str(tiny_model), **changes}}
    mistakes = found(2, SHARED_OUT | train, **changes)
    assert len(mistakes) == 1 and mistakes[0].startswith(mistake), mistakes


FULL = {"type": "full"}


@pytest.mark.parametrize(
    ("train", "changes", "mistake"),
    [
        ({"optimizer": "adafactor"}, {}, "train.optimizer: 'adafactor' may need whole weights"),
        ({"optimizer": "prodigy", "lr": 1}, {}, "train.optimizer: 'prodigy' may need whole weights"),
        ({"optimizer": "adamw8bit"}, {}, "train.optimizer: 'adamw8bit' may need whole weights"),
        ({"optimizer": "torch.optim.Muon"}, {}, "train.optimizer: 'torch.optim.Muon' may need whole weights"),
        ({}, {"save": {"mem_eff_save": True}}, "save.mem_eff_save: saves weights from one process, and"),
    ],
)
def test_what_training_a_model_that_is_shared_out_rules_out(found, train, changes, mistake: str) -> None:
    assert found(2, train, network=FULL, **changes) == [], "with ddp"
    mistakes = found(2, SHARED_OUT | train, network=FULL, **changes)
    assert len(mistakes) == 1 and mistakes[0].startswith(mistake), mistakes


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_a_model_that_is_shared_out_may_be_trained(found, optimizer: str) -> None:
    assert found(2, SHARED_OUT | {"optimizer": optimizer}, network=FULL) == []


def test_a_model_that_is_shared_out_may_be_trained_in_bf16(found) -> None:
    assert found(2, SHARED_OUT | {"full_bf16": True, "dtype": "bf16"}, network=FULL) == []


def test_a_job_that_may_be_shared_out_passes(found) -> None:
    assert found(2, SHARED_OUT) == found(4, SHARED_OUT) == []


@pytest.mark.parametrize(
    ("processes", "accumulation", "size", "said"),
    [
        (1, 4, 1, []),
        (2, 4, 1, ["2 processes share the 4 x 1 images of each step: 2 x 1 each"]),
        (2, 1, 4, ["2 processes share the 1 x 4 images of each step: 1 x 2 each"]),
        (2, 1, 3, ["2 processes share the 1 x 3 images of each step: 1 x 1 or 2 each"]),
        (4, 2, 2, ["4 processes share the 2 x 2 images of each step: 1 x 1 each"]),
        (2, 3, 1, ["2 processes share the 3 x 1 images of each step: some compute 2 batches, the others 1, and wait."]),
        (
            2,
            1,
            1,
            [
                "2 processes share the 1 x 1 images of each step: 1 are idle. "
                "A gradient_accumulation of 2 gives each one batch."
            ],
        ),
    ],
)
def test_the_plan_says_how_a_step_is_shared(
    monkeypatch: pytest.MonkeyPatch, processes: int, accumulation: int, size: int, said: list[str]
) -> None:
    with several(monkeypatch, processes):
        assert list(data_parallel_notes(TrainConfig(gradient_accumulation=accumulation, batch_size=size))) == said
