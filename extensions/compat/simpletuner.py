"""A `config.json` of SimpleTuner with the list of datasets that it names, as a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extensions.compat.foreign_jobs import ForeignJobs
from extensions.compat.nodes import at, entries
from extensions.compat.shapes import read_pairs
from extensions.compat.trainer_file import ByTable, Level, level_of
from toolkit.config.reading.located import ConfigNode, show

MARKS = frozenset({"model_family", "data_backend_config"})

FLAVOURS = {
    "v1.0": "Qwen/Qwen-Image",
    "v2.0": "Qwen/Qwen-Image-2512",
    "edit-v1": "Qwen/Qwen-Image-Edit",
    "edit-v2": "Qwen/Qwen-Image-Edit-2509",
    "edit-v2+": "Qwen/Qwen-Image-Edit-2509",
    "edit-v3": "Qwen/Qwen-Image-Edit-2511",
}
DEFAULT_FLAVOUR = "v2.0"

QTYPES = {
    "int8-quanto": "int8", "int4-quanto": "int4", "int2-quanto": "int2", "fp8-quanto": "float8",
    "int8-torchao": "int8", "fp8-torchao": "float8", "nf4-bnb": "int4",
}  # fmt: skip

OPTIMIZERS = {
    "adamw_bf16": "adamw", "optimi-adamw": "adamw", "torch-adamw": "adamw", "bnb-adamw": "adamw",
    "bnb-adamw8bit": "adamw8bit", "ao-adamw8bit": "adamw8bit", "optimi-lion": "lion", "bnb-lion": "lion",
    "bnb-lion8bit": "lion8bit", "optimi-stableadamw": "stableadamw", "bnb-ademamix8bit": "ademamix8bit",
    "adamw_schedulefree": "schedulefree_adamw",
}  # fmt: skip
"""Theirs -> ours, where the name is another."""

OF_LYCORIS = {
    "algo": "type",
    "linear_dim": "linear",
    "linear_alpha": "linear_alpha",
    "factor": "factor",
}
"""Key of the file of `lycoris_config` -> of `network`."""

SHARED = (
    "resolution", "resolution_type", "instance_prompt", "caption_strategy",
    "caption_dropout_probability",
)  # fmt: skip
"""Keys of the config that a dataset has where it does not say another value."""


class _Reader(ByTable):
    whose = "SimpleTuner"

    def by_hand(self) -> ConfigNode:
        self._model()
        self._network()
        self._train()
        for place, default, *keys in (
            ("save.save_every", 500, "checkpoint_step_interval", "checkpointing_steps"),
            (
                "sample.sample_every",
                100,
                "validation_step_interval",
                "validation_steps",
            ),
        ):
            key = next((key for key in keys if key in self.given), keys[0])
            self.put(place, key, self.value(key, default))
        self._samples()
        node = self.given.get("data_backend_config") or self.given.get(
            "dataloader_config"
        )
        if node is None:
            self.need("data_backend_config", "the file with the datasets")
        else:
            self._datasets(node)
        folder = self.value("output_dir", "output/lora")
        return self.name_and_folder("output_dir", str(folder))

    def _model(self) -> None:
        flavour = self.value("model_flavour", DEFAULT_FLAVOUR)
        key = "pretrained_model_name_or_path"
        key = key if self.value(key) else "model_flavour"
        model = self.value("pretrained_model_name_or_path") or FLAVOURS.get(flavour)
        if model is None:
            self.refuse(self.given[key], f"is none of {', '.join(FLAVOURS)}.")
        self.put("model.name_or_path", key, model or FLAVOURS[DEFAULT_FLAVOUR])
        self.quantized("base_model_precision", QTYPES)
        self.quantized("text_encoder_1_precision", QTYPES, "_te")

    def _network(self) -> None:
        network = self.process["network"]
        if self.value("model_type", "lora") == "full":
            self.put("network", "model_type", {"type": at(self.root, "full")})
        elif self.value("lora_type", "standard") == "lycoris":
            node = self.given.get("lycoris_config")
            given = self.file_of(node, "") if node is not None else {}
            network = {
                ours: given[key] for key, ours in OF_LYCORIS.items() if key in given
            }
            if node is None:
                self.need("lycoris_config", "the file of the LyCORIS network")
            for key in (
                given.keys() - OF_LYCORIS.keys() - {"multiplier", "apply_preset"}
            ):
                message = "is an unknown key of a network, and is left out."
                self.diagnostics.warn(given[key], message)
            self.process["network"] = {"type": "lokr", **network}
        elif self.value("use_dora"):
            self.put("network.type", "use_dora", "dora")

    def _train(self) -> None:
        train = self.process["train"]
        for key in ("steps", "epochs"):
            if key in train and train[key].value == 0:
                del train[key]
        kind = self.value("optimizer", "adamw_bf16")
        params = train.setdefault("optimizer_params", {})
        if kind.startswith("optimi-adamw"):
            for name, value in (("betas", [0.9, 0.99]), ("weight_decay", 0.0)):
                params.setdefault(name, self.their(name, value))
        self.put("train.optimizer", "optimizer", OPTIMIZERS.get(kind, kind))
        for first in ("adam_beta", "optimizer_beta"):
            self.betas(f"{first}1", f"{first}2")
        pairs = self.given.get("optimizer_config")
        if pairs is not None and not pairs.is_blank:
            split = at(pairs, str(pairs.value).replace(",", " "))
            params |= read_pairs(split, self.diagnostics).value
        norm = self.value("max_grad_norm", 2.0)
        by_norm = self.value("grad_clip_method", "value") == "norm"
        self.put("train.max_grad_norm", "max_grad_norm", norm if by_norm else 0)
        uniform = self.value("flow_use_uniform_schedule")
        shift = self.value("flow_schedule_shift", 3.0)
        levels = "uniform" if uniform else "sigmoid"
        key = "flow_use_uniform_schedule" if uniform else "flow_schedule_shift"
        self.shifted(key, None if uniform else shift, levels)

    def _samples(self) -> None:
        prompts = (
            [self.given["validation_prompt"]] if self.value("validation_prompt") else []
        )
        library = self.given.get("user_prompt_library")
        if library is not None and not library.is_blank:
            prompts += self.file_of(library, "prompts").values()
        self.prompts([{"prompt": prompt} for prompt in prompts])
        resolution = self.value("validation_resolution")
        if resolution is not None:
            sides = str(resolution).split(",")[0].lower().split("x")
            if all(side.strip().isdigit() for side in sides):
                self.put("sample.width", "validation_resolution", int(sides[0]))
                self.put("sample.height", "validation_resolution", int(sides[-1]))
            else:
                self.refuse(self.given["validation_resolution"], "is not a size.")

    # ------------------------------------------------------------ datasets

    def _datasets(self, node: ConfigNode) -> None:
        file = self.file_of(node, "datasets")
        listed = file.get("datasets")
        items = listed.value if listed and isinstance(listed.value, list) else []
        by_id = {
            str(item.child("id").value): item
            for item in items
            if entries(item).get("id")
        }
        shared = {key: self.given[key] for key in SHARED if key in self.given}
        for item in items:
            given = {**shared, **level_of(item)}
            kind = given["dataset_type"].value if "dataset_type" in given else "image"
            off = given.get("disabled") or given.get("disable")
            if kind == "image" and not (off and off.value):
                self._dataset(given, by_id)
        if not self.process.get("datasets") and file:
            self.need("instance_data_dir", "the folder of at least one dataset")

    def _dataset(self, given: Level, by_id: Mapping[str, ConfigNode]) -> None:
        dataset: dict[str, Any] = {}
        self.process.setdefault("datasets", []).append(dataset)
        self.read("dataset", given, dataset)
        plain = {key: node.data() for key, node in given.items()}
        if "instance_data_dir" not in plain:
            self.diagnostics.mark(
                ("config", "process", 0, "datasets", 0, "folder_path")
            )
            dataset["folder_path"] = given["type"]
        if "repeats" in given:
            dataset["num_repeats"] = at(given["repeats"], plain["repeats"] + 1)
        strategy = plain.get("caption_strategy", "filename")
        if strategy == "filename":
            dataset["caption_from_name"] = True
        elif strategy == "instanceprompt" and "instance_prompt" in given:
            dataset["default_caption"] = given["instance_prompt"]
        elif strategy == "textfile" and not plain.get("disable_multiline_split"):
            dataset["captions"] = at(given["caption_strategy"], "lines")
        elif strategy not in ("textfile", "instanceprompt"):
            remedy = (
                "is not here. Write each image's caption beside it, and 'textfile'."
            )
            self.refuse(given["caption_strategy"], remedy)
        if plain.get("prepend_instance_prompt") and "instance_prompt" in given:
            dataset["caption_prefix"] = given["instance_prompt"]
        self._references(given, by_id, dataset)
        if "resolution" in given:
            self._size(given["resolution"], plain, dataset)

    def _references(
        self, given: Level, by_id: Mapping[str, ConfigNode], dataset: dict[str, Any]
    ) -> None:
        """The folders of the datasets that `conditioning_data` names."""
        named = given.get("conditioning_data")
        if named is None:
            return
        controls = []
        for name in named.value if isinstance(named.value, list) else [named]:
            other = entries(by_id.get(str(name.value)))
            folder = other.get("instance_data_dir")
            if folder is None:
                self.refuse(named, f"names no dataset with a folder: {show(name)}.")
                continue
            self.look_for(folder)
            kind = other.get("conditioning_type")
            if kind is not None and kind.value == "mask":
                dataset["mask_path"] = folder
            else:
                controls.append(folder)
        if controls:
            dataset["control_path"] = controls

    def _size(
        self, node: ConfigNode, plain: Mapping[str, Any], dataset: dict[str, Any]
    ) -> None:
        """The side of the area; of a square with `crop`."""
        size = node.value
        if not isinstance(size, int | float) or isinstance(size, bool) or size <= 0:
            self.refuse(node, "is not a size. Write pixels, or megapixels.")
            return
        if plain.get("resolution_type") == "area":  # in megapixels
            size = 1024 * size**0.5
        side = at(node, round(size))
        square = plain.get("crop") and plain.get("crop_aspect", "square") == "square"
        area = at(node, {"width": side, "height": side}) if square else side
        dataset["resolution"] = area


def _reads(root: ConfigNode) -> bool:
    return not MARKS.isdisjoint(key.lstrip("-") for key in root.value)


FILES = ForeignJobs(_reads, _Reader, _Reader.whose)
