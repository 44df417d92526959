"""A config or preset of OneTrainer, in JSON, with its concepts and samples, as a
job."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from extensions.compat.foreign_jobs import ForeignJobs
from extensions.compat.nodes import at, node_at, tree
from extensions.compat.trainer_file import ByTable, Level, level_of
from toolkit.config.reading.located import ConfigNode

MARKS = (
    frozenset({"model_type", "training_method"}),
    frozenset({"model_type", "base_model_name"}),
)

QTYPES = {
    "FLOAT_8": "float8", "FLOAT_W8A8": "float8", "INT_8": "int8", "INT_W8A8": "int8",
    "NFLOAT_4": "int4",
}  # fmt: skip

OPTIMIZERS = {
    "ADAMW_8BIT": "adamw8bit", "ADAM_8BIT": "adam8bit", "LION_8BIT": "lion8bit",
    "SCHEDULE_FREE_ADAMW": "schedulefree_adamw", "PRODIGY_PLUS_SCHEDULE_FREE": "prodigyplus",
}  # fmt: skip
"""Theirs -> ours, where it is not the same in small letters."""

UNITS = {"EPOCH": "_n_epochs", "STEP": ""}


class _Reader(ByTable):
    whose = "OneTrainer"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        kind = self.value("optimizer.optimizer", "ADAMW")
        usual = f"optimizer_defaults.{kind}."
        for key, node in [*self.given.items()]:
            if key.startswith(usual):
                self.given.setdefault(f"optimizer.{key.removeprefix(usual)}", node)

    def trains_adapter(self) -> bool:
        return bool(self.value("training_method", "FINE_TUNE") == "LORA")

    def by_hand(self) -> ConfigNode:
        self.quantized("transformer.weight_dtype", QTYPES)
        self.quantized("text_encoder.weight_dtype", QTYPES, "_te")
        share = self.value("transformer.offload_fraction", 0)
        if share:
            of_blocks = "model.layer_offloading_transformer_percent"
            self.put("model.layer_offloading", "transformer.offload_fraction", True)
            self.put(of_blocks, "transformer.offload_fraction", share)
        self._network()
        self._train()
        self._every("save_every", "save_every", "save.save_every", 0, "NEVER")
        self._every("sample_after", "sample", "sample.sample_every", 10, "MINUTE")
        self._samples()
        concepts = self.listed("concepts", "concept_file_name")
        for concept in concepts:
            self._concept(level_of(concept), concept)
        if not self.process.get("datasets"):
            self.need("concepts", "the images, as 'concepts' or 'concept_file_name'")
        key = "output_model_destination"
        name = self.name_and_folder(key, self.value(key, "models/lora"))
        return at(name, PurePath(name.value).stem)

    def _network(self) -> None:
        method = self.value("training_method", "FINE_TUNE")
        kind = self.value("peft_type", "LORA")
        kind = "dora" if self.value("lora_decompose") else kind.lower()
        key = "peft_type"
        if method != "LORA":
            key, kind = "training_method", "full"
            self.process["network"] = {}
        if method not in ("LORA", "FINE_TUNE"):
            self.refuse(self.given[key], "is not here. Write 'LORA' or 'FINE_TUNE'.")
        self.put("network.type", key, kind)
        parts = [part.strip() for part in self.value("layer_filter", "").split(",")]
        pattern = self.value("layer_filter_regex")
        place = "include_patterns" if pattern else "network_kwargs.only_if_contains"
        if any(parts):
            self.put(
                f"network.{place}", "layer_filter", [part for part in parts if part]
            )

    def _train(self) -> None:
        kind = self.value("optimizer.optimizer", "ADAMW")
        ours = OPTIMIZERS.get(kind, kind.lower())
        self.put("train.optimizer", "optimizer.optimizer", ours)
        self.betas("optimizer.beta1", "optimizer.beta2")
        warmup = self.value("learning_rate_warmup_steps", 200)
        if warmup > 1:  # batches; up to 1 a share of all steps, as here
            warmup = round(warmup / (self.value("gradient_accumulation_steps", 1) or 1))
        self.put("train.lr_warmup_steps", "learning_rate_warmup_steps", warmup)
        kind = self.value("timestep_distribution", "UNIFORM")
        if kind not in ("UNIFORM", "LOGIT_NORMAL"):
            remedy = "is not here. Write 'LOGIT_NORMAL' or 'UNIFORM'."
            self.refuse(self.given["timestep_distribution"], remedy)
        levels = "sigmoid" if kind == "LOGIT_NORMAL" else "uniform"
        for key in ("noising_weight", "noising_bias"):
            if levels == "sigmoid" and self.value(key):
                self.refuse(self.given[key], "is not here. Write 0.")
        if self.value("dynamic_timestep_shifting"):
            self.put("train.timestep_type", "dynamic_timestep_shifting", "qwen_shift")
        else:
            self.shifted("timestep_shift", self.value("timestep_shift", 1), levels)
        for key in ("min_noising_strength", "max_noising_strength"):
            if key in self.given:
                place = f"train.{key[:3]}_timestep"
                self.put(place, key, 1000 * self.value(key, 0))

    def _every(self, key: str, what: str, place: str, every: int, unit: str) -> None:
        """An interval with its unit: of steps or epochs, or never."""
        unit = self.value(f"{key}_unit", unit)
        every = self.value(key, every)
        if unit in UNITS:
            self.put(f"{place}{UNITS[unit]}", key, every)
            return
        self.put(place, key, 0)
        if unit != "NEVER" and f"{key}_unit" in self.given:
            message = f"{unit} is not here: none at intervals. Write 'EPOCH' or 'STEP'."
            self.diagnostics.warn(self.given[f"{key}_unit"], message)

    def _samples(self) -> None:
        samples = []
        for node in self.listed("samples", "sample_definition_file_name"):
            given = level_of(node)
            sample: dict[str, Any] = {}
            enabled = given.get("enabled")
            if enabled is None or enabled.value:
                self.read("sample", given, sample)
                samples.append(sample["sample"]["samples[]"])
        self.prompts(samples)

    def _concept(self, given: Level, place: ConfigNode) -> None:
        kind = self.value("type", "STANDARD", given)
        off = "enabled" in given and given["enabled"].value is False
        if off or kind not in (
            "STANDARD",
            "PRIOR_PREDICTION",
        ):
            self.diagnostics.warn(place, "is left out: it is off, or not STANDARD.")
            return
        dataset: dict[str, Any] = {"captions": node_at(place, "lines")}
        self.process.setdefault("datasets", []).append(dataset)
        self.read("concept", given, dataset)
        if "path" not in given:
            self.need("path", "the folder of the images")
        source = self.value("text.prompt_source", "sample", given)
        if source == "filename":
            dataset["caption_from_name"] = True
            del dataset["captions"]
        elif source != "sample":
            remedy = "is not here. Write each image's caption beside it, and 'sample'."
            self.refuse(given["text.prompt_source"], remedy)
        repeats = self.value("balancing", 1, given)
        if (
            repeats != int(repeats)
            or self.value("balancing_strategy", "", given) == "SAMPLES"
        ):
            remedy = "is not here: give a whole number, and 'REPEATS'."
            self.refuse(given.get("balancing", place), remedy)
        else:
            dataset["num_repeats"] = max(1, int(repeats))
        if kind == "PRIOR_PREDICTION":
            dataset["is_reg"] = True
        if self.value("masked_training"):
            dataset["mask_suffix"] = at(self.given["masked_training"], "-masklabel")
            dataset["mask_optional"] = True
            dataset["mask_min_value"] = self.value("unmasked_weight", 0.1)
        if self.value("custom_conditioning_image"):
            dataset["control_suffix"] = "-condlabel"
        self._size(given, dataset)

    def _size(self, given: Level, dataset: dict[str, Any]) -> None:
        """`512`, `512,768` or `1024x768`, of which the area counts."""
        key = "image.resolution_override"
        own = (
            self.value("image.enable_resolution_override", None, given) and key in given
        )
        node = given[key] if own else self.given.get("resolution")
        node = self.their("resolution", "512") if node is None else node
        sizes: list[int] = []
        for text in str(node.value).split(","):
            sides = text.strip().lower().split("x")
            if not all(side.strip().isdigit() for side in sides) or len(sides) > 2:
                self.refuse(node, "is not a size. Write 1024, or 1024x768.")
                return
            width, height = int(sides[0]), int(sides[-1])
            sizes.append(round((width * height) ** 0.5))
        dataset["resolution"] = tree(sizes, node)


def _reads(root: ConfigNode) -> bool:
    return any(keys <= root.value.keys() for keys in MARKS)


FILES = ForeignJobs(_reads, _Reader, _Reader.whose)
