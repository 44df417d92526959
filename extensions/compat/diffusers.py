"""A command of diffusers' examples/dreambooth/train_dreambooth_lora_qwen_image.py -> a job.

Source: diffusers, commit 58eb52c0 (that file; docs of peft 0.17 on `target_modules`).
"""

from __future__ import annotations

import os
import re
from typing import Any

from extensions.compat.foreign_jobs import SCRIPT, Command, ForeignJobs
from extensions.compat.names import NAMES
from extensions.compat.nodes import at
from extensions.compat.table_reader import TableReader, layer_patterns
from toolkit.config.located import ConfigNode, show

FILE = "train_dreambooth_lora_qwen_image.py"
BY_HAND = frozenset(
    [
        SCRIPT, "bnb_quantization_config_path", "dataset_name", "instance_data_dir", "image_column", "caption_column",
        "repeats", "class_data_dir", "instance_prompt", "class_prompt", "with_prior_preservation", "validation_prompt",
        "final_validation_prompt", "num_validation_images", "validation_epochs", "output_dir", "seed", "resolution",
        "use_aspect_ratio_buckets", "center_crop", "random_flip", "caption_dropout", "num_train_epochs",
        "max_train_steps", "learning_rate", "scale_lr", "lr_warmup_steps", "train_batch_size",
        "gradient_accumulation_steps", "dataloader_num_workers", "optimizer", "use_8bit_adam", "adam_beta1",
        "adam_beta2", "adam_weight_decay", "adam_epsilon", "prodigy_beta3", "lora_layers", "report_to", "logging_dir",
        "mixed_precision", "upcast_before_saving", "prior_loss_weight",
    ]
)  # fmt: skip
SILENT = (
    "pretrained_tokenizer_4_name_or_path", "pretrained_text_encoder_4_name_or_path", "cache_dir", "dataset_config_name",
    "max_sequence_length", "skip_final_inference", "num_class_images", "sample_batch_size", "cache_latents", "offload",
    "local_rank",
)  # fmt: skip
"""Flags of how their program works, not of what is trained."""

LAYERS = "to_k,to_q,to_v,to_out.0"
DTYPES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
SAMPLES = {"sample_steps": 50, "guidance_scale": 1, "width": 1024, "height": 1024}
"""Of validation images: those of its pipeline, which gets no negative prompt, and therefore guides nothing."""


