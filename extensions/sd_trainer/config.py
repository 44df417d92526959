"""The section of `type: sd_trainer`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from extensions.sd_trainer.full_config import check_full, note_full
from extensions.sd_trainer.measuring_config import check_measuring, note_measuring
from extensions.sd_trainer.memory_config import check_memory, note_memory
from extensions.sd_trainer.parallel_config import check_parallel, note_parallel
from extensions.sd_trainer.rates import check_rates
from extensions.sd_trainer.sampling_config import check_samples, note_samples_and_saves
from toolkit.config.datasets_job import DatasetsJob, place_in
from toolkit.config.node import Node
from toolkit.config.process import Finding, JobContext
from toolkit.config.report import Report
from toolkit.config.train import TrainConfig
from toolkit.config.validation import LOSS, loss_at, noise_levels
from toolkit.errors import UserError
from toolkit.optim.choice import ArgumentError, check_choice, is_schedule_free
from toolkit.optim.schedules import KEYS, SCHEDULES, check_parameters, remarks


def _child(entries: dict[str, Node], section: str, key: str) -> Node | None:
    node = entries.get(section)
    return node.child(key) if node is not None and isinstance(node.value, dict) else None


MERGED = ("dora", "loha", "lokr")
"""Kinds of network beside whose files a plain LoRA can be written."""


def _tell_what_counts(entries: dict[str, Node], report: Report) -> None:
    """Source: ai-toolkit, `BaseSDTrainProcess.run`: every micro-batch counts, each n-th one ends an optimizer step."""
    key = _child(entries, "train", "gradient_accumulation_steps")
    if key is None or not isinstance(key.value, int) or key.value <= 1:
        return
    message = (
        f"steps, save_every and sample_every count optimizer steps of {key.value} micro-batches; with this key "
        "ai-toolkit counts micro-batches."
    )
    epochs = _child(entries, "train", "epochs") or _child(entries, "train", "max_train_epochs")
    given = _child(entries, "train", "steps") or _child(entries, "train", "max_train_steps")
    steps = TrainConfig.model_fields["steps"].default if given is None or given.is_blank else given.value
    if isinstance(steps, int) and steps and not (epochs and epochs.value):
        message += (
            f" steps: {steps} is {steps * key.value:,} micro-batches; there it would stop after {steps:,}, "
            f"which are {steps // key.value:,} optimizer steps."
        )
    report.warn(key, message)


class SdTrainerConfig(DatasetsJob):
    """`type: sd_trainer`: trains a LoRA for an image-editing model on folders of images."""

    process_types: ClassVar[tuple[str, ...]] = ("sd_trainer", "diffusion_trainer", "ui_trainer")

    @classmethod
    def reshape(cls, entries: dict[str, Node], report: Report) -> dict[str, Node]:
        """What `DatasetsJob` does; without `save.dtype` a model that is trained itself is saved in bf16.

        LoRAs are usual in float16; a whole model is usual in the type of the original. Tells what `steps` counts
        where accumulation is asked for by a name with which ai-toolkit counts otherwise.
        """
        entries = super().reshape(entries, report)
        _tell_what_counts(entries, report)
        kind, given = (_child(entries, *path) for path in (("network", "type"), ("save", "dtype")))
        if given is None and kind is not None and str(kind.value).strip().lower() in ("full", "fullrank"):
            place_in(entries, "save", "dtype", replace(kind, value="bfloat16"), report)
        return entries

    def run_folder(self, job: JobContext) -> Path:
        """The folder of the run's files."""
        return self.job_folder(job)

    def still_there(self, job: JobContext) -> bool:
        """The final file, or folder of a model; a run that is told where to begin decides for itself."""
        final = self.run_folder(job) / self.display_name(job)
        return self.resume == "auto" and (final.is_dir() or final.with_name(f"{final.name}.safetensors").is_file())

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The run's folder: a later process may start from its files."""
        return frozenset({self.run_folder(job).resolve()})

    def logged_numbers(self) -> Sequence[str]:
        """Of a step, and of the validation where there is one."""
        levels = noise_levels(self.validation.timesteps) if self.validation else ()
        limited = ("keys_scaled", "average_key_norm", "max_key_norm") if self.network.scale_weight_norms else ()
        scaled = ("loss_scale",) if self.train.dtype == "float16" else ()
        of_a_step = ("loss", "grad_norm", "lr", "t_mean", *scaled, *(f"max_norm/{name}" for name in limited))
        return (*of_a_step, *([LOSS] if levels else []), *map(loss_at, levels))

    def check(self, job: JobContext) -> Iterable[Finding]:
        """What `DatasetsJob` checks, optimizer, schedule and noise levels."""
        yield from super().check(job)
        yield from self._check_optimizer()
        yield from check_full(self, job)
        yield from check_rates(self)
        yield from check_memory(self)
        yield from self._check_noise_levels()
        yield from self._check_merged_lora()
        yield from self._check_loss_scaling()
        yield from check_samples(self)
        yield from check_measuring(self)
        yield from check_parallel(self)
        yield from (Finding(("logging", key), message) for key, message in self.logging.faults())

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

    def _check_loss_scaling(self) -> Iterable[Finding]:
        if self.train.dtype == "float16" and self.train.fused_backward_pass:
            message = "true does not go with 'dtype: float16', whose gradients count only when all are there. Use bf16."
            yield Finding(("train", "fused_backward_pass"), message)

    def _check_merged_lora(self) -> Iterable[Finding]:
        kind = self.network.type
        if "merged_lora" in self.save.also and kind not in MERGED:
            why = "the files are plain LoRAs already" if kind == "lora" else "no adapter is trained"
            message = f"'merged_lora' goes with {', '.join(MERGED)}. With 'type: {kind}' {why}. Leave it out."
            yield Finding(("save", "also"), message)

    def _check_noise_levels(self) -> Iterable[Finding]:
        train = self.train
        if train.noise_levels() == "shift" and train.discrete_flow_shift == 0:
            message = "0 would train without any noise. Give a value above 0; 1 shifts nothing."
            yield Finding(("train", "discrete_flow_shift"), message)
        if train.min_timestep >= train.max_timestep:
            message = f"{train.min_timestep:g} leaves nothing below max_timestep {train.max_timestep:g}."
            yield Finding(("train", "min_timestep"), message)
        if train.noise_levels().startswith("qinglong"):
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
        yield from (Finding(("logging", key), message) for key, message in self.logging.without_effect())
        uses = SCHEDULES[self.train.lr_scheduler].uses
        for field, key in KEYS.items():
            given = getattr(self.train, key) != type(self.train).model_fields[key].default
            if given and field not in ("warmup", *uses):
                yield Finding(("train", key), f"has no effect: {self.train.lr_scheduler} does not use it.")
        for param, message in remarks(self.train.lr_scheduler, self.train.lr_scheduler_params):
            yield Finding(("train", "lr_scheduler_params", param), message)
        if self.train.epochs and self.train.steps and "steps" in self.train.model_fields_set:
            message = f"has no effect: 'epochs: {self.train.epochs}' decides. Leave one of them out."
            yield Finding(("train", "steps"), message)
        yield from self._note_datasets()
        yield from note_measuring(self)
        yield from note_parallel(self)
        yield from note_samples_and_saves(self)
        yield from note_full(self)
        yield from note_memory(self)
        if self.network.linear_alpha == 0 and not self.network.trains_model:
            yield Finding(("network", "linear_alpha"), "0: the network has no effect.")
        if "merged_lora_rank" in self.save.model_fields_set and "merged_lora" not in self.save.also:
            yield Finding(("save", "merged_lora_rank"), "has no effect without 'also: [merged_lora]'.")
        for index, lora in enumerate(self.model.base_loras):
            if lora.multiplier == 0:
                yield Finding(("model", "base_loras", index, "multiplier"), "0: the file is left out.")
        given = self.model.model_fields_set
        of_blocks = ("qtype", "accuracy_recovery_adapter", "int8_matmul")
        for switch, kind in (*(("quantize", kind) for kind in of_blocks), ("quantize_te", "qtype_te")):
            if kind in given and not getattr(self.model, switch):
                yield Finding(("model", kind), f"has no effect without '{switch}: true'.")
        model = self.model
        if (
            model.quantize
            and model.int8_matmul is True
            and model.qtype != "int8"
            and not model.accuracy_recovery_adapter
        ):
            yield Finding(("model", "int8_matmul"), f"has no effect with 'qtype: {model.qtype}': it concerns int8.")
        if model.quantize and model.qtype == "int2" and not model.accuracy_recovery_adapter:
            message = "int2: weights are off by a third without an adapter that makes up for it ('int2|file')."
            yield Finding(("model", "qtype"), message)

    def _note_datasets(self) -> Iterable[Finding]:
        for index, dataset in enumerate(self.datasets):
            if dataset.loss_multiplier == 0:
                yield Finding(("datasets", index, "loss_multiplier"), "0: nothing is learned from these images.")
            if dataset.mask_path is None:
                alone = [key for key in ("mask_min_value", "invert_mask") if getattr(dataset, key)]
                for key in ("mask_optional", *([] if dataset.alpha_mask else alone)):
                    if getattr(dataset, key):
                        yield Finding(("datasets", index, key), "has no effect without a mask.")
        if self.train.reg_weight != 1 and not any(dataset.is_reg for dataset in self.datasets):
            yield Finding(("train", "reg_weight"), "has no effect: no dataset has 'is_reg: true'.")
        elif self.train.reg_weight == 0:
            yield Finding(("train", "reg_weight"), "0: nothing is learned from regularisation images.")

    def weights_dtype(self) -> str:
        """Number type of the model's weights in memory: float32 masters where they are trained, else `train.dtype`."""
        masters = self.network.trains_model and not self.train.full_bf16
        return "float32" if masters else self.train.dtype

    def plan(self, job: JobContext):
        """The run's plan: images, sizes, steps."""
        from extensions.sd_trainer.plan import plan_run

        return plan_run(self, job)
