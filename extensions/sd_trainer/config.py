"""The section of `type: sd_trainer`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from toolkit.config.datasets_job import DatasetsJob
from toolkit.config.process import Finding, JobContext
from toolkit.errors import UserError
from toolkit.optim.choice import ArgumentError, check_choice, is_schedule_free
from toolkit.optim.schedules import KEYS, SCHEDULES, check_parameters


class SdTrainerConfig(DatasetsJob):
    """`type: sd_trainer`: trains a LoRA for an image-editing model on folders of images."""

    process_types: ClassVar[tuple[str, ...]] = ("sd_trainer", "diffusion_trainer", "ui_trainer")

    def run_folder(self, job: JobContext) -> Path:
        """The folder of the run's files."""
        return self.job_folder(job)

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The run's folder: a later process may start from its files."""
        return frozenset({self.run_folder(job).resolve()})

    def check(self, job: JobContext) -> Iterable[Finding]:
        """What `DatasetsJob` checks, optimizer, schedule and noise levels."""
        yield from super().check(job)
        yield from self._check_optimizer()
        yield from self._check_noise_levels()

    def _check_optimizer(self) -> Iterable[Finding]:
        train = self.train
        try:
            check_choice(train.optimizer, train.optimizer_params)
        except ArgumentError as error:
            yield Finding(("train", "optimizer_params"), str(error))
        except UserError as error:
            yield Finding(("train", "optimizer"), str(error))
        try:
            check_parameters(train.lr_scheduler, train.lr_scheduler_params)
        except UserError as error:
            yield Finding(("train", "lr_scheduler_params"), str(error))
        if is_schedule_free(train.optimizer):
            yield from self._check_schedule_free()

    def _check_schedule_free(self) -> Iterable[Finding]:
        train, name = self.train, f"'optimizer: {self.train.optimizer}'"
        if train.lr_scheduler != "constant":
            message = f"{name} and 'lr_scheduler: {train.lr_scheduler}' exclude each other. Leave out lr_scheduler."
            yield Finding(("train", "lr_scheduler"), message)
        if train.lr_warmup_steps or train.lr_scheduler_params:
            message = f"{name} and a schedule exclude each other. Use 'optimizer_params: {{warmup_steps: 100}}'."
            yield Finding(("train", "lr_warmup_steps" if train.lr_warmup_steps else "lr_scheduler_params"), message)
        if train.ema_config.use_ema:
            message = f"{name} averages the weights already, without 'use_ema: true'. Leave one of them out."
            yield Finding(("train", "ema_config", "use_ema"), message)

    def _check_noise_levels(self) -> Iterable[Finding]:
        train = self.train
        if train.timestep_type == "shift" and train.discrete_flow_shift == 0:
            message = "0 would train without any noise. Give a value above 0; 1 shifts nothing."
            yield Finding(("train", "discrete_flow_shift"), message)
        if train.min_timestep >= train.max_timestep:
            message = f"{train.min_timestep:g} leaves nothing below max_timestep {train.max_timestep:g}."
            yield Finding(("train", "min_timestep"), message)
        if train.timestep_type.startswith("qinglong"):
            for key, plain in (("content_or_style", "balanced"), ("preserve_distribution_shape", False)):
                if getattr(train, key) != plain:
                    message = (
                        f"'timestep_type: {train.timestep_type}' is a mixture and cannot be bent or cut. Leave it out."
                    )
                    yield Finding(("train", key), message)

    def notes(self, job: JobContext) -> Iterable[Finding]:
        """Settings that are allowed and train nothing, or that do nothing."""
        if self.train.lr == 0:
            yield Finding(("train", "lr"), "0: nothing is learned.")
        elif self.train.optimizer == "prodigy" and self.train.lr < 0.1:
            message = f"prodigy finds the rate itself, and lr {self.train.lr:g} slows it. Usual is 'lr: 1'."
            yield Finding(("train", "optimizer"), message)
        yield from (Finding(("train", key), message) for key, message in self.train.without_effect())
        uses = SCHEDULES[self.train.lr_scheduler].uses
        for field, key in KEYS.items():
            given = getattr(self.train, key) != type(self.train).model_fields[key].default
            if given and field not in ("warmup", *uses):
                yield Finding(("train", key), f"has no effect: {self.train.lr_scheduler} does not use it.")
        if self.network.linear_alpha == 0:
            yield Finding(("network", "linear_alpha"), "0: the network has no effect.")
        given = self.model.model_fields_set
        for switch, kind in (("quantize", "qtype"), ("quantize_te", "qtype_te")):
            if kind in given and not getattr(self.model, switch):
                yield Finding(("model", kind), f"has no effect without '{switch}: true'.")

    def plan(self, job: JobContext):
        """The run's plan: images, sizes, steps."""
        from extensions.sd_trainer.plan import plan_run

        return plan_run(self, job)