class _Reader(TableReader):
    program = "diffusers"
    rows = NAMES["diffusers", ""]
    by_hand = BY_HAND
    silent = re.compile("|".join(SILENT))

    def output(self) -> ConfigNode:
        return self.given.get("output_dir") or self.theirs("output_dir", "hidream-dreambooth-lora")

    def read(self) -> None:
        self.put_all()
        self._model()
        self._training()
        self._optimizer()
        self._samples()
        self._trackers()
        self.process["datasets"] = self._datasets()

    def _is_on(self, key: str) -> bool:
        return key in self.given and self.given[key].value not in (False, "false", "False", 0)

    def _number(self, key: str, default: int) -> ConfigNode:
        """A positive whole number, or 1 in its place, which is told."""
        node = self.given.get(key) or self.default(key, default)
        if type(node.value) is int and node.value > 0:
            return node
        self.diagnostics.error(node, f"{show(node)} is not a whole number above 0.")
        return at(node, 1)

    # ------------------------------------------------------------ model and training

    def _model(self) -> None:
        if "pretrained_model_name_or_path" not in self.given:
            named = self.missing("pretrained_model_name_or_path", "the model, such as Qwen/Qwen-Image")
            self.set("model.name_or_path", named)
        layers = self.given.get("lora_layers") or self.theirs("lora_layers", LAYERS)
        names = [name.strip() for name in self.text(layers).split(",") if name.strip()]
        self.set("network.include_patterns", [at(layers, each) for each in layer_patterns(names)])
        node = self.given.get("bnb_quantization_config_path")
        root = self.file(node, "config") if node is not None else None
        if node is not None and root is not None:
            bits = [qtype for key, qtype in (("load_in_4bit", "int4"), ("load_in_8bit", "int8")) if _is_true(root, key)]
            if len(bits) != 1:
                self.diagnostics.error(node, f"{show(node)} says neither load_in_4bit nor load_in_8bit.")
            else:
                self.set("model.quantize", at(node, True))
                self.set("model.qtype", at(node, bits[0]))
                if bits == ["int4"]:
                    self.diagnostics.warn(node, "weights in nf4 or fp4 are int4 here, with a scale per 128 inputs.")

    def _training(self) -> None:
        rate = self.given.get("learning_rate") or self.default("learning_rate", 1e-4)
        batch = self.given.get("train_batch_size") or self.theirs("train_batch_size", 4)
        self.set("train.batch_size", batch)
        each = self._number("gradient_accumulation_steps", 1)
        self.set("train.gradient_accumulation", each)
        if self._is_on("scale_lr") and type(rate.value) in (int, float) and type(batch.value) is int:
            rate = at(rate, rate.value * each.value * batch.value)
            self.diagnostics.warn(self.given["scale_lr"], f"the learning rate is {rate.value:g}, as there on one GPU.")
        self.set("train.lr", rate)
        schedule = self.given.get("lr_scheduler")
        warmup = self.given.get("lr_warmup_steps") or self.default("lr_warmup_steps", 500)
        if schedule is None or schedule.value == "constant":  # which knows no warm-up there
            if "lr_warmup_steps" in self.given and warmup.value:
                self.diagnostics.warn(warmup, "has no effect with lr_scheduler constant, as there.")
        else:
            self.set("train.lr_warmup_steps", warmup)
            if "lr_warmup_steps" not in self.given:
                self.defaults["lr_warmup_steps"] = 500
        steps = self.given.get("max_train_steps")
        if steps is not None:
            self.set("train.steps", steps)
        else:
            self.set("train.epochs", self.given.get("num_train_epochs") or self.theirs("num_train_epochs", 1))
        self.set("train.timestep_type", self.theirs("noise levels", "sigma"))
        seed = self.given.get("seed")
        if seed is not None and seed.value == 0:
            self.diagnostics.warn(seed, "0 is a seed there, and a random one here. Take another for a fixed one.")
        self.set("training_seed", seed or self.default("seed", 0))
        kind = self.given.get("mixed_precision") or self.theirs("mixed_precision", "no")
        dtype = self.choice(kind, DTYPES) or "float32"
        self.set("train.dtype", at(kind, dtype))
        upcast = self._is_on("upcast_before_saving")
        self.set(
            "save.dtype", at(self.given["upcast_before_saving"] if upcast else kind, "float32" if upcast else dtype)
        )

    def _optimizer(self) -> None:
        kind = self.given.get("optimizer") or self.default("optimizer", "AdamW")
        is_prodigy = self.text(kind).lower() == "prodigy"
        if not is_prodigy and self.text(kind).lower() != "adamw":
            self.diagnostics.warn(kind, f"{show(kind)} is no optimizer of that script, which then takes AdamW.")
        small = self._is_on("use_8bit_adam") and not is_prodigy
        name = "prodigy" if is_prodigy else "adamw8bit" if small else "adamw"
        self.set("train.optimizer", at(self.given["use_8bit_adam"] if small else kind, name))
        known = {
            key: self.given.get(f"adam_{key}") or self.default(f"adam_{key}", value)
            for key, value in (("weight_decay", 1e-4), ("epsilon", 1e-8), ("beta1", 0.9), ("beta2", 0.999))
        }
        parameters: dict[str, Any] = {"weight_decay": known["weight_decay"], "eps": known["epsilon"]}
        parameters["betas"] = [known["beta1"], known["beta2"]]
        if is_prodigy:
            switches = ("decouple", "use_bias_correction", "safeguard_warmup")
            parameters |= {key: self.default(f"prodigy_{key}", True) for key in switches}
            parameters["beta3"] = self.given.get("prodigy_beta3")
        self.set("train.optimizer_params", parameters)

    def _samples(self) -> None:
        prompt = self.given.get("validation_prompt")
        shown = prompt or self.given.get("final_validation_prompt")
        if shown is None:
            self.set("train.disable_sampling", self.default("validation_prompt", True))
            return
        count = min(self._number("num_validation_images", 4).value, 64)
        self.set("sample.samples", [{"prompt": shown}] * count)
        self.set("sample.walk_seed", self.default("num_validation_images", True))
        self.set("sample.seed", self.given.get("seed") or self.default("seed", 42))
        self.set("sample.sample_every", self.default("validation_epochs", 0))
        self.set("train.skip_first_sample", self.default("validation_epochs", True))
        if prompt is not None:
            epochs = self.given.get("validation_epochs") or self.theirs("validation_epochs", 50)
            self.set("sample.sample_every_n_epochs", epochs)
        for key, value in SAMPLES.items():
            self.set(f"sample.{key}", self.default(key, value))

    def _trackers(self) -> None:
        if self._is_on("push_to_hub") and "hub_model_id" not in self.given:
            self.set("save.hf_repo_id", at(self.given["push_to_hub"], os.path.basename(self.text(self.output()))))
        node = self.given.get("report_to")
        if node is not None and (
            name := self.choice(node, {key: key for key in ("tensorboard", "wandb", "all", "none")})
        ):
            folder = self.given.get("logging_dir") or self.default("logging_dir", "logs")
            if name in ("tensorboard", "all"):
                self.set("logging.logging_dir", at(folder, os.path.join(self.text(self.output()), self.text(folder))))
            if name != "none":
                self.set("logging.log_with", node)
            if name in ("wandb", "all"):
                self.set("logging.wandb_project", self.default("tracker", "dreambooth-qwen-image-lora"))

    # ------------------------------------------------------------ datasets

    def _datasets(self) -> list[Any]:
        named, folder = self.given.get("dataset_name"), self.given.get("instance_data_dir")
        prompt = self.given.get("instance_prompt") or self.missing("instance_prompt", "the caption of the images")
        if named is not None and folder is not None:
            self.diagnostics.error(named, "goes without instance_data_dir. Remove one of them.")
        elif named is not None and not os.path.isdir(os.path.expanduser(self.text(named))):
            remedy = f"Run hf download {self.text(named)} --repo-type dataset --local-dir FOLDER, and give that"
            self.diagnostics.error(named, f"{show(named)} is no folder here, and not loaded from the hub. {remedy}.")
        place = folder or named or self.missing("instance_data_dir", "the folder of the images")
        captioned = named is not None and "caption_column" in self.given
        dataset: dict[str, Any] = {"folder_path": place, "default_caption": prompt}
        if not captioned:
            dataset["caption_ext"] = [self.default("captions", ".instance_prompt")]  # no file: all have the prompt
        dataset["num_repeats"] = self.given.get("repeats") or self.default("repeats", 1)
        dataset["resolution"] = self._size()
        dataset["num_workers"] = self.given.get("dataloader_num_workers")
        dataset["caption_dropout_rate"] = self.given.get("caption_dropout")
        if self._is_on("random_flip"):
            flips = self.given["random_flip"]
            dataset["flip_x"] = at(flips, True)
            self.diagnostics.warn(flips, "each image is used as it is and mirrored here: twice as many uses.")
        if not self._is_on("center_crop") and not self._is_on("use_aspect_ratio_buckets"):
            self.diagnostics.warn(place, "images are cut at their middle here, there by chance without center_crop.")
        return [dataset, *self._of_the_class(dataset)]

    def _of_the_class(self, instance: dict[str, Any]) -> list[Any]:
        if not self._is_on("with_prior_preservation"):
            return []
        folder = self.given.get("class_data_dir") or self.missing("class_data_dir", "the images of the class")
        prompt = self.given.get("class_prompt") or self.missing("class_prompt", "the caption of these images")
        self.set("train.reg_weight", self.given.get("prior_loss_weight") or self.default("prior_loss_weight", 1.0))
        flag = self.given["with_prior_preservation"]
        self.diagnostics.warn(flag, "each image of the class is used once per epoch, and none is generated.")
        own = {"folder_path": folder, "default_caption": prompt, "is_reg": at(flag, True), "num_repeats": 1}
        return [{key: instance[key] for key in ("caption_ext", "resolution") if key in instance} | own]

    def _size(self) -> Any:
        """A square that images are cut to, or with buckets the side of a square of their area."""
        node = self.given.get("resolution") or self.theirs("resolution", 512)
        return node if self._is_on("use_aspect_ratio_buckets") else {"width": node, "height": node}


def _is_true(root: ConfigNode, key: str) -> bool:
    node = root.value.get(key)
    return node is not None and node.value is True


def _reads(root: ConfigNode) -> bool:
    script = root.value.get(SCRIPT)
    return script is not None and script.value == FILE


COMMAND = Command(
    (FILE,),
    sorted({*BY_HAND, *SILENT, *NAMES["diffusers", ""]} - {SCRIPT}),
    texts=re.compile(".*(?:prompt|dir|path|name|_id|column|layers|revision|variant|token|buckets)"),
)
JOBS = ForeignJobs(_reads, _Reader)
