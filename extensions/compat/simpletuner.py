"""A config of SimpleTuner (`config.json`, `config.env`), with the dataset file it names -> a job.

Each key goes to where the table of names has it. A key that is left out means what it means there: where ours would be
another, their default goes in, and one line names those. Source: SimpleTuner, commit bc8e6ab7 (field registry,
DATALOADER.md, LYCORIS.md, helpers/models/qwen_image/model.py, helpers/configuration/env_file.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from extensions.compat.foreign_jobs import SCRIPT, ForeignJobs
from extensions.compat.names import NAMES
from extensions.compat.nodes import at, made
from extensions.compat.shapes import read_pairs
from extensions.compat.table_reader import Level, TableReader
from toolkit.config.field_types import PER_PARAMETER_OPTIMIZERS
from toolkit.config.located import ConfigNode, Diagnostics, SourceLocation, show
from toolkit.errors import did_you_mean

ROWS = NAMES["simpletuner", ""]
FLAVOURS = {
    "v1.0": "Qwen/Qwen-Image",
    "v2.0": "Qwen/Qwen-Image-2512",
    "edit-v1": "Qwen/Qwen-Image-Edit",
    "edit-v2": "Qwen/Qwen-Image-Edit-2509",
    "edit-v2+": "Qwen/Qwen-Image-Edit-2509",
    "edit-v3": "Qwen/Qwen-Image-Edit-2511",
}
"""`model_flavour` -> hub id."""

FLAVOUR = "v2.0"
"""The default of a qwen_image."""

LAYERS = ("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0")
"""What a LoRA trains there, unless `lora_type` is lycoris."""

PRECISIONS = {
    "no_change": None,
    "int8-quanto": "int8",
    "int4-quanto": "int4",
    "int2-quanto": "int2",
    "fp8-quanto": "float8",
    "int8-torchao": "int8",
    "int4-torchao": "int4",
    "fp8-torchao": "float8",
}
"""`base_model_precision` -> `model.qtype`."""

_EPS = {"eps": 1e-6}
_OPTIMI = {"betas": [0.9, 0.99], "weight_decay": 0.0, **_EPS}
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(("adamw_bf16", "bnb-adamw", "bnb-adamw-paged"), ("adamw", _EPS)),
    **dict.fromkeys(("bnb-adamw8bit", "bnb-adamw8bit-paged", "ao-adamw8bit"), ("adamw8bit", _EPS)),
    **dict.fromkeys(("bnb-lion8bit", "bnb-lion8bit-paged"), ("lion8bit", {})),
    **dict.fromkeys(("optimi-lion", "bnb-lion", "bnb-lion-paged"), ("lion", {})),
    **{f"torch-{name}": (name, {}) for name in ("adam", "adamw", "sgd", "rmsprop")},
    "optimi-adamw": ("adamw", _OPTIMI),
    "optimi-adam": ("adam", _OPTIMI),
    "adamw_schedulefree": ("schedulefree_adamw", {"weight_decay": 0.01}),
}
"""Their optimizers -> ours, and the arguments that are others there."""

PERIODS = ("cosine", "cosine_with_restarts", "sine")
"""Schedules whose period is `lr_warmup_steps` there."""

NEUTRAL: dict[str, Any] = json.loads(Path(__file__).with_name("simpletuner_defaults.json").read_text("utf-8"))
"""The other keys that its page writes -> their defaults, which ask for nothing."""

HOUSEKEEPING = (
    "cache_|compress_|delete_|disable_|skip_|preserve_|write_|vae_|hash_|id$|hub_|push_|tracker_|tracking_|report_to|"
    "webhook|num_eval_images|validation_(?:guidance_rescale|lycoris_strength|preview|on_startup|using)|metadata_|"
    "offload_during_startup|quantize_via|minimum_|maximum_|target_downsample_size|aspect_bucket|"
    "strict_epoch_limit|dataloader_prefetch|.*_workers$|.*batch_size$|allow_|attention_mechanism|resume_from|"
    "conditioning_(?:type|image_embeds)|dataset_type|type$|default$|allow_tf32|ignore_|max_workers|overrides?_"
)
"""Keys of how their program works, not of what is trained."""

BY_HAND = frozenset(
    [
        SCRIPT, "model_family", "model_flavour", "lycoris_config", "model_type", "lora_type", "data_backend_config",
        "output_dir", "optimizer", "base_model_precision", "text_encoder_1_precision", "flow_schedule_shift",
        "max_train_steps", "num_train_epochs", "caption_dropout_probability", "validation_prompt",
        "validation_resolution", "user_prompt_library", "resolution", "resolution_type", "train_batch_size",
        "model_kwargs", "caption_strategy", "grad_clip_method", "optimizer_config", "optimizer_beta1",
        "optimizer_beta2", "lr_end", "lr_power", "repeats",
    ]
)  # fmt: skip
"""Keys of which more than the table has to be said."""

OF_LYCORIS = {
    "linear_dim": "linear",
    "linear_alpha": "linear_alpha",
    "factor": "factor",
    "full_matrix": "lokr_full_rank",
    "dropout": "dropout",
    "rank_dropout": "rank_dropout",
    "module_dropout": "module_dropout",
}
"""Key of `lycoris_config` -> of our `network`."""

LYCORIS_BY_HAND = (
    "algo", "multiplier", "apply_preset", "dora_wd", "bypass_mode", "use_tucker", "conv_dim", "conv_alpha",
)  # fmt: skip
MODULES: dict[str, list[str]] = {
    "Attention": [".attn."],
    "FeedForward": ["_mlp."],
    "QwenImageTransformerBlock": [],
    "QwenImageTransformer2DModel": [],
}
"""Class of a module that `target_module` may name -> what the names of its layers contain; none: all of the blocks."""

OF_VARIABLES = {
    "DATALOADER_CONFIG": "data_backend_config",
    "TRAINING_SEED": "seed",
    "MAX_NUM_STEPS": "max_train_steps",
    "NUM_EPOCHS": "num_train_epochs",
    "CHECKPOINTING_STEPS": "checkpoint_step_interval",
    "CHECKPOINTING_LIMIT": "checkpoints_total_limit",
    "MODEL_NAME": "pretrained_model_name_or_path",
    "USE_GRADIENT_CHECKPOINTING": "gradient_checkpointing",
    "VALIDATION_STEPS": "validation_step_interval",
    "LR_SCHEDULE": "lr_scheduler",
    "RESUME_CHECKPOINT": "resume_from_checkpoint",
    "HUB_MODEL_NAME": "hub_model_id",
    "MINIMUM_RESOLUTION": "minimum_image_size",
    "PUSH_CHECKPOINTS": "push_checkpoints_to_hub",
}
"""Variable of `config.env` -> key, where it is not the name in capitals."""

OF_LAUNCH = re.compile(
    r"TRAINING_(NUM_PROCESSES|NUM_MACHINES|DYNAMO_BACKEND)|TRAINER_DYNAMO_BACKEND|ACCELERATE_\w+|SIMPLETUNER_\w+|ENV|"
    r"CONFIG_(TYPE|BACKEND)|VENV_PATH|HF_\w+|CUDA_\w+|TOKENIZERS_PARALLELISM|DISABLE_UPDATES|USE_XFORMERS|DEBUG_\w+"
)
"""Variables of how it is started."""

OF_DATASETS = (
    "instance_data_dir", "repeats", "resolution", "resolution_type", "crop", "crop_aspect", "crop_style",
    "caption_strategy", "instance_prompt", "prepend_instance_prompt", "only_instance_prompt", "is_regularisation_data",
    "is_regularization_data", "conditioning_data", "disabled", "caption_dropout_probability", "probability",
)  # fmt: skip


class _Reader(TableReader):
    program = "SimpleTuner"
    rows = NAMES["simpletuner", ""]
    by_hand = BY_HAND
    silent = re.compile(f"(?:{HOUSEKEEPING}).*")

    def read(self) -> None:
        self._model()
        self.put_all()
        if (repeats := self.given.get("repeats")) is not None:
            self.diagnostics.warn(repeats, "has no effect here, as there: it belongs in the dataset file.")
        if (average := self.given.get("use_ema")) is not None and average.value and "ema_decay" not in self.given:
            self.set("train.ema_config.ema_decay", self.theirs("ema_decay", 0.995))
        self._network()
        self._training()
        self._samples()
        self.process["datasets"] = self._datasets()

    def output(self) -> ConfigNode:
        return self.given.get("output_dir") or self.theirs("output_dir", "simpletuner-results")

    def _given(self, node: ConfigNode) -> Level:
        """Without the dashes of flags, and what asks for something."""
        written = {key.lstrip("-"): _typed(child) for key, child in node.value.items()}
        return {key: child for key, child in written.items() if key == SCRIPT or self._says_something(child, key)}

    def _says_something(self, node: ConfigNode, key: str) -> bool:
        """Whether a key asks for anything: their configs write many with no value, with "None" or switched off."""
        row = self.rows.get(key)
        is_off = node.value is False and not (row and row.how == "is")
        is_off = is_off or (key in NEUTRAL and node.value == NEUTRAL[key])
        return not node.is_blank and not is_off and node.value not in ("", "None", "none")

    def put(self, key: str, node: ConfigNode) -> None:
        if key in NEUTRAL and key not in self.rows and not self.silent.fullmatch(key):
            self.diagnostics.error(node, f"{show(node)} is not supported here. Leave this key out.", at_key=True)
        else:
            super().put(key, node)

    def _model(self) -> None:
        family = self.given.get("model_family") or self.missing("model_family", "qwen_image")
        if family.value not in ("qwen_image", "missing"):
            self.diagnostics.error(family, f"{show(family)} cannot be trained here: it is of another family.")
        if "pretrained_model_name_or_path" not in self.given:
            flavour = self.given.get("model_flavour") or self.theirs("model_flavour", FLAVOUR)
            model = FLAVOURS.get(str(flavour.value))
            if model is None:
                self.diagnostics.error(flavour, f"{show(flavour)} is unknown. {did_you_mean('', list(FLAVOURS))}")
            self.set("model.name_or_path", at(flavour, model or str(flavour.value)))
        if match := self.given.get("model_kwargs"):
            self.set("model.model_kwargs", match)
        for key, switch, qtype in (
            ("base_model_precision", "quantize", "qtype"),
            ("text_encoder_1_precision", "quantize_te", "qtype_te"),
        ):
            precision = self.given.get(key)
            if precision is not None and (ours := self.choice(precision, PRECISIONS)):
                self.set(f"model.{switch}", at(precision, True))
                self.set(f"model.{qtype}", at(precision, ours))

    def _network(self) -> None:
        kind = self.given.get("model_type") or self.theirs("model_type", "full")
        if kind.value == "full":
            self.set("network.type", kind)
        elif self.choice(self.given.get("lora_type"), {"standard": "", "lycoris": "lycoris"}):
            self._lycoris()
        else:
            self.set("network.network_kwargs.only_if_contains", [self.default("", layer) for layer in LAYERS])
            self.defaults["layers"] = "to_k, to_q, to_v, to_out.0 of images"

    def _lycoris(self) -> None:
        """The adapter of `lycoris_config`."""
        for key in ("lora_rank", "lora_alpha", "lora_dropout"):
            self.defaults.pop(key, None)
        self.process["network"] = network = {
            key: node for key, node in self.process.get("network", {}).items() if key == "pretrained_lora_path"
        }
        node = self.given.get("lycoris_config") or self.missing("lycoris_config", "the file of the adapter")
        root = self.file(node, LIST) if node.value != "missing" else None
        given = self.level(root)
        for key, value in given.items():
            if key not in (*OF_LYCORIS, *LYCORIS_BY_HAND) and value.value is not False:
                known = [*OF_LYCORIS, *LYCORIS_BY_HAND]
                hint = did_you_mean(key, known, list_all=False) or "Leave it out, or write 'network' in a job of ours."
                self.diagnostics.error(value, f"{show(value)} is not supported. {hint}", at_key=True)
            elif (row := OF_LYCORIS.get(key)) and (row != "linear_alpha" or value.value):  # 0: the rank
                network[row] = value
        algo = given.get("algo") or (self.missing("algo", "lokr, loha or lora", root) if root else node)
        kind = self.choice(algo, {"lokr": "lokr", "loha": "loha", "lora": "lora", "locon": "lora"}) if root else "lora"
        if (parts := given.get("dora_wd")) and parts.value is True and kind != "lora":
            self.diagnostics.error(parts, "goes with algo lora here. Leave it out.")
        network["type"] = at(algo, "dora" if parts and parts.value is True else kind)
        if (strength := given.get("multiplier")) and strength.value != 1:
            self.diagnostics.error(strength, f"{show(strength)} is not supported. Write 1.0.")
        self._lycoris_layers(self.level(given.get("apply_preset")), network, node)

    def _lycoris_layers(self, preset: Level, network: dict[str, Any], place: ConfigNode) -> None:
        """The layers by the classes of the modules they are in, and the one factor of all of them."""
        for key in preset.keys() - {"target_module", "module_algo_map"}:
            if preset[key].value not in ([], {}, False):
                self.diagnostics.error(
                    preset[key], "is not supported. Write network.include_patterns in a job of ours."
                )
        targets = preset.get("target_module")
        listed = targets.value if targets and isinstance(targets.value, list) else [targets] if targets else []
        found = [(item, self.choice(item, MODULES)) for item in listed]
        if found and all(part for _, part in found):  # an unknown class is told, that of the block restricts nothing
            network["network_kwargs"] = {"only_if_contains": [at(item, each) for item, part in found for each in part]}
        elif not found:
            self.diagnostics.warn(place, "all layers of the blocks are trained; there a few outside of them too.")
        maps = self.level(preset.get("module_algo_map"))
        for name, node in maps.items():
            own = self.level(node)
            if name in [str(item.value) for item in listed] and own.keys() <= {"factor"}:
                first = network.get("factor")
                if "factor" in own and (first is None or name == str(listed[0].value)):
                    network["factor"] = own["factor"]
                elif first is not None and (factor := own.get("factor")) and factor.value != first.value:
                    self.diagnostics.warn(node, f"factor {show(factor)}: it is {show(first)} for all layers here.")
            elif own:
                self.diagnostics.error(node, "only a factor of the classes in target_module is read here.")

    def _training(self) -> None:
        ours = self._optimizer()
        weights = self.given.get("mixed_precision") or self.default("mixed_precision", "bf16")
        if weights.value == "no":
            self.set("train.dtype", at(weights, "float32"))
        kind = self.process["network"].get("type")
        if kind is not None and kind.value == "full" and weights.value == "bf16" and ours in PER_PARAMETER_OPTIMIZERS:
            self.set("train.full_bf16", at(weights, True))
        steps, epochs = self.given.get("max_train_steps"), self.given.get("num_train_epochs")
        if steps is not None and steps.value:
            self.set("train.steps", steps)
        else:
            self.set("train.epochs", epochs if epochs and epochs.value else self.theirs("num_train_epochs", 1))
        shift = self.given.get("flow_schedule_shift") or self.theirs("flow_schedule_shift", 3.0)
        self.set("train.timestep_type", at(shift, "shift" if shift.value else "sigmoid"))
        if shift.value:
            self.set("train.discrete_flow_shift", shift)
        self.set("train.batch_size", self.given.get("train_batch_size") or self.theirs("train_batch_size", 4))

    def _optimizer(self) -> str:
        """Its name here. There are its arguments, the limit of gradients and what only some schedules heed."""
        optimizer = self.given.get("optimizer") or self.theirs("optimizer", "adamw_bf16")
        ours, arguments = OPTIMIZERS.get(str(optimizer.value), (str(optimizer.value), {}))
        self.set("train.optimizer", at(optimizer, ours))
        if (pairs := self.given.get("optimizer_config")) is not None:
            listed = [at(pairs, word) for word in self.text(pairs).split(",")]
            arguments = arguments | read_pairs(at(pairs, listed), self.diagnostics).value
        betas = [self.given[key] for key in ("optimizer_beta1", "optimizer_beta2") if key in self.given]
        self.set("train.optimizer_params", arguments | ({"betas": betas} if len(betas) == 2 else {}))
        method = self.given.get("grad_clip_method") or self.default("grad_clip_method", "value")
        if self.choice(method, {"value": 1, "norm": 0}) and (most := self.given.get("max_grad_norm")) is not None:
            self.diagnostics.warn(
                most, "limits each number of a gradient there, and has no effect: norms are limited here."
            )
        if method.value == "value":
            self.defaults.pop("max_grad_norm", None)
            self.set("train.max_grad_norm", at(method, 0))
        schedule = self.given.get("lr_scheduler")
        if schedule is not None and schedule.value in PERIODS:
            self.diagnostics.warn(schedule, "there lr_warmup_steps is its period, after which the rate is high again.")
        if schedule is not None and schedule.value == "polynomial":
            rate = self.given.get("learning_rate") or self.default("learning_rate", 4e-7)
            end = self.given.get("lr_end") or self.theirs("lr_end", 4e-7)
            self.set("train.lr_scheduler_power", self.given.get("lr_power") or self.theirs("lr_power", 0.8))
            if isinstance(rate.value, int | float) and isinstance(end.value, int | float) and rate.value > end.value:
                self.set("train.lr_scheduler_min_lr_ratio", at(end, end.value / rate.value))
        return ours

    def _samples(self) -> None:
        prompts = [self.given[key] for key in ("validation_prompt",) if key in self.given]
        library = self.given.get("user_prompt_library")
        if library is not None and (root := self.file(library, LIST)) is not None:
            prompts += root.value.values() if isinstance(root.value, dict) else []
        if not prompts:
            self.set("train.disable_sampling", made(self.root, True))
            for key in [key for key, row in ROWS.items() if row.ours and row.ours[0].startswith("sample.")]:
                self.defaults.pop(key, None)
            self.process.pop("sample", None)
            return
        size = self.given.get("validation_resolution") or self.theirs("validation_resolution", "256")
        sides = re.fullmatch(r"(\d+)(?:x(\d+))?(,.*)?", str(size.value).replace(" ", ""))
        if sides is None:
            self.diagnostics.error(size, f"{show(size)} is not a size. Write one number of pixels, or 1024x768.")
            return
        if sides[3]:
            self.diagnostics.warn(size, f"samples are made in the first size alone: {sides[1]}x{sides[2] or sides[1]}.")
        self.set("sample.width", at(size, int(sides[1])))
        self.set("sample.height", at(size, int(sides[2] or sides[1])))
        self.set("sample.samples", [{"prompt": prompt} for prompt in prompts])

    # ------------------------------------------------------------ the dataset file

    def _datasets(self) -> list[Any]:
        node = self.given.get("data_backend_config") or self.missing("data_backend_config", "the dataset file")
        root = self.file(node, LIST) if node.value != "missing" else None
        if root is None:
            return [{"folder_path": node}]
        listed = root.value.get(LIST)
        if listed is None or not isinstance(listed.value, list):
            self.diagnostics.error(root, "is not a list of datasets.")
            return [{"folder_path": node}]
        entries = [item for item in listed.value if isinstance(item.value, dict) and not _is_on(item, "disabled")]
        by_id = {str(item.value["id"].value): item for item in entries if "id" in item.value}
        images = [
            item
            for item in entries
            if _text(item, "dataset_type", "image") == "image" and not _text(item, "conditioning_type", "")
        ]
        if not images:
            self.diagnostics.error(listed, "has no dataset of images.")
        return [self._dataset(item, by_id) for item in images] or [{"folder_path": node}]

    def _dataset(self, item: ConfigNode, by_id: Mapping[str, ConfigNode]) -> dict[str, Any]:
        given = self.level(item)
        for key, node in given.items():
            if key not in OF_DATASETS and not self.silent.fullmatch(key):
                hint = did_you_mean(key, OF_DATASETS, list_all=False) or "Leave this key out."
                self.diagnostics.error(node, f"{show(node)} is not supported. {hint}", at_key=True)
        dataset: dict[str, Any] = {"folder_path": self._folder_of(item)}
        repeats = given.get("repeats") or self.default("repeats", 0)
        if not isinstance(repeats.value, int | float) or repeats.value != repeats.value // 1:
            self.diagnostics.error(repeats, f"{show(repeats)} is not a whole number.")
        else:
            dataset["num_repeats"] = at(repeats, int(repeats.value) + 1)
        dropout = given.get("caption_dropout_probability") or self.given.get("caption_dropout_probability")
        dataset["caption_dropout_rate"] = dropout or self.theirs("caption_dropout_probability", 0.1)
        dataset["resolution"] = self._size(given)
        if _is_on(item, "is_regularisation_data") or _is_on(item, "is_regularization_data"):
            dataset["is_reg"] = made(item, True)
        if (chance := given.get("probability")) and chance.value != 1:
            self.diagnostics.error(chance, f"{show(chance)} is not supported. Give 'repeats' instead.")
        dataset |= self._captions(item, given)
        wanted = given.get("conditioning_data")
        for slot in (wanted.value if isinstance(wanted.value, list) else [wanted]) if wanted else ():
            if str(slot.value) in by_id:
                dataset.setdefault("control_path", []).append(self._folder_of(by_id[str(slot.value)]))
            else:
                self.diagnostics.error(slot, f"{show(slot)} is the id of no dataset in this file.")
        return dataset

    def _folder_of(self, item: ConfigNode) -> ConfigNode:
        kind, folder = _text(item, "type", "local"), item.value.get("instance_data_dir")
        if kind != "local":
            self.diagnostics.error(
                item.value["type"], f"{kind!r} is not read here. Download it, and write type: local."
            )
        if folder is None:
            if kind == "local":
                self.diagnostics.error(
                    item, "is required: the folder of the images.", path=(*item.path, "instance_data_dir")
                )
            return made(item, ".")
        return folder

    def _captions(self, item: ConfigNode, given: Level) -> dict[str, Any]:
        default = self.given.get("caption_strategy") or self.default("caption_strategy", "filename")
        node, prompt = given.get("caption_strategy") or default, given.get("instance_prompt")
        strategy = self.text(node)
        if node is default and "caption_strategy" not in self.given:
            self.theirs("caption_strategy", strategy)
        if strategy in ("parquet", "webshart"):
            remedy = "Write .txt files ('run.py caption' does), or a table for 'captions_file'."
            self.diagnostics.error(node, f"captions by {strategy} are not read here. {remedy}")
        elif strategy == "instanceprompt" or _is_on(item, "only_instance_prompt"):
            if prompt is None:
                self.diagnostics.error(
                    item, "is required for this caption_strategy.", path=(*item.path, "instance_prompt")
                )
            return {"default_caption": prompt, "caption_ext": [made(item, ".instanceprompt")]}
        captions: dict[str, Any] = {}
        if strategy == "filename":
            captions = {"caption_from_name": made(item, True), "caption_ext": [made(item, ".filename")]}
        if prompt is not None and _is_on(item, "prepend_instance_prompt"):
            captions["trigger_word"] = prompt
        return captions

    def _size(self, given: Level) -> Any:
        """Its area as the side of a square, or with square crops that square."""
        node = given.get("resolution") or self.given.get("resolution") or self.theirs("resolution", 1024)
        kind = given.get("resolution_type") or self.given.get("resolution_type")
        side = float(node.value) if isinstance(node.value, int | float) else 0.0
        if not 0 < side < 1e6:
            self.diagnostics.error(node, f"{show(node)} is not a size. Write a number of pixels.")
            return node
        if kind is not None and kind.value == "area":
            side = math.sqrt(side * 1e6)
        elif kind is not None and kind.value == "pixel":
            self.diagnostics.warn(kind, "images have at most this number squared in pixels here, not a side of it.")
        crop, aspect = given.get("crop"), given.get("crop_aspect")
        value = at(node, round(side))
        if crop and crop.value is True and (aspect is None or aspect.value == "square"):
            return {"width": value, "height": value}
        return value


LIST, ENV = "datasets", "config.env"


def _typed(node: ConfigNode) -> ConfigNode:
    """A number or switch that is written as text, as their examples have it."""
    if isinstance(node.value, str):
        with suppress(ValueError):
            value = json.loads(node.value.lower())
            if isinstance(value, bool | int | float):
                return at(node, value)
    return node


def _text(item: ConfigNode, key: str, default: str) -> str:
    node = item.value.get(key)
    return str(node.value) if node is not None else default


def _is_on(item: ConfigNode, key: str) -> bool:
    node = item.value.get(key)
    return node is not None and node.value in (True, "true")


def read_env(text: str, diagnostics: Diagnostics) -> ConfigNode:
    """The root of a `config.env`: lines `KEY=value`, with or without `export`, `KEY+=more`, and the flags of
    TRAINER_EXTRA_ARGS."""
    known: dict[str, ConfigNode] = {}
    for number, line in enumerate(text.splitlines(), 1):
        found = _LINE.fullmatch(line)
        if found is None:
            diagnostics.error_at(SourceLocation(number, 1), (), f"{line.strip()!r} is not of the form KEY=value.")
        elif (name := found[1]) is not None:
            value = found[3][1:-1] if found[3][:1] in ("'", '"') else found[3]
            if found[3][:1] != "'":
                value = _VARIABLE.sub(lambda word: str(known[word[1]].value) if word[1] in known else word[0], value)
            if found[2] and name in known:
                value = f"{known[name].value} {value}"
            place = SourceLocation(number, found.start(1) + 1)
            known[name] = ConfigNode(value, (OF_VARIABLES.get(name, name.lower()),), place, place, value, plain=True)
    given: dict[str, ConfigNode] = {}
    extra = known.pop("TRAINER_EXTRA_ARGS", None)
    for name, node in known.items():
        (key,) = node.path
        if key in ROWS or key in BY_HAND or _Reader.silent.fullmatch(str(key)):
            given[str(key)] = node
        elif name in ("CONFIG_TYPE", "CONFIG_BACKEND") and node.value != "env":
            diagnostics.error(node, f"{name}: the config is another file. Run config.{node.value} beside this one.")
        elif not OF_LAUNCH.fullmatch(name) and not re.search(rf"\$\{{?{name}\b", text):
            diagnostics.warn(node, f"{name} has no effect: it is none of SimpleTuner's variables.")
    if extra is not None:
        for key, equals, value in (word.partition("=") for word in str(extra.value).split()):
            given[key.lstrip("-")] = replace(at(extra, value if equals else True), path=(key.lstrip("-"),))
    diagnostics.raise_errors()
    start = SourceLocation(1, 1)
    return ConfigNode({SCRIPT: ConfigNode(ENV, (SCRIPT,), start, start), **given}, (), start, start)


_LINE = re.compile(
    r"""\s*(?:#.*|(?:export\s+)?(\w+)(\+?)=\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^"'#][^#]*?|)\s*(?:\s#.*)?)?"""
)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")


def _reads(root: ConfigNode) -> bool:
    if (script := root.value.get(SCRIPT)) is not None:
        return script.value == ENV
    return {"model_family", "data_backend_config"} <= {key.lstrip("-") for key in root.value}


JOBS = ForeignJobs(_reads, _Reader)
