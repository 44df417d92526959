"""A training config of diffusion-pipe (TOML), with the dataset file it names -> a job.

Source: diffusion-pipe, commit 8f83dbf (train.py, utils/dataset.py, utils/saver.py, models/qwen_image.py).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extensions.compat.foreign_jobs import ForeignJobs
from extensions.compat.names import NAMES
from extensions.compat.nodes import at, made
from extensions.compat.table_reader import Level, TableReader
from toolkit.config.field_types import PER_PARAMETER_OPTIMIZERS
from toolkit.config.located import ConfigNode, Diagnostics, show
from toolkit.errors import did_you_mean

TABLES = ("model", "adapter", "optimizer", "monitoring")
"""Sections, whose keys the table of names has as `model.dtype`."""

PLAIN, EDIT = "Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit"
"""Where all but the weights in single files comes from."""

DTYPES = {"float8": "float8", "float8_e4m3fn": "float8"}
OPTIMIZERS = {"adamw_optimi": "adamw", "adamw8bitkahan": "adamw8bit", "stableadamw": "adamw"}
"""Their names that ours do not have, in lower case -> ours."""

OPTIMI = {"betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.0}
"""What optimi's AdamW has that ours has not."""

OF_OPTIMIZER = ("betas", "eps", "weight_decay", "momentum")
METHODS = {"logit_normal": "sigmoid", "uniform": "uniform"}
SCHEDULES: dict[str, dict[str, float]] = {"constant": {}, "linear": {}, "cosine": {"eta_min": 1e-6}}
"""`lr_scheduler` -> parameters of ours."""

OF_DATASETS = frozenset(
    [
        "path", "num_repeats", "mask_path", "control_path", "caption_prefix", "shuffle_tags", "cache_shuffle_num",
        "cache_shuffle_delimiter", "resolutions", "enable_ar_bucket", "ar_buckets", "min_ar", "max_ar",
        "num_ar_buckets", "size_buckets", "skip_empty_caption", "default_mask_file", "subsample_ratio", "directory",
    ]
)  # fmt: skip
SILENT_OF_DATASETS = re.compile("frame_buckets|shuffle_metadata|online_captions|name")


