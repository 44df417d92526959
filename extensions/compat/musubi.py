"""A training config of musubi-tuner, with the dataset file it names -> a job.

Each key goes to where the table of names has it; what a section reads under its own
name stays as it is, so that the section says what is wrong with it. A key that is left
out means what it means there: where ours would be another, their default goes in, and
one line names those.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from extensions.compat.foreign_jobs import SCRIPT, ForeignJobs
from extensions.compat.names import PLACES, options
from extensions.compat.nodes import at, entries, file_root, node_at, their, tree
from extensions.compat.shapes import read_pairs
from toolkit.config.reading.base import Entries
from toolkit.config.reading.findings import is_absolute
from toolkit.config.reading.foreign import NO_DEFAULT
from toolkit.config.reading.located import ConfigNode, Diagnostics, odd_characters, show
from toolkit.config.reading.yaml_reader import map_paths
from toolkit.errors import did_you_mean
from toolkit.files.run_files import saved_as
from toolkit.registry import FOREIGN_OPTIONS, load_object

MARKS = frozenset(
    {
        "dataset_config", "dit", "network_module", "network_dim", "optimizer_type", "output_name", "max_train_steps",
        "max_train_epochs",
    }
)  # fmt: skip
"""A file with one of them is a training config."""

FULL = "qwen_image_train.py"
LORA = "qwen_image_train_network.py"
"""The scripts that train."""

GENERAL = (
    "resolution",
    "caption_extension",
    "batch_size",
    "num_repeats",
    "enable_bucket",
    "bucket_no_upscale",
)
"""What `[general]` may say for all datasets."""

OF_DATASETS = (
    *GENERAL, "image_directory", "image_jsonl_file", "cache_directory", "control_directory", "multiple_target",
    "no_resize_control", "control_resolution", "qwen_image_edit_no_resize_control",
    "qwen_image_edit_control_resolution", "video_directory",
)  # fmt: skip
"""The keys of `[[datasets]]`."""

PARTS = {
    "dit": "transformer_path",
    "vae": "vae_path",
    "text_encoder": "text_encoder_path",
}
"""Key -> the key of `model` for a file that lies in no model folder."""

FILE = ".safetensors"

PATHS = frozenset(
    {*PARTS, "dataset_config", "network_weights", "base_weights", "sample_prompts"}
)
OF_IMAGES = frozenset({"image_directory", "image_jsonl_file", "control_directory"})
"""Keys that name what has to be there."""

TEXTS = (
    PATHS
    | OF_IMAGES
    | {"output_dir", "logging_dir", "output_name", "model_version", "resume"}
) - {"base_weights"}
"""Keys with one text."""

NOT_EMPTY = {
    "output_dir": "Give the folder of the results, or leave the key out for 'output'",
    "vae": "Leave the key out for the one in the model's folder",
    "text_encoder": "Leave the key out for the one in the model's folder",
}
"""Keys that are errors there where they are empty -> the remedy."""

SWITCHES = frozenset(
    {
        "edit", "edit_plus", "multiple_target", "remove_first_image_from_target",
        "full_bf16", "fused_backward_pass", "mem_eff_save", "enable_bucket", "bucket_no_upscale",
        "no_resize_control", "qwen_image_edit_no_resize_control",
    }
)  # fmt: skip
"""Keys that are true or false and of which more than the table has to be said."""

STATES = frozenset({"save_last_n_epochs_state", "save_last_n_steps_state"})

BY_HAND = frozenset(
    {
        SCRIPT, *PARTS, "edit", "edit_plus", "remove_first_image_from_target",
        "dataset_config", "config_file", "guidance_scale", "save_last_n_steps",
        "min_timestep", "max_timestep", "network_args", "resume", "huggingface_repo_visibility", "seed",
        "max_data_loader_n_workers", "full_bf16", "mem_eff_save", "fused_backward_pass",
        *STATES,
    }
)  # fmt: skip
"""Options of which more than the table has to be said."""

OF_FRONT_END = re.compile(
    "caching_.*|dataset_(?!config$).*|parent_folder_path|generated_toml_path|create_missing_captions|caption_strategy|"
    "auto_generate_black_control_images|debug_mode|sample_(?:output_dir|guidance_scale)|disable_prompt_enhancement|"
    "dit_dtype|text_encoder_dtype|dit_in_channels|flow_shift|faster_model_loading|use_legacy_sdpa|custom_network_module|"
    "convert_to_.*|(?:diffusers|safetensors)_output_dir|compile_resident_blocks_only|multi_gpu|gpu_ids|"
    "num_(?:processes|machines|cpu_threads_per_process)|main_process_port|extra_accelerate_launch_args|"
    "dynamo_use_.*|vae_(?:tiling|chunk_size|spatial_tile_sample_min_size)"
)
"""Keys by which a front end writes the dataset file or starts the program, which are in
the same file."""

OF_SAMPLES = {
    "sample_width": "width", "sample_height": "height", "sample_steps": "sample_steps", "sample_seed": "seed",
    "sample_cfg_scale": "guidance_scale", "sample_discrete_flow_shift": "flow_shift", "sample_negative_prompt": "neg",
}  # fmt: skip
"""What a front end writes behind prompts that do not say it -> our key of `sample`."""

VERSIONS = {"edit": "edit", "edit_plus": "edit-2509"}
"""Switch -> the `model_version` that it stands for, which `model.arch` reads as it
is."""

VERSION = "original"
"""`model_version` where none is given."""

PUBLISHED = {
    "original": "Qwen/Qwen-Image",
    "edit": "Qwen/Qwen-Image-Edit",
    "edit-2509": "Qwen/Qwen-Image-Edit-2509",
    "edit-2511": "Qwen/Qwen-Image-Edit-2511",
    "layered": "Qwen/Qwen-Image-Layered",
}
"""`model_version` -> where all but the transformer comes from, if that is a single file
that lies alone."""

DTYPES = {"no": "float32"}
"""Other value of `mixed_precision` -> ours."""

SAMPLES = {"width": 256, "height": 256, "sample_steps": 20, "guidance_scale": 4.0}
"""Defaults of images that are drawn during training, where a prompt does not say it.
Source: musubi-tuner, `sample_prompts`."""

QWEN_SHIFT_OF_LAYERS = (
    "is another distribution here: as the model's samples, which at 640 pixels are shifted by 12. musubi-tuner takes "
    "the rule of its other models, 1.8: for that give 'shift' with 'discrete_flow_shift = 1.8'."
)
"""Source: musubi-tuner 30c658c4, training/trainer_base.py and
qwen_image_train_network.py (`do_inference`)."""

HEEDED_BY = {
    "lr_decay_steps": ("warmup_stable_decay",),
    "lr_scheduler_min_lr_ratio": ("cosine_with_min_lr", "warmup_stable_decay", "rex"),
}
"""Option -> the schedules that heed it there; here all that fall do."""

_their = partial(their, whose="musubi-tuner's default")
"""A default of theirs."""


class _Reader:
    """Reads one file; `process` is the process that it becomes."""

    def __init__(
        self,
        root: ConfigNode,
        folder: Path,
        name: str | None,
        diagnostics: Diagnostics,
        moved: Mapping[str, str],
    ) -> None:
        self.root = root
        self.folder = folder
        self.name = name
        self.diagnostics = diagnostics
        self.moved = moved
        self.process: dict[str, Any] = {"type": "sd_trainer"}
        self.config: dict[str, Any] = {}
        self.meta: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        """Option -> their value, of those that are left out and are another here."""

        self.lost: list[ConfigNode] = []
        """Paths that lead nowhere."""

        self.given = self._with_texts(self._with_more(flat(root)))
        self.adapter = self._trains_adapter()

    def job(self) -> ConfigNode:
        """The whole job."""
        self._refuse_empty()
        self._model()
        self._read(
            self.given,
            [key for key in options() if key not in OF_DATASETS],
            "It belongs in the dataset file.",
        )
        self._network()
        self._adafactor()
        self._noise()
        self._files()
        self._samples()
        self.process["datasets"] = self._datasets()
        name = self.config.get("name") or node_at(self.root, "job")
        if self.name is None and "output_name" not in self.given:
            self.diagnostics.error(
                self.root,
                "is required: the run's folder gets this name.",
                path=("output_name",),
            )
        self._report_missing()
        self._note_defaults()
        config = {
            **self.config,
            "name": at(name, self.name or name.value),
            "process": [self.process],
        }
        return tree(
            {"job": "extension", "config": config, "meta": self.meta or None}, self.root
        )

    def _refuse_empty(self) -> None:
        """Tells keys without a value with which a training there ends."""
        for key, node in flat(self.root).items():
            if key in NOT_EMPTY and (node.is_blank or not str(node.value).strip()):
                self.diagnostics.error(
                    node,
                    f"has no value, which is an error there too. {NOT_EMPTY[key]}.",
                )

    def _with_more(self, level: Entries) -> Entries:
        """With the flags of a front end's `additional_parameters`."""
        more = level.get("additional_parameters")
        if more is None or more.is_blank:
            return level
        known = {
            key: node for key, node in level.items() if key != "additional_parameters"
        }
        with_flags: Entries = load_object(FOREIGN_OPTIONS)(
            known, more, self.diagnostics
        )
        return with_flags

    def _with_texts(self, level: Entries) -> Entries:
        """What has a value; in the place of one that is not text, which is reported,
        stands any text."""
        given = {key: node for key, node in level.items() if not node.is_blank}
        for key in SWITCHES & given.keys():
            if not isinstance(given[key].value, bool):
                self.diagnostics.error(
                    given[key], f"{show(given[key])} is not true or false."
                )
        for key in TEXTS & given.keys():
            if isinstance(given[key].value, dict | list):
                self.diagnostics.error(given[key], f"{show(given[key])} is not text.")
                given[key] = at(given[key], "missing")
            elif "\\" in str(given[key].value) and key not in (
                "output_name",
                "model_version",
            ):
                given[key] = at(given[key], with_slashes(given[key].value))
        return given

    # ------------------------------------------------------------ by the table

    def _read(self, given: Entries, known: Sequence[str], elsewhere: str) -> None:
        front_end = [key for key in given if OF_FRONT_END.fullmatch(key)]
        for key in front_end[:1]:
            more = f" ({len(front_end) - 1} more such keys)" if front_end[1:] else ""
            self.diagnostics.warn(
                given[key],
                f"has no effect: a front end starts its program by it{more}.",
            )
        for key, node in given.items():
            if key in front_end or key in OF_SAMPLES or key == "training_mode":
                continue
            if key not in (*known, SCRIPT):
                is_elsewhere = key in options() or key in ("general", "datasets")
                self._unknown(key, node, elsewhere if is_elsewhere else "", known)
            else:
                self._find(key, node, PATHS)
                if key not in BY_HAND:
                    self._put(key, node, self.process)

    def _unknown(
        self, key: str, node: ConfigNode, elsewhere: str, known: Sequence[str]
    ) -> None:
        hint = odd_characters(key) or elsewhere
        hint = hint or did_you_mean(key, known, list_all=False)
        self.diagnostics.error(node, f"unknown key. {hint}", at_key=True)

    def put_at(self, place: str, value: Any, to: dict[str, Any]) -> None:
        """Sets a value at a key of a job; `to` is a process, or a dataset of it."""
        section, _, rest = place.partition(".")
        if section in ("config", "meta"):
            to = self.config if section == "config" else self.meta
            place = rest
        *above, last = place.removeprefix("datasets[].").split(".")
        for part in above:
            to = to.setdefault(part, {})
        to[last] = value

    def one_for_all(self, place: str, node: ConfigNode, what: str) -> None:
        """Sets what each dataset may say there and all share here."""
        *above, last = place.split(".")
        section = self.process
        for part in above:
            section = section.setdefault(part, {})
        first = section.setdefault(last, node)
        if first.value != node.value:
            message = f"{show(node)}, and {show(first)} in another dataset: {what} is one for all here."
            self.diagnostics.error(node, message)

    def _on(self, key: str) -> ConfigNode | None:
        """The node of a switch that is on."""
        node = self.given.get(key)
        return node if node is not None and node.value is True else None

    def _put(self, key: str, node: ConfigNode, to: dict[str, Any]) -> None:
        """A value at the place its row says; a line where there is none."""
        group, row = options()[key]
        if key == "mixed_precision":
            node = at(node, DTYPES.get(str(node.value), node.value))
        if key.startswith("lr_") and re.fullmatch(r"[0-9.]+%", str(node.value)):
            node = at(node, float(str(node.value)[:-1]) / 100)  # a share of all steps
        is_off = node.value in (False, "NO", "no")
        if row.how == "renamed_to":
            self.put_at(row.ours[0], node, to)
        elif group:  # the section says what becomes of it
            if not is_off or row.how == "converted_to":
                self.put_at(f"{PLACES[group]}.{key}", node, to)
        elif row.how == "not_needed":
            if not is_off:
                self.diagnostics.warn(node, f"has no effect: {row.says}.")
        elif not is_off:
            reason = f": {row.says}." if row.says else "."
            ours = " and ".join(map(repr, row.ours))
            nearest = f" The nearest here is {ours}." if ours else ""
            self.diagnostics.error(
                node, f"{show(node)} is not supported{reason}{nearest}", at_key=True
            )

    def _default(self, key: str, place: str = "", value: Any = NO_DEFAULT) -> None:
        """Their default of an option that is left out, at the place its row says or at
        another."""
        if key not in self.given:
            row = options()[key][1]
            self.defaults[key] = row.default if value is NO_DEFAULT else value
            self.put_at(
                place or row.ours[0], _their(key, self.defaults[key]), self.process
            )

    # ------------------------------------------------------------ what more than the
    # table has to be said of

    def _trains_adapter(self) -> bool:
        """By the script; without one by the keys, as only an adapter has such."""
        script = self.given.get(SCRIPT)
        if script is not None:
            return bool(script.value == LORA)
        mode = self.given.get("training_mode")
        if mode is not None:  # of a front end, which keeps the keys of the other mode
            return "lora" in str(mode.value).lower()
        return any(key.startswith("network_") for key in self.given)

    def _model(self) -> None:
        """The folder of the model that `dit` lies in; its family by the switches."""
        dit = self.given.get("dit")
        if dit is None:
            self.diagnostics.error(
                self.root, "is required: the model's transformer.", path=("dit",)
            )
            self.put_at(
                "model.name_or_path",
                replace(node_at(self.root, "missing"), path=("dit",)),
                self.process,
            )
            return
        version = self.given.get("model_version")
        for key, meant in VERSIONS.items():
            switch = self._on(key)
            version = version or (switch and at(switch, meant))
        if version is not None:
            self.put_at("model.arch", version, self.process)
        without_composite = self._on("remove_first_image_from_target")
        if without_composite:
            self.put_at(
                "model.model_kwargs.composite_target",
                at(without_composite, False),
                self.process,
            )
        version = version or _their("model_version", VERSION)
        named = model_of(
            {key: str(self.given[key].value) for key in PARTS if key in self.given},
            str(version.value),
        )
        for key in named.alone:
            self.put_at(f"model.{PARTS[key]}", self.given[key], self.process)
        base = version if named.published else dit
        self.put_at("model.name_or_path", at(base, named.model), self.process)
        for key in PARTS.keys() & self.given.keys():
            node = self.given[key]
            part = PARTS[key].removesuffix("_path")
            if part_of(str(node.value)) not in (None, part):
                self.diagnostics.error(
                    node, f"{show(node)} is another part of the model. Give its {part}."
                )
        for key in named.unused:
            self.diagnostics.warn(
                self.given[key],
                f"{show(self.given[key])} is not used, but that of {named.model}.",
            )

    def _network(self) -> None:
        if not self.adapter:
            self.process["network"] = {"type": "full"}
            self.put_at(
                "save.layout",
                _their("the whole transformer", "single_file"),
                self.process,
            )
            return
        self._default("network_dim")
        self._default("network_alpha")
        arguments = self.given.get("network_args")
        if arguments is not None:
            pairs = dict(read_pairs(arguments, self.diagnostics).value)
            if "include_patterns" in pairs and "exclude_patterns" not in pairs:
                reason = "there it only brings back layers that exclude_patterns leave out, and there are none."
                self.diagnostics.warn(
                    pairs.pop("include_patterns"), f"has no effect: {reason}"
                )
            self.put_at("network.network_args", at(arguments, pairs), self.process)

    def _adafactor(self) -> None:
        """Its arguments that are left out: those of its class, which takes a learning
        rate of its own by them."""
        kind = self.given.get("optimizer_type")
        arguments = self.given.get("optimizer_args")
        if kind is None or str(kind.value).lower() != "adafactor":
            return
        pairs = dict(read_pairs(arguments, self.diagnostics).value) if arguments else {}
        if "relative_step" not in pairs:
            written = (
                'optimizer_args = ["relative_step=False", "scale_parameter=False"]'
            )
            flags = "--optimizer_args relative_step=False scale_parameter=False"
            self.diagnostics.error(
                kind,
                f"{show(kind)} takes a learning rate of its own there, and none here. "
                f"Write {written}, as flags {flags}",
            )
            pairs["relative_step"] = _their("relative_step", False)
        if "scale_parameter" not in pairs:
            self.defaults["scale_parameter"] = True
            pairs["scale_parameter"] = _their("scale_parameter", True)
        self.put_at("train.optimizer_args", at(arguments or kind, pairs), self.process)

    def _noise(self) -> None:
        """Steps, learning rate, noise levels."""
        epochs = self.given.get("max_train_epochs")
        if epochs is None or epochs.value == 0:
            self._default("max_train_steps")
        self._default("learning_rate")
        if "optimizer_type" not in self.given:
            self.defaults["optimizer_type"] = "adamw (there an error)"
        if "fp8_vl" not in self.given:
            self.defaults["fp8_vl"] = False
        self._default("timestep_sampling")
        kind = self.given.get("timestep_sampling", _their("", "sigma")).value
        if kind == "shift":
            self._default("discrete_flow_shift")
        elif kind == "sigma":
            # there the bounds are places on a list that begins with the most noise
            for key, other in (
                ("min_timestep", "max_timestep"),
                ("max_timestep", "min_timestep"),
            ):
                node = self.given.get(key)
                if node is not None and isinstance(node.value, int | float):
                    bound = at(node, 1000 - node.value)
                    self.put_at(f"train.{other}", bound, self.process)
        else:
            for key in ("min_timestep", "max_timestep"):
                self.put_at(f"train.{key}", self.given.get(key), self.process)
        if (
            kind in ("qwen_shift", "qinglong_qwen")
            and self.given.get("model_version", _their("", "")).value == "layered"
        ):
            self.diagnostics.warn(self.given["timestep_sampling"], QWEN_SHIFT_OF_LAYERS)
        schedule = str(self.given.get("lr_scheduler", _their("", "constant")).value)
        for key, schedules in HEEDED_BY.items():
            node = self.given.get(key)
            if (
                node is not None
                and node.value not in (0, "0")
                and schedule not in schedules
            ):
                self.diagnostics.warn(
                    node,
                    f"has no effect, as in musubi-tuner: only {' and '.join(schedules)} heed it.",
                )
                self.put_at(f"train.{key}", None, self.process)
        seed = self.given.get("seed")
        if seed is None:
            self.defaults["seed"] = "random"
            return
        if seed.value == 0:
            self.diagnostics.warn(
                seed,
                "0 is a seed there, and a random one here. Take another for a fixed one.",
            )
        self.put_at("training_seed", seed, self.process)

    def _files(self) -> None:
        """When and how weights are saved, where a run begins."""
        is_bf16 = not self.adapter and "full_bf16" in self.given
        self._default("save_precision", value="bfloat16" if is_bf16 else NO_DEFAULT)
        every = self.given.get("save_every_n_steps")
        last = self.given.get("save_last_n_steps")
        if "save_every_n_epochs" not in self.given:
            self._default("save_every_n_steps")
        if last is None or last.value == 0:
            self.process.setdefault("save", {})["max_step_saves_to_keep"] = last
            self._default("save_last_n_steps")
        elif (
            every is not None
            and all(isinstance(node.value, int) for node in (every, last))
            and every.value > 0
        ):
            # the newest, and those of up to `last` steps before it
            files = last.value // every.value + 1
            self.put_at("save.max_step_saves_to_keep", at(last, files), self.process)
        streams = self._on("mem_eff_save")
        for key, instead in (
            ("full_bf16", "in float32"),
            ("fused_backward_pass", "without it"),
        ):
            switch = self._on(key)
            if not self.adapter:
                self.put_at(f"train.{key}", self.given.get(key), self.process)
            elif switch:
                self.diagnostics.warn(
                    switch,
                    f"has no effect: an adapter is trained {instead}, as in musubi-tuner.",
                )
        if streams:
            message = "has no effect: one file is written while training goes on, from a copy in main memory."
            self.diagnostics.warn(
                streams, message if not self.adapter else "has no effect on an adapter."
            )
        if "huggingface_repo_id" in self.given:
            self.put_at(
                "save.push_to_hub",
                node_at(self.given["huggingface_repo_id"], True),
                self.process,
            )
        visibility = self.given.get("huggingface_repo_visibility")
        if visibility is not None:
            self.put_at(
                "save.hf_private",
                at(visibility, visibility.value != "public"),
                self.process,
            )
        for key in STATES & self.given.keys():
            if self.given[key].value:
                message = (
                    "has no effect: the newest two states are kept. Give 'save.max_states_to_keep' in the job that "
                    "'run.py import' writes."
                )
                self.diagnostics.warn(self.given[key], message)
        resume = self.given.get("resume")
        if resume is not None:
            message = f"{show(resume)}: states of musubi-tuner are not read. Give its LoRA file as 'network_weights'."
            self.diagnostics.error(resume, message)
        guidance = self.given.get("guidance_scale")
        if guidance is not None:
            self.diagnostics.warn(
                guidance, "has no effect: the model has no embedded guidance."
            )

    def _samples(self) -> None:
        if "sample_prompts" not in self.given:
            self.put_at(
                "train.disable_sampling", node_at(self.root, True), self.process
            )
            return
        off = self.given.get("disable_prompt_enhancement")
        written = off is None or not off.value
        given = {
            ours: self.given[key]
            for key, ours in OF_SAMPLES.items()
            if written and key in self.given
        }
        for key, value in SAMPLES.items():
            self.put_at(f"sample.{key}", _their(key, value), self.process)
        for key, node in given.items():
            # which have no effect
            if node.value != {"flow_shift": 0, "seed": -1}.get(key):
                self.put_at(f"sample.{key}", node, self.process)
        if "width" not in given:
            self.defaults["samples of"] = (
                f"{SAMPLES['width']} x {SAMPLES['height']} pixels"
            )
        if "sample_every_n_epochs" not in self.given:
            self._default("sample_every_n_steps", value=0)
        self._default("sample_at_first", value=False)

    # ------------------------------------------------------------ the dataset file

    def _datasets(self) -> list[Any]:
        node = self.given.get("dataset_config")
        if node is None:
            self.diagnostics.error(
                self.root,
                "is required: the file with the datasets.",
                path=("dataset_config",),
            )
            return [{"folder_path": node_at(self.root, ".")}]
        path = self.found(str(node.value))
        if path is None and os.path.exists(os.path.expanduser(str(node.value))):
            self.diagnostics.error(
                node, f"{show(node)} is not a file. Give the file with the datasets."
            )
        root = file_root(path, self.diagnostics) if path else None
        entries = self._entries(map_paths(root, self.moved)) if root else []
        if path and not entries:  # which is reported: that line is enough
            self.diagnostics.mark(node.path)
        return entries or [{"folder_path": node}]

    def _entries(self, root: ConfigNode) -> list[Any]:
        """The datasets of the file; none where it has none, which is reported."""
        for key, child in root.value.items():
            if key not in ("general", "datasets"):
                if key in OF_DATASETS:
                    hint = "It belongs in [general] or [[datasets]]."
                else:
                    hint = did_you_mean(key, ("general", "datasets"))
                self.diagnostics.error(child, f"unknown key. {hint}", at_key=True)
        general = root.value.get("general", node_at(root, {}))
        listed = root.value.get("datasets")
        if listed is None or not isinstance(listed.value, list) or not listed.value:
            self.diagnostics.error(
                listed or root,
                "is required: at least one [[datasets]].",
                path=("datasets",),
            )
            return []
        for table in (general, *listed.value):
            if not isinstance(table.value, dict):
                self.diagnostics.error(
                    table, f"{show(table)} is not a table of keys and values."
                )
        shared = entries(general)
        for key, child in shared.items():
            if key not in GENERAL:
                belongs = "It belongs in [[datasets]]."
                hint = belongs if key in OF_DATASETS else did_you_mean(key, GENERAL)
                self.diagnostics.error(child, f"unknown key. {hint}", at_key=True)
        shared = {key: child for key, child in shared.items() if key in GENERAL}
        return [
            self._dataset({**shared, **item.value}, item)
            for item in listed.value
            if isinstance(item.value, dict)
        ]

    def _dataset(self, given: Entries, item: ConfigNode) -> dict[str, Any]:
        dataset: dict[str, Any] = {}
        given = self._with_texts(given)
        sized = {"resolution", "enable_bucket", "bucket_no_upscale", "batch_size"}
        of_controls = {
            key
            for key in OF_DATASETS
            if "control" in key and key != "control_directory"
        }
        for key, node in given.items():
            if key not in OF_DATASETS:
                elsewhere = "It belongs in the training config."
                self._unknown(
                    key, node, elsewhere if key in options() else "", OF_DATASETS
                )
            elif key == "multiple_target":
                if node.value is True:
                    # of a.png: a_0.png, a_1.png and so on
                    dataset["layers_suffix"] = at(node, "_")
                if node.value is True and "image_jsonl_file" in given:
                    remedy = "Name those of a.png a_0.png, a_1.png and so on, beside it, and give 'image_directory'."
                    self.diagnostics.error(
                        node, f"layers are not read from a table. {remedy}", at_key=True
                    )
            elif key == "cache_directory":
                self.diagnostics.warn(node, f"has no effect: {options()[key][1].says}.")
            elif key not in sized | of_controls:
                self._find(key, node, OF_IMAGES)
                self._put(key, node, dataset)
        images = [
            key for key in ("image_directory", "image_jsonl_file") if key in given
        ]
        if not images and "video_directory" not in given:
            message = "is required: the folder of the images."
            self.diagnostics.error(item, message, path=(*item.path, "image_directory"))
        if not images:
            dataset["folder_path"] = node_at(item, ".")  # what is missing is reported
        elif len(images) == 2:
            message = "'image_directory' is given as well. Give one of them."
            self.diagnostics.error(given["image_jsonl_file"], message, at_key=True)
        dataset["num_workers"] = self.given.get("max_data_loader_n_workers")
        if "num_repeats" not in given:
            dataset["num_repeats"] = _their("num_repeats", 1)
        self._size(given, item, dataset)
        source = given.get("control_directory") or given.get("image_jsonl_file")
        if source:
            self._reference_size(
                [given[key] for key in sorted(of_controls & given.keys())], source
            )
        self.one_for_all(
            "train.batch_size",
            given.get("batch_size", _their("batch_size", 1)),
            "batch_size",
        )
        return dataset

    def _size(self, given: Entries, item: ConfigNode, dataset: dict[str, Any]) -> None:
        """One rectangle; with buckets its area."""
        node = given.get("resolution")
        if node is None:
            node = _their("resolution", options()["resolution"][1].default)
            self.defaults["resolution"] = node.data()
        sides = self._sides(node)
        if not sides:
            return
        bucket = given.get("enable_bucket")
        keeps = given.get("bucket_no_upscale")
        if bucket is None or bucket.value is not True:
            dataset["resolution"] = at(
                node, {"width": at(node, sides[0]), "height": at(node, sides[1])}
            )
            return
        dataset["resolution"] = at(node, math.isqrt(sides[0] * sides[1]))
        if keeps is None or keeps.value is not True:
            self.diagnostics.warn(
                bucket,
                "images of a smaller area are not enlarged here, as with bucket_no_upscale.",
            )

    def _reference_size(self, given: Sequence[ConfigNode], control: ConfigNode) -> None:
        """The area of the references: theirs is that of the image unless they say
        another."""
        wanted = [node for node in given if node.value is not False]
        value = at(wanted[0], False) if wanted else at(control, True)
        self.one_for_all(
            "model.model_kwargs.match_target_res", value, "the size of control images"
        )
        for node in wanted:
            if node.value is True:
                message = "control images are scaled to the area of control_resolution, 1024 x 1024 if left out."
                self.diagnostics.warn(node, message)
                continue
            sides = self._sides(node)
            if sides:
                self.one_for_all(
                    "model.model_kwargs.control_resolution",
                    at(node, math.isqrt(sides[0] * sides[1])),
                    "the size of control images",
                )

    def _sides(self, node: ConfigNode) -> list[int]:
        """Width and height; empty for what is neither one number of pixels nor two,
        which is reported."""
        sides = node.data()
        sides = sides if isinstance(sides, list) else [sides, sides]
        if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
            return sides
        self.diagnostics.error(
            node,
            f"{sides} is not a size. Write one number of pixels, or [width, height].",
        )
        return []

    # ------------------------------------------------------------ paths

    def _find(self, key: str, node: ConfigNode, kinds: frozenset[str]) -> None:
        """Notes paths that lead nowhere."""
        if key not in kinds:
            return
        paths = node.value if isinstance(node.value, list) else [node]
        for path in paths:
            written = os.path.expanduser(str(path.value))
            is_beside = key == "dataset_config" and os.path.exists(
                self.folder / written
            )
            if not (is_beside or os.path.exists(written) or saved_as(written)):
                self.lost.append(path)

    def found(self, written: str) -> Path | None:
        """Where a file is: in the working directory, as for the trainer, or beside the
        config."""
        expanded = os.path.expanduser(written)
        for place in (Path(expanded), self.folder / expanded):
            if os.path.isfile(place):
                return place
        return None

    def _report_missing(self) -> None:
        self.lost = [
            node for node in self.lost if not self.diagnostics.reported(node.path)
        ]
        absolute = [
            str(node.value).replace("\\", "/")
            for node in self.lost
            if is_absolute(str(node.value))
        ]
        try:
            old = os.path.commonpath([os.path.dirname(path) for path in absolute])
        except ValueError:  # none, or some begin with a drive
            old = ""
        if old in ("", "/"):
            old = "OLD"
        for node in self.lost:
            if is_absolute(str(node.value)):
                message = f"is not on this machine. Where it lies elsewhere: --map {shlex.quote(f'{old}=NEW')}"
            else:
                message = f"does not exist (working directory: {Path.cwd()})."
            self.diagnostics.error(node, f"{show(node)} {message}")

    def _note_defaults(self) -> None:
        """The line that names the defaults which were taken."""
        if self.defaults:
            taken = [
                f"{key} {json.dumps(value)}".replace('"', "")
                for key, value in self.defaults.items()
            ]
            self.diagnostics.notes.append(
                f"left out, and therefore as in musubi-tuner: {', '.join(taken)}"
            )


