"""A `config.json` of SimpleTuner with the list of datasets that it names, as a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extensions.compat.foreign_jobs import ForeignJobs
from extensions.compat.nodes import at, entries, node_at, tree
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
    "full_matrix": "lokr_full_rank",
}
"""Key of the file of `lycoris_config` -> of `network`."""

SHARED = (
    "resolution", "resolution_type", "instance_prompt", "caption_strategy",
    "caption_dropout_probability",
)  # fmt: skip
"""Keys of the config that a dataset has where it does not say another value."""


class _Reader(ByTable):
    whose = "SimpleTuner"

    def trains_adapter(self) -> bool:
        """Not where a file has the network."""
        kinds = self.value("model_type", "lora"), self.value("lora_type", "standard")
        return kinds == ("lora", "standard")

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
        if self.value("report_to") in ("tensorboard", "all"):
            self.put(
                "logging.logging_dir", "logging_dir", self.value("logging_dir", "logs")
            )
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
        if self.value("model_type", "lora") == "full":
            self.process["network"] = {"type": at(self.given["model_type"], "full")}
        elif self.value("lora_type", "standard") == "lycoris":
            node = self.given.get("lycoris_config")
            given = self.file_of(node, "") if node is not None else {}
            network: dict[str, Any] = {
                ours: given[key] for key, ours in OF_LYCORIS.items() if key in given
            }
            if node is None:
                self.need("lycoris_config", "the file of the LyCORIS network")
            known = (*OF_LYCORIS, "multiplier", "apply_preset")
            more = {key: node for key, node in given.items() if key not in known}
            network["network_kwargs"] = more
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
        named = [entries(item).get("conditioning_data") for item in items]
        references = {
            str(name)
            for node in named
            if node is not None and not node.is_blank
            for name in (node.data() if isinstance(node.value, list) else [node.value])
        }
        shared = {key: self.given[key] for key in SHARED if key in self.given}
        for item in items:
            given = {**shared, **level_of(item)}
            kind = given["dataset_type"].value if "dataset_type" in given else "image"
            off = given.get("disabled") or given.get("disable")
            is_reference = "id" in given and str(given["id"].value) in references
            if kind == "image" and not is_reference and not (off and off.value):
                self._dataset(given, item, by_id)
        if not self.process.get("datasets") and file:
            self.need("instance_data_dir", "the folder of at least one dataset")

    def _dataset(
        self, given: Level, place: ConfigNode, by_id: Mapping[str, ConfigNode]
    ) -> None:
        dataset: dict[str, Any] = {}
        self.process.setdefault("datasets", []).append(dataset)
        self.read("dataset", given, dataset)
        if "instance_data_dir" not in given:
            dataset["folder_path"] = node_at(place, ".")
            if self.value("type", "local", given) == "local":
                self.need("instance_data_dir", "the folder of the images")
        if "repeats" in given:
            dataset["num_repeats"] = at(
                given["repeats"], self.value("repeats", 0, given) + 1
            )
        strategy = self.value("caption_strategy", "filename", given)
        if strategy == "filename":
            dataset["caption_from_name"] = True
        elif strategy == "instanceprompt" and "instance_prompt" in given:
            dataset["default_caption"] = given["instance_prompt"]
        elif strategy == "textfile" and not self.value(
            "disable_multiline_split", None, given
        ):
            dataset["captions"] = at(given["caption_strategy"], "lines")
        elif strategy not in ("textfile", "instanceprompt"):
            remedy = (
                "is not here. Write each image's caption beside it, and 'textfile'."
            )
            self.refuse(given["caption_strategy"], remedy)
        if (
            self.value("prepend_instance_prompt", None, given)
            and "instance_prompt" in given
        ):
            dataset["caption_prefix"] = given["instance_prompt"]
        self._references(given, by_id, dataset)
        if "resolution" in given:
            self._size(given, dataset)

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

    def _size(self, given: Level, dataset: dict[str, Any]) -> None:
        """The side of the area; of a square with `crop`."""
        node = given["resolution"]
        size = self.value("resolution", 1024, given)
        if self.value("resolution_type", "", given) == "area":  # in megapixels
            size = 1024 * size**0.5
        side = round(size)
        square = self.value("crop_aspect", "square", given) == "square"
        cropped = square and self.value("crop", None, given)
        area = {"width": side, "height": side} if cropped else side
        dataset["resolution"] = tree(area, node)


def _reads(root: ConfigNode) -> bool:
    return not MARKS.isdisjoint(key.lstrip("-") for key in root.value)


FILES = ForeignJobs(_reads, _Reader, _Reader.whose)
