"""A training command of DiffSynth-Studio (examples/qwen_image/model_training/train.py), or the `training_args.json`
that it writes beside its files -> a job.

Source: DiffSynth-Studio, commit fed7b18f (diffsynth/diffusion/parsers.py, runner.py, training_module.py, logger.py,
flow_match.py, diffsynth/core/data, examples/qwen_image/model_training).
"""

from __future__ import annotations

import json
import math
import os
import re
from contextlib import suppress
from dataclasses import replace
from typing import Any

from extensions.compat.foreign_jobs import SCRIPT, Command, ForeignJobs
from extensions.compat.musubi import PARTS, model_of
from extensions.compat.names import NAMES
from extensions.compat.nodes import at
from extensions.compat.table_reader import TableReader, layer_patterns
from toolkit.config.located import ConfigNode, Diagnostics, show

ANY = "train.py"
SCRIPT_PATH = f"qwen_image/model_training/{ANY}"
"""How the script is told from those of other models."""

BY_HAND = frozenset(
    [
        SCRIPT, "dataset_base_path", "dataset_metadata_path", "dataset_repeat", "dataset_num_workers", "height",
        "width", "max_pixels", "model_paths", "model_id_with_origin_paths", "extra_inputs", "fp8_models",
        "quant_options",
        "trainable_models", "weight_decay", "task", "customized_optimizer", "output_path", "save_steps",
        "lora_base_model", "lora_target_modules", "preset_lora_path", "preset_lora_model", "use_gradient_checkpointing",
        "use_gradient_checkpointing_offload", "enable_tensorboard_log", "enable_wandb_log", "wandb_project",
    ]
)  # fmt: skip
SILENT = (
    "data_file_keys", "find_unused_parameters", "remove_prefix_in_ckpt", "initialize_model_on_cpu", "swanlab_project",
    "offload_models", "enable_optimizer_cpu_offload", "cpu_offload_split_threshold",
)  # fmt: skip
"""Flags of how their program works, not of what is trained."""

LAYERS = "q,k,v,o,ffn.0,ffn.2"
"""What `lora_target_modules` is where it is left out: layers of other models."""

WORDS = {"text_encoder": r"text_?encoder|qwen_2\.5_vl", "vae": r"\bvae", "dit": r"transformer|\bdit\b|diffusion"}
"""Part of the model -> what the name of its file, or of the folder it lies in, holds; the first that fits counts."""

ENCODES = ":data_process"


