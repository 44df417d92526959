"""The section of `type: sd_trainer`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from toolkit.config.datasets_job import DatasetsJob
from toolkit.config.process import Finding, JobContext
from toolkit.errors import did_you_mean
from toolkit.optim.schedules import PARAMETERS


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
        """What `DatasetsJob` checks, and the parameters of the schedule."""
        yield from super().check(job)
        for parameter in self.train.lr_scheduler_params:
            if parameter not in PARAMETERS:
                message = f"{self.train.lr_scheduler} has no {parameter!r}. {did_you_mean(parameter, PARAMETERS)}"
                yield Finding(("train", "lr_scheduler_params"), message)

    def notes(self, job: JobContext) -> Iterable[Finding]:
        """Settings that are allowed and train nothing, or that do nothing."""
        if self.train.lr == 0:
            yield Finding(("train", "lr"), "0: nothing is learned.")
        if self.network.linear_alpha == 0:
            yield Finding(("network", "linear_alpha"), "0: the LoRA has no effect.")
        given = self.model.model_fields_set
        for switch, kind in (("quantize", "qtype"), ("quantize_te", "qtype_te")):
            if kind in given and not getattr(self.model, switch):
                yield Finding(("model", kind), f"has no effect without '{switch}: true'.")

    def plan(self, job: JobContext):
        """The run's plan: images, sizes, steps."""
        from extensions.sd_trainer.plan import plan_run

        return plan_run(self, job)
