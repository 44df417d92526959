"""A training config of OneTrainer (JSON), with its concepts and samples -> a job.

Source: OneTrainer, commit 23df383 (modules/util/config, modules/util/create.py, modules/util/optimizer_util.py,
modules/modelSetup/mixin/ModelSetupNoiseMixin.py, modules/modelSetup/BaseQwenSetup.py, training_presets/QwenImage).
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from extensions.compat.foreign_jobs import ForeignJobs
from extensions.compat.names import NAMES
from extensions.compat.nodes import at, made
from extensions.compat.table_reader import Level, TableReader
from toolkit.config.field_types import PER_PARAMETER_OPTIMIZERS
from toolkit.config.located import ConfigNode, show

DTYPES = {"BFLOAT_16": "bfloat16", "FLOAT_16": "float16", "FLOAT_32": "float32", "TFLOAT_32": "float32"}
QTYPES = {
    "FLOAT_8": "float8",
    "FLOAT_W8A8": "float8",
    "INT_8": "int8",
    "INT_W8A8": "int8",
    "NFLOAT_4": "int4",
    **dict.fromkeys(DTYPES),
    "NONE": None,
}
"""`weight_dtype` -> `model.qtype`; None: as it is computed in."""

OPTIMIZERS = {
    "ADAMW": "adamw",
    "ADAM": "adam",
    "SGD": "sgd",
    "RMSPROP": "rmsprop",
    "LION": "lion",
    "MUON": "muon",
    "ADAMW_8BIT": "adamw8bit",
    "ADAM_8BIT": "adam8bit",
    "LION_8BIT": "lion8bit",
    "AdEMAMix_8BIT": "ademamix8bit",
    "ADAFACTOR": "adafactor",
    "PRODIGY": "prodigy",
    "SCHEDULE_FREE_ADAMW": "schedulefree_adamw",
}
"""`optimizer.optimizer` -> ours; the others are not here."""

WEIGHT_DECAY = {"adafactor": 0.0, "prodigy": 0.0, "sgd": 0.0, "rmsprop": 0.0, "adam": 0.0, "adam8bit": 0.0}
"""Of optimizers with another default than 0.01 there."""

OF_OPTIMIZER = {"weight_decay": "weight_decay", "eps": "eps", "momentum": "momentum", "d_coef": "d_coef"}
"""Parameters that mean the same; betas are taken by hand."""

SCHEDULES = {
    "CONSTANT": "constant_with_warmup",
    "LINEAR": "linear",
    "COSINE": "cosine",
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts",
}
LAYERS = {"attn-mlp": "attn,img_mlp,txt_mlp", "attn-only": "attn", "blocks": "transformer_block", "full": ""}
"""`layer_filter_preset` -> `layer_filter`."""

FOLDERS = ("DIFFUSERS", "INTERNAL")
"""`output_model_format` of whole models that is a folder; all others are one file with the transformer."""

KINDS = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr"}
"""`peft_type` -> ours."""

SAMPLES = "training_samples/samples.json"
"""Where its page keeps what is generated, which not every config that it writes comes with."""

PUBLISHED_BLOCKS = 60

UNITS = {"STEP": "every", "EPOCH": "every_n_epochs"}
TIMES = ("SECOND", "MINUTE", "HOUR")
CONCEPT = re.compile(
    "name|path|seed|enabled|type|include_subdirectories|(image|text)_variations|balancing(_strategy)?|loss_weight|"
    "concept_stats|image|text|__version|repeats"
)
OTHER_PARTS = re.compile(
    "(unet|prior|text_encoder_[234]|effnet_encoder|decoder\\w*|unconditional_transformer|quantization|embedding\\w*|"
    "additional_embeddings|bundle_additional_embeddings|preserve_embedding_norm|oft_\\w+|lokr_\\w+|vb_loss_strength|"
    "rescale_noise_\\w+|force_\\w+|text_encoder\\w+|frames|generalized_offset_noise|normalize_masked_area_loss|"
    "masked_prior_preservation_weight|unmasked_probability|loss_weight_strength|huber_delta|scheduler_params|"
    "custom_learning_rate_scheduler|learning_rate_cycles|lora_decompose_\\w+|weight_dtype|lora_weight_dtype|"
    "include_train_config|optimizer_defaults|sample_\\w+_format|sample_skip_first|save_skip_first)"
)
"""Keys of other models, of methods that are not chosen, and of no consequence for what is trained."""

HOUSEKEEPING = re.compile(
    "__version|debug_\\w+|cache_dir|huggingface_cache_dir|offline_mode|tensorboard\\w*|samples_to_tensorboard|"
    "validat\\w+|continue_last_backup|prevent_overwrites|multi_gpu|device_indexes|gradient_reduce_precision|"
    "\\w*fused_gradient_reduce|async_\\w+|output_model_format|latent_caching|clear_cache_before_training|"
    "dataloader_threads|train_device|temp_device|fallback_train_dtype|enable_autocast_cache|only_cache|"
    "attention_mechanism|loss_scaler|cloud|secrets|backup_\\w+|rolling_backup\\w*|non_ema_sampling|"
    "save_filename_prefix|aspect_ratio_bucketing|gradient_checkpointing|ema_update_step_interval|workspace_dir"
)


class _Reader(TableReader):
    program = "OneTrainer"
    rows = NAMES["onetrainer", ""]
    by_hand = frozenset(
        [
            "model_type", "training_method", "transformer", "text_encoder", "vae", "concepts", "concept_file_name",
            "samples", "sample_definition_file_name", "output_model_destination", "resolution", "optimizer", "ema",
            "learning_rate_scheduler", "learning_rate_warmup_steps", "learning_rate_min_factor", "train_dtype",
            "output_dtype", "timestep_distribution", "timestep_shift", "dynamic_timestep_shifting", "noising_weight",
            "noising_bias", "min_noising_strength", "max_noising_strength", "layer_filter", "layer_filter_preset",
            "layer_filter_regex", "masked_training", "unmasked_weight", "peft_type", "lora_decompose",
            "learning_rate_scaler", "sample_after", "sample_after_unit", "save_every", "save_every_unit", "compile",
            "aspect_ratio_bucketing",
        ]
    )  # fmt: skip
    silent = re.compile(f"{HOUSEKEEPING.pattern}|{OTHER_PARTS.pattern}")

    def output(self) -> ConfigNode:
        node = self.given.get("output_model_destination")
        node = node or self.theirs("output_model_destination", "models/model.safetensors")
        return at(node, self.text(node).removesuffix(".safetensors"))

    def read(self) -> None:
        self.put_all()
        self._model()
        self._network()
        self._noise()
        self._training()
        self._outputs()
        self.process["datasets"] = self._datasets()

    # ------------------------------------------------------------ what more than the table has to be said of

    def _model(self) -> None:
        kind = self.given.get("model_type") or self.missing("model_type", "QWEN")
        if kind.value not in ("QWEN", "missing"):
            self.diagnostics.error(kind, f"{show(kind)} cannot be trained here: it is of another family.")
        parts = {name: self.level(self.given.get(name)) for name in ("transformer", "text_encoder", "vae")}
        for name, part in parts.items():
            if (file := part.get("model_name")) and file.value:
                self.set(f"model.{name}_path", file)
        if (trained := parts["text_encoder"].get("train")) and trained.value is True:
            self.diagnostics.warn(trained, "has no effect: the text encoder is never trained.")
        for name, end in (("transformer", ""), ("text_encoder", "_te")):
            kept = parts[name].get("weight_dtype")
            if kept is not None and (qtype := self.choice(kept, QTYPES)):
                self.set(f"model.quantize{end}", at(kept, True))
                self.set(f"model.qtype{end}", at(kept, qtype))
                if kept.value == "NFLOAT_4":
                    self.diagnostics.warn(kept, "weights in nf4 are int4 here: 4 bits with a scale per 128 inputs.")
        if (rate := parts["transformer"].get("learning_rate")) is not None:
            self.set("train.lr", rate)
        checks = parts["transformer"].get("gradient_checkpointing")
        self.set("train.gradient_checkpointing", checks or self.default("gradient_checkpointing", True))

    def _blocks(self) -> int:
        """Blocks of the transformer."""
        folder = self.given.get("base_model_name")
        config = Path(self.text(folder) if folder else "").expanduser() / "transformer" / "config.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(config.read_text("utf-8"))["num_layers"])
        return PUBLISHED_BLOCKS

    def _trains_adapter(self) -> bool:
        method = self.given.get("training_method")
        return method is not None and method.value == "LORA"

    def _network(self) -> None:
        method = self.given.get("training_method") or self.theirs("training_method", "FINE_TUNE")
        full = self.choice(method, {"LORA": False, "FINE_TUNE": True})
        if full:
            self.process["network"] = {"type": at(method, "full")}
            self.defaults = {key: value for key, value in self.defaults.items() if not key.startswith("lora_")}
            form = self.given.get("output_model_format")
            if form is None or form.value not in FOLDERS:
                self.set("save.layout", at(form or method, "single_file"))
        elif (kind := self.given.get("peft_type")) and (name := self.choice(kind, KINDS)):
            self.set("network.type", at(kind, name))
            if name == "lokr":
                self._lokr()
        if (decompose := self.given.get("lora_decompose")) and decompose.value is True and not full:
            self.set("network.type", at(decompose, "dora"))
        preset, layers = self.given.get("layer_filter_preset"), self.given.get("layer_filter")
        if preset is not None and str(preset.value) in LAYERS:
            layers = at(preset, LAYERS[str(preset.value)])
        pattern = self.given.get("layer_filter_regex")
        words = [word.strip() for word in self.text(layers).split(",") if word.strip()] if layers else []
        if not words and not full:
            place = layers or self.default("layer_filter", "")
            self.diagnostics.warn(place, "all layers of the blocks are trained; there a few outside of them too.")
        elif layers and pattern is not None and pattern.value is True:
            self.diagnostics.error(pattern, "is not read. Write network.include_patterns in a job of ours.")
        elif layers and words != [LAYERS["blocks"]]:
            self.set("network.network_kwargs.only_if_contains", [at(layers, word) for word in words])

    def _lokr(self) -> None:
        self.set("network.linear", self.given.get("lokr_dim") or self.theirs("lokr_dim", 16))
        for key, ours in (("lokr_decompose_factor", "factor"), ("lokr_full_matrix", "lokr_full_rank")):
            if key in self.given:
                self.set(f"network.{ours}", self.given[key])
        for key in ("lokr_decompose_both", "lokr_weight_decompose"):
            if _on(self.given, key):
                self.diagnostics.error(self.given[key], f"{key} is not supported. Leave it out.")

    def _noise(self) -> None:
        drawn = self.given.get("timestep_distribution") or self.theirs("timestep_distribution", "UNIFORM")
        ours = self.choice(drawn, {"UNIFORM": "uniform", "LOGIT_NORMAL": "sigmoid"})
        shift, dynamic = self.given.get("timestep_shift"), _on(self.given, "dynamic_timestep_shifting")
        if ours == "uniform" and (dynamic or (shift is not None and shift.value != 1)):
            self.diagnostics.error(drawn, f"{show(drawn)} is not supported with a shift. Write LOGIT_NORMAL.")
        elif dynamic:
            ours = "qwen_shift"
        elif shift is not None and shift.value != 1:
            ours = "shift"
            self.set("train.discrete_flow_shift", shift)
        self.set("train.timestep_type", at(drawn, ours or "sigmoid"))
        bias, weight = self.given.get("noising_bias"), self.given.get("noising_weight")
        if bias is not None and bias.value not in (0, None):
            self.diagnostics.error(bias, f"{show(bias)} is not supported. Leave it out, or set timestep_shift.")
        if weight is not None and isinstance(weight.value, int | float) and weight.value and ours != "uniform":
            self.set("train.sigmoid_scale", at(weight, weight.value + 1))
        for key, place in (("min_noising_strength", "min_timestep"), ("max_noising_strength", "max_timestep")):
            node = self.given.get(key)
            if node is not None and isinstance(node.value, int | float):
                self.set(f"train.{place}", at(node, 1000 * node.value))

    def _training(self) -> None:
        part = self.level(self.given.get("optimizer"))
        name = part.get("optimizer") or self.theirs("optimizer", "ADAMW")
        ours = self.choice(name, OPTIMIZERS) or "adamw"
        self.set("train.optimizer", at(name, ours))
        known = self.level(self.level(self.given.get("optimizer_defaults")).get(str(name.value))) | part
        decay = self.default("weight_decay", WEIGHT_DECAY.get(ours, 0.01))
        parameters: dict[str, Any] = {"weight_decay": decay} if ours != "adafactor" else {}
        parameters |= {OF_OPTIMIZER[key]: known[key] for key in OF_OPTIMIZER.keys() & known.keys()}
        if ours == "adafactor":
            parameters.pop("eps", None)  # of the square: theirs and ours are the same
            parameters |= {key: made(name, False) for key in ("relative_step", "scale_parameter", "warmup_init")}
        elif "beta1" in known and "beta2" in known:
            parameters["betas"] = [known["beta1"], known["beta2"]]
        self.set("train.optimizer_params", parameters)
        self._memory(ours, known)
        schedule = self.given.get("learning_rate_scheduler") or self.default("learning_rate_scheduler", "CONSTANT")
        self.set("train.lr_scheduler", at(schedule, self.choice(schedule, SCHEDULES) or "constant"))
        least = self.given.get("learning_rate_min_factor")
        if least is not None and least.value not in (0, None):
            self.diagnostics.error(least, f"{show(least)} is not supported. Leave it out.")
        warmup = self.given.get("learning_rate_warmup_steps") or self.theirs("learning_rate_warmup_steps", 200)
        steps = warmup.value if isinstance(warmup.value, int | float) else 0
        each = self.given.get("gradient_accumulation_steps")
        count = each.value if each is not None and isinstance(each.value, int) and each.value > 0 else 1
        self.set("train.lr_warmup_steps", at(warmup, int(steps / count) if steps > 1 else max(0, steps)))
        scaled = self.given.get("learning_rate_scaler")
        if scaled is not None and scaled.value not in ("NONE", None):
            self.diagnostics.error(scaled, f"{show(scaled)} is not supported. Write the learning rate that it gives.")
        for key, place, default in (
            ("train_dtype", "train.dtype", "FLOAT_16"),
            ("output_dtype", "save.dtype", "FLOAT_32"),
        ):
            node = self.given.get(key) or self.theirs(key, default)
            self.set(place, at(node, self.choice(node, DTYPES) or "bfloat16"))
        average = self.given.get("ema")
        if average is not None and self.choice(average, {"OFF": False, "GPU": True, "CPU": True}):
            self.set("train.ema_config.use_ema", at(average, True))
            if "ema_decay" not in self.given:
                self.set("train.ema_config.ema_decay", self.theirs("ema_decay", 0.999))
        else:
            self.process.get("train", {}).pop("ema_config", None)

    def _memory(self, optimizer: str, parameters: Level) -> None:
        """Weights that wait in main memory; of a whole model those in bf16, updated within the backward pass."""
        part = self.level(self.given.get("transformer"))
        kept, fused = part.get("weight_dtype") or self.given.get("weight_dtype"), parameters.get("fused_back_pass")
        swaps = self._trains_adapter()
        if not swaps and optimizer in PER_PARAMETER_OPTIMIZERS:
            if kept is not None and kept.value == "BFLOAT_16":
                self.set("train.full_bf16", at(kept, True))
            if fused is not None and fused.value is True:
                self.set("train.fused_backward_pass", fused)
                swaps = self.process["train"].get("gradient_accumulation", fused).value == 1
        moved = part.get("offload_fraction")
        if moved is not None and isinstance(moved.value, int | float) and moved.value:
            blocks = self._blocks()
            if swaps:
                self.set("model.blocks_to_swap", at(moved, min(round(blocks * moved.value), blocks - 1)))
            done = "is a share of the {} blocks here: model.blocks_to_swap."
            not_done = "has no effect: what is trained leaves the device with ADAFACTOR or ADAMW and fused_back_pass."
            self.diagnostics.warn(moved, done.format(blocks) if swaps else not_done)

    def _outputs(self) -> None:
        self.set("save.save_every", self.default("save_every", 0))
        self._interval("save_every", "save_every_unit", "NEVER", "save.save")
        file = self.given.get("sample_definition_file_name")
        if file is not None and file.value == SAMPLES and not os.path.isfile(SAMPLES):
            self.diagnostics.warn(
                self.given.pop("sample_definition_file_name"), f"{SAMPLES!r} is not here: no samples."
            )
        listed = self._list("samples", "sample_definition_file_name", SAMPLES)
        wanted = [self.level(item) for item in listed]
        samples = [item for item in wanted if "enabled" not in item or item["enabled"].value is not False]
        if not samples:
            self.set("train.disable_sampling", made(self.root, True))
            return
        for key, value in (("sample_steps", 25), ("guidance_scale", 3.5), ("neg", "")):
            self.set(f"sample.{key}", self.default(key, value))
        self._interval("sample_after", "sample_after_unit", "MINUTE", "sample.sample")
        self.set("sample.samples", [self._sample(item) for item in samples])

    def _sample(self, item: Level) -> dict[str, Any]:
        names = {
            "prompt": "prompt", "negative_prompt": "neg", "width": "width", "height": "height",
            "diffusion_steps": "sample_steps", "cfg_scale": "guidance_scale",
        }  # fmt: skip
        sample: dict[str, Any] = {ours: item[key] for key, ours in names.items() if key in item}
        sample |= {side: self.default(side, 1024) for side in ("width", "height") if side not in sample}
        sample["seed"] = item.get("seed") or self.default("seed", 42)
        return sample

    def _interval(self, key: str, unit_key: str, unit: str, place: str) -> None:
        """How often something is done, by steps or epochs."""
        node, unit_node = self.given.get(key), self.given.get(unit_key) or self.default(unit_key, unit)
        if unit_node.value == "NEVER" or (node is None and unit == "NEVER"):
            self.set(f"{place}_every", self.default(key, 0))
        elif unit_node.value in TIMES:
            message = "is a time: images and files are made by steps here, every 250. Write STEP or EPOCH."
            self.diagnostics.warn(self.given.get(unit_key) or self.root, f"{unit_key} {unit_node.value} {message}")
            self.set(f"{place}_every", self.default(key, 250))
        elif end := self.choice(unit_node, UNITS):
            self.set(f"{place}_{end}", node or self.default(key, 10))

    # ------------------------------------------------------------ concepts

    def _list(self, key: str, file_key: str, default: str) -> list[ConfigNode]:
        """The entries of a list in the config, or of its file; none where neither is given."""
        listed, file = self.given.get(key), self.given.get(file_key)
        if listed is None and (file is not None or os.path.isfile(default)):
            root = self.file(file or self.theirs(file_key, default), key)
            listed = root and root.value.get(key, root)
        if listed is not None and not isinstance(listed.value, list):
            self.diagnostics.error(listed, "is not a list.")
            return []
        return self.tables(listed)

    def _datasets(self) -> list[Any]:
        concepts = self._list("concepts", "concept_file_name", "training_concepts/concepts.json")
        used = [item for item in concepts if not _is(item, "enabled", False)]
        datasets = [self._dataset(item) for item in used if self._is_trained(item)]
        return datasets or [{"folder_path": self.missing("concepts", "the images")}]

    def _is_trained(self, item: ConfigNode) -> bool:
        kind = item.value.get("type")
        if kind is None or kind.value == "STANDARD":
            return True
        if self.choice(kind, {"VALIDATION": 1, "PRIOR_PREDICTION": 2}) == 2:
            self.diagnostics.error(kind, "is not supported. Leave the concept out, or give it as is_reg in a job.")
        else:
            self.diagnostics.warn(kind, "the concept is left out: write 'validation' in a job of ours.")
        return False

    def _dataset(self, item: ConfigNode) -> dict[str, Any]:
        given = self.level(item)
        for key, node in given.items():
            if not CONCEPT.fullmatch(key):
                self.diagnostics.error(node, f"unknown key of a concept of {self.program}.", at_key=True)
        image, text = self.level(given.get("image")), self.level(given.get("text"))
        dataset: dict[str, Any] = {"folder_path": given.get("path") or self.missing("path", "a folder of images", item)}
        repeats = given.get("balancing") or given.get("repeats") or self.default("balancing", 1)
        count = repeats.value if isinstance(repeats.value, int | float) else 1
        if count != int(count) or count < 1:
            self.diagnostics.error(repeats, f"{show(repeats)} is not supported. Write a whole number.")
        dataset["num_repeats"] = at(repeats, int(max(count, 1)))
        if (strategy := given.get("balancing_strategy")) is not None and strategy.value != "REPEATS":
            self.diagnostics.error(strategy, f"{show(strategy)} is not supported. Write REPEATS and a number of them.")
        if (weight := given.get("loss_weight")) is not None:
            dataset["loss_multiplier"] = weight
        size = self.given.get("resolution") or self.theirs("resolution", "512")
        if _on(image, "enable_resolution_override"):
            size = image.get("resolution_override") or size
        dataset["resolution"] = self._size(size)
        dropped = self.level(self.given.get("text_encoder")).get("dropout_probability")
        if dropped is not None and dropped.value:
            self.diagnostics.warn(dropped, "is a share of captions that are empty; there their embeddings are zeros.")
            dataset["caption_dropout_rate"] = dropped
        for key, node in image.items():
            if key == "enable_random_flip" and node.value is True:
                dataset["flip_x"] = node
                self.diagnostics.warn(node, "each image is used as it is and mirrored here: twice as many uses.")
            elif key.startswith(("enable_random", "enable_fixed")) and node.value is True:
                self.diagnostics.error(node, f"{key} is not supported. Leave it out.")
        source = text.get("prompt_source")
        if source is not None and source.value != "sample":
            remedy = "Write .txt files beside the images ('run.py caption' does)."
            self.diagnostics.error(source, f"captions by {show(source)} are not read here. {remedy}")
        if _on(text, "enable_tag_shuffling"):
            dataset |= {"shuffle_tokens": text["enable_tag_shuffling"], "keep_tokens": text.get("keep_tags_count")}
        for key in ("tag_dropout_enable", "caps_randomize_enable"):
            if _on(text, key):
                self.diagnostics.error(text[key], f"{key} is not supported. Leave it out.")
        if _on(self.given, "masked_training"):
            dataset["mask_suffix"], dataset["mask_optional"] = "-masklabel", True
            dataset["mask_min_value"] = self.given.get("unmasked_weight") or self.theirs("unmasked_weight", 0.1)
        return dataset

    def _size(self, node: ConfigNode) -> Any:
        sizes = [re.fullmatch(r"\s*(\d+)(?:x(\d+))?\s*", word) for word in self.text(node).split(",")]
        if not all(sizes):
            self.diagnostics.error(node, f"{show(node)} is not a size. Write 512, 512,768 or 512x768.")
            return at(node, 512)
        if len(sizes) > 1:
            self.diagnostics.warn(node, "each image is used at each of the sizes here: as many times more per epoch.")
        is_square = _is(self.root, "aspect_ratio_bucketing", False)
        made_of: list[Any] = [
            {"width": at(node, int(size[2] or size[1])), "height": at(node, int(size[1]))}
            if size[2] or is_square
            else at(node, int(size[1]))
            for size in sizes
            if size
        ]
        return made_of if len(made_of) > 1 else made_of[0]


def _is(item: ConfigNode, key: str, value: Any) -> bool:
    node = item.value.get(key)
    return node is not None and node.value is value


def _on(level: Level, key: str) -> bool:
    return key in level and level[key].value is True


def _reads(root: ConfigNode) -> bool:
    return {"model_type", "training_method"} <= root.value.keys() or {
        "model_type",
        "base_model_name",
    } <= root.value.keys()


JOBS = ForeignJobs(_reads, _Reader)