class _Reader(TableReader):
    program = "diffusion-pipe"
    rows = NAMES["diffusion-pipe", ""]
    by_hand = frozenset(
        [
            "output_dir", "dataset", "eval_datasets", "micro_batch_size_per_gpu", "image_micro_batch_size_per_gpu",
            "force_constant_lr", "lr_scheduler", "save_every_n_steps", "save_every_n_epochs", "save_every_n_examples",
            "save_dtype", "activation_checkpointing", "uncond_fraction", "model.type", "model.diffusers_path",
            "model.transformer_dtype", "model.timestep_sample_method", "model.shift", "model.flux_shift",
            "adapter.type", "adapter.rank", "adapter.decompose_factor", "adapter.exclude_modules", "adapter.dtype",
            "adapter.init_from_existing", "optimizer.type", "optimizer.gradient_release", "monitoring.enable_wandb",
            "eval_every_n_steps", "eval_every_n_epochs",
            *(f"optimizer.{key}" for key in OF_OPTIMIZER),
        ]
    )  # fmt: skip
    silent = re.compile(
        "pipeline_stages|reentrant_activation_checkpointing|partition_\\w+|caching_batch_size|map_num_proc|compile_\\w+"
        "|steps_per_print|video_clip_mode|x_axis_examples|logging_steps|disable_block_swap_for_eval|eval_\\w+"
        "|image_eval_\\w+|regenerate_cache|model\\.guidance|adapter\\.dtype|optimizer\\.(stabilize|fused)"
    )

    def __init__(
        self, root: ConfigNode, folder: Path, name: str | None, diagnostics: Diagnostics, moved: Mapping[str, str]
    ) -> None:
        super().__init__(root, folder, name, diagnostics, moved)
        for table in TABLES:
            inside = self.level(self.given.pop(table, None))
            self.given |= {f"{table}.{key}": node for key, node in inside.items()}

    def output(self) -> ConfigNode:
        return self.given.get("output_dir") or self.missing("output_dir", "the folder of the runs")

    def read(self) -> None:
        self.put_all()
        self._noise()
        self._adapter()
        self._training()
        self._saves()
        datasets = self._datasets(self.given.get("dataset") or self.missing("dataset", "the dataset file"))
        self.process["datasets"] = datasets
        self._model(any("control_path" in dataset for dataset in datasets))
        self._validation()
        self.set("train.disable_sampling", made(self.root, True))

    def _model(self, edits: bool) -> None:
        kind, folder = self.given.get("model.type"), self.given.get("model.diffusers_path")
        if kind is not None and kind.value != "qwen_image":
            self.diagnostics.error(kind, f"{show(kind)} cannot be trained here: it is of another family.")
        files = "model.transformer_path" in self.given
        if folder is None and not files:
            folder = self.missing("diffusers_path", "the model's folder, or transformer_path", self.root.value["model"])
        place = self.given.get("model.transformer_path")
        self.set("model.name_or_path", folder or at(place, EDIT if edits else PLAIN) if place else folder)
        if edits:
            self.set("model.model_kwargs.match_target_res", made(self.root, True))
            if files and place is not None:  # whatever the folder is, these weights are used with references
                self.set("model.arch", at(place, "edit"))
        kept = self.given.get("model.transformer_dtype")
        if kept is not None and kept.value != self._text("model.dtype"):
            self.set("model.quantize", at(kept, True))
            self.set("model.qtype", at(kept, self.choice(kept, DTYPES) or "float8"))

    def _noise(self) -> None:
        method, shift = (self.given.get(f"model.{key}") for key in ("timestep_sample_method", "shift"))
        method = method or self.default("timestep_sample_method", "logit_normal")
        ours = self.choice(method, METHODS) or "sigmoid"
        moved = shift or self.given.get("model.flux_shift")
        if moved is not None and moved.value and ours == "uniform":
            self.diagnostics.error(moved, f"{show(moved)} is not supported with uniform noise levels. Leave one out.")
        elif shift is not None and shift.value:
            self.set("train.discrete_flow_shift", shift)
            ours = "shift"
        elif moved is not None and moved.value:
            ours = "flux_shift"
        self.set("train.timestep_type", at(method, ours))

    def _adapter(self) -> None:
        if not any(key.startswith("adapter.") for key in self.given):
            self.set("network.type", made(self.root, "full"))
            self.set("save.layout", self.default("model.safetensors", "single_file"))
            return
        kind = self.given.get("adapter.type") or self.missing("type", "lora or lokr", self.root.value["adapter"])
        self.set("network.type", at(kind, self.choice(kind, {"lora": "lora", "lokr": "lokr"}) or "lora"))
        rank = self.given.get("adapter.rank") or self.missing("rank", "a whole number", self.root.value["adapter"])
        value = int(rank.value) if isinstance(rank.value, float) and rank.value.is_integer() else rank.value
        if kind.value == "lokr" and isinstance(value, int) and value > 9999:  # "very high": whole factors
            self.set("network.lokr_full_rank", at(rank, True))
        elif value != "missing":
            self.set("network.linear", at(rank, value))
        self.set("network.factor", self.given.get("adapter.decompose_factor"))
        left_out = self.given.get("adapter.exclude_modules")
        if left_out is not None:
            is_list = isinstance(left_out.value, list)  # of ends of names; else an expression for whole ones
            self.set("network.network_kwargs.ignore_if_contains" if is_list else "network.exclude_patterns", left_out)
        start = self.given.get("adapter.init_from_existing")
        if start is not None:
            path = os.path.expanduser(self.text(start))
            file = path if path.endswith(".safetensors") else os.path.join(path, "adapter_model.safetensors")
            self.set("network.pretrained_lora_path", at(start, file))

    def _training(self) -> None:
        batch = self.given.get("image_micro_batch_size_per_gpu") or self.given.get("micro_batch_size_per_gpu")
        if batch is not None and isinstance(batch.value, list):
            self.diagnostics.error(batch, "is one for all sizes here: write one number.")
        else:
            self.set("train.batch_size", batch)
        optimizer = self.given.get("optimizer.type")
        if optimizer is None:
            optimizer = self.missing("optimizer.type", "the optimizer", self.root)
        name = self.text(optimizer).lower()
        if name == "automagic":
            message = "is not here. Write type = 'AdamW8bitKahan' with lr = 1e-4, or 'Prodigy' with lr = 1."
            self.diagnostics.error(optimizer, f"{show(optimizer)} {message}")
        elif name != "missing":
            ours = OPTIMIZERS.get(name, name)
            self.set("train.optimizer", at(optimizer, ours))
            is_full = self.process["network"]["type"].value == "full"
            if is_full and self._text("model.dtype") == "bfloat16" and ours in PER_PARAMETER_OPTIMIZERS:
                self.set("train.full_bf16", at(self.given["model.dtype"], True))
        rate = self.given.get("force_constant_lr") or self.given.get("optimizer.lr")
        self.set("train.lr", rate or (None if name == "automagic" else self.theirs("lr", 1e-3)))
        given = {key: self.given[f"optimizer.{key}"] for key in OF_OPTIMIZER if f"optimizer.{key}" in self.given}
        if parameters := (OPTIMI if name in ("adamw_optimi", "stableadamw") else {}) | given:
            self.set("train.optimizer_params", parameters)
        fused = self.given.get("optimizer.gradient_release")
        if fused is not None and fused.value is True:
            self.set("train.fused_backward_pass", fused)
            self.set("train.max_grad_norm", at(fused, 0))  # nothing is clipped then
        schedule = self.given.get("lr_scheduler")
        known = schedule is not None and "force_constant_lr" not in self.given
        if schedule is not None and known and (extra := self.choice(schedule, SCHEDULES)) is not None:
            self.set("train.lr_scheduler", schedule)
            for key, value in extra.items():
                self.set(f"train.lr_scheduler_params.{key}", at(schedule, value))
        checkpointing = self.given.get("activation_checkpointing") or self.theirs("activation_checkpointing", False)
        kept = self.choice(checkpointing, {True: True, False: False, "unsloth": "full_offload"})
        self.set("train.gradient_checkpointing", at(checkpointing, kept))
        wandb = self.given.get("monitoring.enable_wandb")
        if wandb is not None and wandb.value is True:
            self.set("logging.log_with", at(wandb, "wandb"))

    def _saves(self) -> None:
        steps, epochs, examples = (self.given.get(f"save_every_n_{what}") for what in ("steps", "epochs", "examples"))
        if examples is not None and isinstance(examples.value, int):
            sizes = (self.given.get(key) for key in ("micro_batch_size_per_gpu", "gradient_accumulation_steps"))
            per_step = math.prod(node.value for node in sizes if node is not None and type(node.value) is int) or 1
            steps = at(examples, examples.value // per_step)
        if steps is None and epochs is None:
            self.missing("save_every_n_epochs", "when files are written")
        elif steps is not None and epochs is not None:
            self.diagnostics.error(epochs, "'save_every_n_steps' is given as well. Give one of them.", at_key=True)
        self.set("save.save_every", steps if steps is not None else self.default("save_every_n_steps", 0))
        self.set("save.save_every_n_epochs", epochs)
        self.set("save.max_step_saves_to_keep", self.default("all files stay", 0))
        dtype = self.given.get("save_dtype") or self.given.get("adapter.dtype") or self.given.get("model.dtype")
        self.set("save.dtype", dtype)

    def _validation(self) -> None:
        listed = self.tables(self.given.get("eval_datasets"))
        for other in listed[1:]:
            self.diagnostics.warn(other, "has no effect: one set of images is measured, the first.")
        config = listed[0].value.get("config") if listed else None
        if not listed or config is None:
            return
        dataset = self._datasets(config)[0]
        keep = ("folder_path", "control_path", "resolution")
        every = {"every": "eval_every_n_steps", "every_n_epochs": "eval_every_n_epochs"}
        timing = {ours: self.given.get(key) for ours, key in every.items()}
        self.process["validation"] = {key: dataset[key] for key in keep if key in dataset} | timing

    # ------------------------------------------------------------ the dataset file

    def _datasets(self, node: ConfigNode) -> list[dict[str, Any]]:
        root = self.file(node) if self.text(node) != "missing" else None
        if root is None:
            return [{"folder_path": made(self.root, ".")}]
        general = self._given(root)
        items = self.tables(general.pop("directory", None))
        if not items:
            self.diagnostics.error(root, "is required: at least one [[directory]].", path=("directory",))
        self._known(general)
        return [self._dataset(general, item) for item in items] or [{"folder_path": made(self.root, ".")}]

    def _known(self, given: Level) -> None:
        for key, node in given.items():
            if key not in OF_DATASETS and not SILENT_OF_DATASETS.fullmatch(key):
                hint = did_you_mean(key, sorted(OF_DATASETS), list_all=False) or "Leave this key out."
                self.diagnostics.error(node, f"unknown key of {self.program}'s datasets. {hint}", at_key=True)

    def _dataset(self, general: Level, item: ConfigNode) -> dict[str, Any]:
        own = self._given(item)
        self._known(own)
        given = general | own
        folder = own.get("path") or self.missing("path", "the folder of the images", item)
        dataset: dict[str, Any] = {"folder_path": folder if folder.value != "missing" else made(item, ".")}
        repeats = given.get("num_repeats") or self.default("num_repeats", 1)
        if isinstance(repeats.value, float) and not repeats.value.is_integer():
            message = f"{show(repeats)} is not a whole number. Multiply that of all folders, and lower 'epochs'."
            self.diagnostics.error(repeats, message)
        else:
            dataset["num_repeats"] = at(repeats, int(repeats.value)) if type(repeats.value) is float else repeats
        dataset["control_path"] = given.get("control_path")
        if (mask := given.get("mask_path")) is not None:
            dataset |= {"mask_path": mask, "mask_optional": at(mask, True)}
        if (prefix := given.get("caption_prefix")) is not None and prefix.value:
            self.diagnostics.warn(prefix, "here '. ' stands between the prefix and the caption.")
            dataset["caption_prefix"] = at(prefix, self.text(prefix).rstrip(" ,."))
        for key in ("default_mask_file", "subsample_ratio"):
            if key in given:
                self.diagnostics.error(given[key], f"{show(given[key])} is not supported. Leave this key out.")
        shuffle = [node for key in ("shuffle_tags", "cache_shuffle_num") if (node := given.get(key)) and node.value]
        if shuffle:
            between = given.get("cache_shuffle_delimiter")
            if between is not None and self.text(between).strip() != ",":
                self.diagnostics.error(between, f"{show(between)} is not supported: parts are separated by commas.")
            dataset["shuffle_tokens"] = at(shuffle[0], True)
        if (skips := given.get("skip_empty_caption")) is not None and skips.value is False:
            dataset["default_caption"] = at(skips, "")
        dataset["caption_dropout_rate"] = self.given.get("uncond_fraction")
        table = Path(os.path.expanduser(self.text(folder))) / "captions.json"
        if table.is_file():
            dataset["captions_file"] = at(folder, str(table))
        dataset["resolution"] = self._sizes(given, item)
        return {key: value for key, value in dataset.items() if value is not None}

    def _sizes(self, given: Level, item: ConfigNode) -> Any:
        """Areas; without buckets, or with one shape, rectangles."""
        if (fixed := given.get("size_buckets")) is not None:
            sizes = fixed.data() if isinstance(fixed.value, list) else []
            if len(sizes) != 1 or not isinstance(sizes[0], list) or not _are_sides(sizes[0][:2], 2):
                remedy = "Give one [width, height, 1], or 'resolutions'."
                self.diagnostics.error(fixed, f"several shapes are not chosen from here. {remedy}")
                return None
            return at(fixed, {"width": at(fixed, sizes[0][0]), "height": at(fixed, sizes[0][1])})
        node = given.get("resolutions")
        if node is None:
            self.missing("resolutions", "sides of squares, or [width, height]", item)
            return None
        entries = node.data() if isinstance(node.value, list) else [node.data()]
        pairs = [entry if isinstance(entry, list) else [entry, entry] for entry in entries]
        if not pairs or not all(_are_sides(pair, 2) for pair in pairs):
            self.diagnostics.error(node, f"{show(node)} are not sizes. Write numbers of pixels, or [width, height].")
            return None
        sides = [math.sqrt(width * height) for width, height in pairs]
        shape = 1.0
        bucket = given.get("enable_ar_bucket")
        if bucket is not None and bucket.value is True:
            shapes = given.get("ar_buckets")
            listed = shapes.data() if shapes is not None and isinstance(shapes.value, list) else []
            if len(listed) != 1:
                if shapes is not None:
                    self.diagnostics.warn(shapes, "has no effect: each image is brought to the shape nearest its own.")
                return [at(node, round(side)) for side in sides]
            only = listed[0] if isinstance(listed[0], list) else [listed[0], 1]
            if not _are_sides(only, 2):
                self.diagnostics.error(given["ar_buckets"], f"{listed[0]} is not a shape.")
                return None
            shape = only[0] / only[1]
        root = math.sqrt(shape)
        return [at(node, {"width": at(node, round(s * root)), "height": at(node, round(s / root))}) for s in sides]

    def _text(self, key: str) -> str:
        return self.text(self.given[key]) if key in self.given else ""


def _are_sides(sides: Any, count: int) -> bool:
    return (
        isinstance(sides, list)
        and len(sides) == count
        and all(type(side) in (int, float) and 0 < side < 1e6 for side in sides)
    )


def _reads(root: ConfigNode) -> bool:
    model = root.value.get("model")
    marks = {"dataset", "output_dir", "micro_batch_size_per_gpu", "pipeline_stages"} & root.value.keys()
    return bool(marks) and model is not None and isinstance(model.value, dict) and "type" in model.value


JOBS = ForeignJobs(_reads, _Reader)