def with_slashes(path: str) -> str:
    """A path below the working directory that is written as on Windows, as this machine
    writes it."""
    is_below = not is_absolute(path) and not os.path.lexists(path)
    return path.replace("\\", os.sep) if is_below else path


def flat(root: ConfigNode) -> Entries:
    """All keys on one level: the names of sections mean nothing there, and a later key
    replaces an earlier one."""
    given: Entries = {}
    for key, node in root.value.items():
        if isinstance(node.value, dict):
            given |= node.value
        else:
            given[key] = node
    return given


class NamedModel(NamedTuple):
    """What `dit`, `vae` and `text_encoder` are here.

    >>> model_of({"dit": "Qwen/Qwen-Image"}, "original").model
    'Qwen/Qwen-Image'
    """

    model: str
    """Folder or hub id."""

    alone: list[str]
    """The keys whose files lie in no model folder: they are used in place of its
    parts."""

    unused: list[str]
    """The keys that name parts of another folder."""

    published: bool
    """The hub id is that of the version."""


def model_of(paths: Mapping[str, str], version: str) -> NamedModel:
    """paths: of the keys of PARTS that are given, `dit` among them. version:
    `model_version` or what stands for it."""
    folders = {key: model_folder(path) for key, path in paths.items()}
    files = [
        key
        for key, path in paths.items()
        if path.endswith(FILE) or os.path.isfile(os.path.expanduser(path))
    ]
    alone = [key for key in files if folders[key] is None]
    folder = folders["dit"]
    model = paths["dit"]
    if "dit" in alone:
        folder = next(filter(None, folders.values()), None)
        model = PUBLISHED.get(version, "missing")
    unused = [key for key, of_part in folders.items() if of_part not in (None, folder)]
    return NamedModel(
        str(folder or model), alone, unused, published=folder is None and "dit" in alone
    )


def model_folder(path: str) -> Path | None:
    """The folder in diffusers layout that a part lies in: itself, or one or two levels
    above it."""
    start = Path(os.path.expanduser(path))
    for folder in (start, *list(start.parents)[:2]):
        if os.path.isfile(folder / "model_index.json"):
            return folder
    return None


def part_of(path: str) -> str | None:
    """The part of a model's folder that a path leads to; None for the folder itself and
    other paths."""
    place = Path(os.path.expanduser(path)).absolute()
    inside = place.relative_to(model_folder(str(place)) or place).parts[:1]
    names = [key.removesuffix("_path") for key in PARTS.values()]
    return next((name for name in names if name in inside), None)


def _reads(root: ConfigNode) -> bool:
    return bool((MARKS | {SCRIPT}) & flat(root).keys())


def _as_job(*arguments: Any) -> ConfigNode:
    return _Reader(*arguments).job()


JOBS = ForeignJobs(_reads, _as_job)