class _Reader(TableReader):
    program = "DiffSynth-Studio"
    rows = NAMES["diffsynth", ""]
    by_hand = BY_HAND
    silent = re.compile("|".join(SILENT))

    def output(self) -> ConfigNode:
        return self.given.get("output_path") or self.theirs("output_path", "./models")

    def read(self) -> None:
        self.put_all()
        self._task()
        self._model()
        self._network()
        self._training()
        self.process["datasets"] = [self._dataset()]

    def _task(self) -> None:
        task = self.given.get("task")
        if task is not None and str(task.value).endswith(ENCODES):
            self.diagnostics.error(task, f"{show(task)} only encodes. Give the command of the training, or both.")
        elif task is not None and task.value == "sft:train":
            remedy = "Put the command that encoded it above this one, or write --task sft and its dataset."
            self.diagnostics.error(task, f"{show(task)} is not read alone: its dataset is in another form. {remedy}")
        else:
            self.choice(task, {"sft": "sft"})

    # ------------------------------------------------------------ model

    def _model(self) -> None:
        paths = {part: node for node in self._files() if (part := self._part(node))}
        ids = self._ids()
        if "dit" in paths:
            version = "edit-2511" if "zero_cond_t" in self.given else "edit-2509" if self._edits() else "original"
            named = model_of({key: self.text(node) for key, node in paths.items()}, version)
            self.set("model.name_or_path", at(paths["dit"], named.model))
            for key in named.alone:
                self.set(f"model.{PARTS[key]}", paths[key])
        elif "dit" in ids:
            self.set("model.name_or_path", ids["dit"])
        else:
            node = self.missing("model_id_with_origin_paths", "an entry ID:transformer/... that names the model")
            self.set("model.name_or_path", node)
        self._number_types()
        if (merged := self.given.get("preset_lora_path")) is not None:
            self.set("model.base_loras", [{"path": merged}])
            self._is_dit("preset_lora_model")

    def _files(self) -> list[ConfigNode]:
        """The paths of `model_paths`: of several files of a part the first."""
        node = self.given.get("model_paths")
        if node is None:
            return []
        listed = node.data()
        if isinstance(listed, str):
            with suppress(ValueError):
                listed = json.loads(listed)
        listed = listed if isinstance(listed, list) else []
        paths = [item[0] if item and isinstance(item, list) else item for item in listed]
        if not paths or not all(isinstance(item, str) for item in paths):
            self.diagnostics.error(node, f'{show(node)} is no list of paths, such as ["dit.safetensors"].')
            return []
        return [at(node, item) for item in paths]

    def _part(self, node: ConfigNode) -> str:
        found = part_of(self.text(node))
        if not found:
            remedy = "Name it after its part, 'transformer' or 'vae', or write model.transformer_path in a job of ours."
            self.diagnostics.error(node, f"{show(node)}: its name does not tell which part it is. {remedy}")
        return found

    def _entries(self, key: str, between: str) -> list[ConfigNode]:
        """The parts of a value."""
        node = self.given.get(key)
        words = self.text(node).split(between) if node is not None else []
        return [at(node, word.strip()) for word in words if node is not None and word.strip()]

    def _ids(self) -> dict[str, ConfigNode]:
        """Part -> hub id or folder."""
        ids: dict[str, ConfigNode] = {}
        for entry in self._entries("model_id_with_origin_paths", ","):
            name, colon, pattern = entry.value.rpartition(":")
            if not colon:
                self.diagnostics.error(entry, f"{entry.value!r} is not of the form ID:FILES.")
            elif part := part_of(pattern):
                ids[part] = at(entry, name)
        return ids

    def _number_types(self) -> None:
        """Of the parts that are quantized."""
        small = [(entry, entry.value, "float8") for entry in self._entries("fp8_models", ",")]
        for entry in self._entries("quant_options", ";"):
            name, _, how = entry.value.rpartition(":")
            if not name:
                self.diagnostics.error(entry, f"{show(entry)} is not of the form ID:FILES:METHOD.")
            elif self.choice(at(entry, how.partition("/")[0]), {"bitsandbytes_nf4": "int4"}):
                self.diagnostics.warn(entry, "weights in nf4 are int4 here: 4 bits with a scale per 128 inputs.")
                small.append((entry, name, "int4"))
        for entry, name, qtype in small:
            end = {"dit": "", "text_encoder": "_te"}.get(part_of(name))
            if end is not None:
                self.set(f"model.quantize{end}", at(entry, True))
                self.set(f"model.qtype{end}", at(entry, qtype))

    def _edits(self) -> bool:
        names = self._entries("extra_inputs", ",")
        for name in names:
            if name.value != "edit_image":
                self.diagnostics.error(name, f"{show(name)} is not supported: edit_image is all a model gets here.")
        return "edit_image" in [name.value for name in names]

    def _is_dit(self, key: str) -> None:
        if (node := self.given.get(key)) is not None:
            self.choice(node, {"dit": "dit"})

    # ------------------------------------------------------------ training

    def _network(self) -> None:
        self._is_dit("lora_base_model")
        self._is_dit("trainable_models")
        if "trainable_models" in self.given and "lora_base_model" not in self.given:
            self.process["network"] = {"type": at(self.given["trainable_models"], "full")}
            self.set("save.layout", self.default("epoch-0.safetensors", "single_file"))
            self.defaults.pop("lora_rank", None)
            return
        if "lora_base_model" not in self.given:
            self.missing("lora_base_model", "dit; or give --trainable_models dit, which trains the model itself")
        elif "trainable_models" in self.given:
            self.diagnostics.error(self.given["trainable_models"], "goes without lora_base_model. Remove one of them.")
        layers = self.given.get("lora_target_modules") or self.theirs("lora_target_modules", LAYERS)
        named = [name.strip() for name in self.text(layers).split(",") if name.strip()]
        if len(named) == 1 and named != ["all-linear"]:  # a pattern there
            self.set("network.include_patterns", [layers])
        elif "lora_target_modules" in self.root.value and not self.given.get("lora_target_modules"):
            self.defaults.pop("lora_target_modules")  # empty: all of the blocks
        elif named != ["all-linear"]:
            self.set("network.include_patterns", [at(layers, each) for each in layer_patterns(named)])

    def _training(self) -> None:
        kind = self.given.get("customized_optimizer")
        self.set("train.optimizer", kind or self.default("customized_optimizer", "adamw"))
        decay = self.given.get("weight_decay") or self.default("weight_decay", 0.01)
        self.set("train.optimizer_params", {"weight_decay": decay})
        self.set("train.lr_scheduler", self.default("scheduler", "ConstantLR"))
        self.set("train.max_grad_norm", self.default("max_grad_norm", 0))
        self.set("train.timestep_type", self.theirs("noise levels", "shift"))
        self.set("train.weighting_scheme", self.theirs("loss weights", "bell"))
        self.set("train.dtype", self.default("torch_dtype", "bfloat16"))
        self.set("save.dtype", self.default("torch_dtype", "bfloat16"))
        self.set("save.max_step_saves_to_keep", self.default("keep", 0))
        self.set("train.disable_sampling", self.default("samples", True))
        offloads, checks = (self.given.get(f"use_gradient_checkpointing{end}") for end in ("_offload", ""))
        wanted = at(offloads, "full_offload") if offloads is not None and offloads.value is True else checks
        self.set("train.gradient_checkpointing", wanted or self.default("use_gradient_checkpointing", False))
        self._saves()
        for key, name in (("enable_tensorboard_log", "tensorboard"), ("enable_wandb_log", "wandb")):
            if (node := self.given.get(key)) is not None and node.value is True:
                self.set("logging.log_with", at(node, "all" if "logging" in self.process else name))
                if name == "tensorboard":
                    self.set("logging.logging_dir", at(node, os.path.join(self.text(self.output()), "tensorboard_log")))
                else:
                    project = self.given.get("wandb_project") or self.default("wandb_project", "DiffSynth-Studio")
                    self.set("logging.wandb_project", project)

    def _saves(self) -> None:
        """`save_steps` counts images there, steps of the optimizer here."""
        node, each = self.given.get("save_steps"), self.given.get("gradient_accumulation_steps")
        count = each.value if each is not None and type(each.value) is int and each.value > 0 else 1
        if node is None:
            self.set("save.save_every", self.default("save_steps", 0))
            self.set("save.save_every_n_epochs", self.theirs("save_every_n_epochs", 1))
        elif type(node.value) is int and count > 1:
            self.diagnostics.warn(
                node, f"counts images there: every {max(1, node.value // count)} steps of {count} images."
            )
            self.set("save.save_every", at(node, max(1, node.value // count)))
        else:
            self.set("save.save_every", node)

    # ------------------------------------------------------------ dataset

    def _dataset(self) -> dict[str, Any]:
        base = self.given.get("dataset_base_path") or self.missing("dataset_base_path", "the folder of the dataset")
        table = self.given.get("dataset_metadata_path")
        if table is None:
            table = self.missing("dataset_metadata_path", "the table of the images; cached .pth files are not read")
        folders = [os.path.normpath(os.path.dirname(self.text(table)) or "."), os.path.normpath(self.text(base))]
        dataset: dict[str, Any] = {"captions_file": table}
        if folders[0] != folders[1]:
            dataset["folder_path"] = base
        dataset["num_repeats"] = self.given.get("dataset_repeat") or self.default("dataset_repeat", 1)
        dataset["num_workers"] = self.given.get("dataset_num_workers")
        sides = [self.given.get(key) for key in ("width", "height")]
        for node in filter(None, sides if not all(sides) else ()):
            self.diagnostics.warn(node, "has no effect without the other side, as there: max_pixels counts.")
        if all(sides):
            dataset["resolution"] = dict(zip(("width", "height"), sides, strict=True))
        else:
            pixels = self.given.get("max_pixels") or self.theirs("max_pixels", 1024 * 1024)
            if type(pixels.value) is not int or not 0 < pixels.value < 1e12:
                self.diagnostics.error(pixels, f"{show(pixels)} is not a number of pixels, such as 1048576.")
            else:
                dataset["resolution"] = at(pixels, math.isqrt(pixels.value))
        self._edits()
        return dataset


def part_of(path: str) -> str:
    """The part of a model that a file is of; empty where its name does not tell."""
    name = "/".join(re.split(r"[/\\:]", path)[-2:])
    return next((part for part, words in WORDS.items() if re.search(words, name, re.IGNORECASE)), "")


def _joined(first: ConfigNode, second: ConfigNode, diagnostics: Diagnostics) -> ConfigNode | None:
    """Two commands of which the first encodes and the second trains: its flags, with the dataset of the first."""
    tasks = [str(root.value["task"].value) if "task" in root.value else "" for root in (first, second)]
    if not (tasks[0].endswith(ENCODES) and tasks[1].endswith(":train")):
        return None
    diagnostics.warn(first.value["task"], "is left out: images and captions are encoded by the training itself.")
    of_dataset = {
        key: node for key, node in first.value.items() if key.startswith("dataset_") and key != "dataset_repeat"
    }
    kept = {key: node for key, node in first.value.items() if key in ("data_file_keys", "extra_inputs", "max_pixels")}
    task = {"task": at(second.value["task"], tasks[1].removesuffix(":train"))}
    return replace(second, value=kept | second.value | of_dataset | task)


def _reads(root: ConfigNode) -> bool:
    script = root.value.get(SCRIPT)
    if script is not None:
        return script.value in COMMAND.scripts
    return {"dataset_base_path", "model_id_with_origin_paths", "lora_target_modules"} <= root.value.keys()


COMMAND = Command(
    (SCRIPT_PATH, ANY),
    sorted({*BY_HAND, *SILENT, *NAMES["diffsynth", ""]} - {SCRIPT}),
    texts=re.compile(".*(?:_paths?|_models|_modules|_project|_inputs|_checkpoint)"),
    joined=_joined,
    known_by="dataset_base_path",
)
JOBS = ForeignJobs(_reads, _Reader)
