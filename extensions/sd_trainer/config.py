"""The section of `type: sd_trainer`.

`SdTrainerConfig` adds to the sections of `toolkit.config.sections` what this trainer
alone needs: the names of its metrics, the checks of several subsections together
(`rules`), and the plan. It does not read files or open a model. The reader of jobs
(`toolkit.config.reading`) makes it; `process` and the planner use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from extensions.sd_trainer.rules import findings
from toolkit.config.reading.findings import Findings, error
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.config.reading.normalise import place_in
from toolkit.config.reading.process import JobContext
from toolkit.config.sections.dataset import LOSS, loss_at, noise_levels
from toolkit.config.sections.train import (
    TrainConfig,
)
from toolkit.config.sections.trainer import DiffusionSection, TrainerConfig

if TYPE_CHECKING:
    from toolkit.plan.run_plan import RunPlan


def _child(entries: dict[str, ConfigNode], section: str, key: str) -> ConfigNode | None:
    node = entries.get(section)
    if node is not None and isinstance(node.value, dict):
        return node.child(key)
    return None


RESERVED_NAMES = ("state", "samples", "control", "superseded")
"""Other folders in the folder of a run, next to the model's own folder `<name>/`."""


def _warn_about_step_count(
    entries: dict[str, ConfigNode], diagnostics: Diagnostics
) -> None:
    """Source: ai-toolkit, `BaseSDTrainProcess.run`: every micro-batch counts, each n-th
    one ends an optimizer step."""
    key = _child(entries, "train", "gradient_accumulation")
    if (
        key is None
        or key.path[-1] != "gradient_accumulation_steps"
        or key.path[0] != "config"  # of another trainer's file, which counts as here
        or not isinstance(key.value, int)
        or key.value <= 1
    ):
        return
    message = (
        f"steps, save_every and sample_every count optimizer steps of {key.value} micro-batches; with this key "
        "ai-toolkit counts micro-batches."
    )
    epochs = _child(entries, "train", "epochs")
    given = _child(entries, "train", "steps")
    steps = (
        TrainConfig.model_fields["steps"].default
        if given is None or given.is_blank
        else given.value
    )
    if isinstance(steps, int) and steps and not (epochs and epochs.value):
        message += (
            f" steps: {steps} is {steps * key.value:,} micro-batches; there it would stop after {steps:,}, "
            f"which are {steps // key.value:,} optimizer steps."
        )
    diagnostics.warn(key, message)


class SdTrainerConfig(DiffusionSection, TrainerConfig):
    """`type: sd_trainer`: trains a LoRA for an image-editing model on folders of
    images.

    Example:
        type: sd_trainer
        datasets: [{folder_path: datasets/maya}]
        train: {steps: 2000, lr: 0.0001}
    """

    process_types: ClassVar[tuple[str, ...]] = (
        "sd_trainer",
        "diffusion_trainer",
        "ui_trainer",
    )

    reads_streams: ClassVar = True

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """Without `save.dtype` a model that is trained itself is saved in bf16.

        LoRAs are usually float16; a full model usually has the dtype of the original.
        Warns about what `steps` counts where accumulation is given by a key with which
        ai-toolkit counts differently.
        """
        _warn_about_step_count(entries, diagnostics)
        kind = _child(entries, "network", "type")
        given = _child(entries, "save", "dtype")
        if (
            given is None
            and kind is not None
            and str(kind.value).strip().lower() in ("full", "fullrank")
        ):
            place_in(
                entries, "save", "dtype", replace(kind, value="bfloat16"), diagnostics
            )
        return entries

    def logged_numbers(self) -> Sequence[str]:
        """Metrics of a step, and of the validation where there is one."""
        levels = noise_levels(self.validation.timesteps) if self.validation else ()
        limited: tuple[str, ...] = ()
        if self.network.scale_weight_norms:
            limited = ("keys_scaled", "average_key_norm", "max_key_norm")
        scaled = ("loss_scale",) if self.train.dtype == "float16" else ()
        extra = (f"loss/{name}" for name in self.train.preservations())
        of_a_step = (
            "loss",
            "grad_norm",
            "lr",
            "t_mean",
            *extra,
            *scaled,
            *(f"max_norm/{name}" for name in limited),
        )
        return (
            *of_a_step,
            *([LOSS] if levels else []),
            *map(loss_at, levels),
        )

    def check(self, job: JobContext) -> Findings:
        """Combinations of keys of several subsections."""
        yield from super().check(job)
        yield from findings(self)
        if self.network.trains_model:
            name = self.display_name(job)
            if name in RESERVED_NAMES:
                yield error(
                    "name" if self.name else "network.type",
                    f"{name!r} is a folder of every run; the model's folder has the same name. Choose another.",
                )

    def inputs_digest(self, job: JobContext) -> str:
        """Digest of the images, as a resume compares them; empty where they cannot be
        read, which the run reports."""
        from toolkit.plan.diffusion import dataset_digest

        return dataset_digest(self)

    def plan(self, job: JobContext) -> RunPlan:
        """The run's plan: images, sizes, steps."""
        from toolkit.plan.diffusion import SdPlanner

        return SdPlanner(self, job).dry_run()
