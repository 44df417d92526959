"""`FolderFamily`: a family whose sizes follow from the config files of a model folder
and the headers of its weights.

Where the folder does not exist yet, it returns the sizes of the published model. It
also reads the scheduler's time shift, and checks that the parts of a folder fit
together. It loads no weights. The families in `qwen_image` and `qwen_image21` derive
from `FolderFamily`. The planner, sampling and the family of new models use the
functions. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from toolkit.config.sections.model_files import local_index, read_model_json
from toolkit.contracts.data import Size
from toolkit.contracts.model import DynamicShift, ModelSection
from toolkit.contracts.network_kinds import ActivationUnits
from toolkit.errors import UserError
from toolkit.files.safetensors_io import tensor_sizes
from toolkit.models.families import (
    PATCHES_PER_TOKEN,
    EncoderSize,
    ModelFamily,
    ModelSizeInfo,
    TextLayers,
)
from toolkit.models.template import IMAGE_PAD
from toolkit.number_types import QTYPE_BYTES


class VaeTensors(NamedTuple):
    """The most tensors of the VAE's width that are in memory while it works in bands,
    counted on fake tensors.

    >>> BANDED_VAE.encode_band > BANDED_VAE.encode
    True
    """

    encode: float
    """Tensors of the image's size."""

    decode: float
    encode_band: float
    """Tensors of a band's size, in addition."""

    decode_band: float


BANDED_VAE = VaeTensors(0.72, 0.72, 5.2, 3.8)
"""For AutoencoderKLQwenImage in bands. The whole image is in memory only at the size of
the middle block."""

BYTES_PER_WEIGHT: Mapping[str | None, float] = {None: 2.0} | QTYPE_BYTES
"""By `model.qtype`; None: not quantized."""

OF_TEXT_LAYERS = re.compile(
    r"(?:model\.)?(?:language_model\.)?layers\.\d+\..*_proj\.weight"
)
MOST_LAYERS, WIDEST = 1000, 10**5
"""With larger values a config counts as damaged."""

TOKENIZER_FILES = "tokenizer.json|vocab.json tokenizer.json|merges.txt"
PROCESSOR_FILES = "preprocessor_config.json|processor_config.json"
"""Processor files of `ModelFacts.parts`."""

_AGAIN = "Copy or download the model again."

Shapes = dict[str, tuple[int, int]]
"""Name of a linear layer -> (inputs, outputs)."""


class FolderFamily(ModelFamily):
    """See `ModelFamily`. A subclass gives the layers of its transformer as functions of
    the transformer's config.

    Example::

        family = FAMILIES.load("qwen_image_2")  # a FolderFamily
        config = family.transformer_config(folder)
        shapes = family.block_linears(width_of(config), config)
    """

    published_transformer: Mapping[str, int]
    """Config of the published transformer: the keys that are sizes, with `num_layers`
    among them."""

    text_width_key: str
    """The key of the transformer's config that has the width of text features."""

    published_text: EncoderSize
    published_text_sizes: tuple[int, int]
    """`hidden_size` and `intermediate_size` of the published text encoder."""

    published_text_layers: int
    published_vision: Mapping[str, Any]
    """The sizes in `vision_config` of the published text encoder."""

    published_vae: EncoderSize
    published_vae_width: int
    """Channels of the published VAE at full resolution (`base_dim`)."""

    published_vae_config: Mapping[str, Any]
    """The keys of its config that decide its weights, which `vae_weights` reads."""

    vae_tensors: VaeTensors = BANDED_VAE
    """Tensors that its VAE keeps in memory."""

    biases: bool
    """Whether the linear layers have biases."""

    modulation_pattern: str = "(?!)"
    """Pattern of the full names of the linear layers whose outputs the modulation cache
    can hold. The default fits no name."""

    scales_references: bool = False
    """Whether control images are scaled to `model_kwargs.reference_area`; otherwise
    they have the target's size."""

    keeps_length: bool = True
    """Whether guidance restores the length of each token of the conditional
    prediction."""

    text_tokens: int
    text_tokens_per_reference: int
    encoder_token_pixels: int = 0
    activation_units: Mapping[str, ActivationUnits] = MappingProxyType({})
    """See `ModelSizeInfo`."""

    @abstractmethod
    def prompt_fault(
        self,
        folder: Path,
        prompt: str,
        target: Size,
        references: Sequence[Size],
        area: int,
    ) -> str | None:
        """A message where a prompt is too long with these control images. None where it
        fits, and where the model's tokenizer does not exist (yet).

        references: pixels of the images as they are. area: see `reference_size`.
        """

    def prompt_error(
        self, model: ModelSection, prompt: str, target: Size, references: Sequence[Size]
    ) -> str | None:
        index = local_index(model.name_or_path, model.revision)
        if index is None:
            return None
        return self.prompt_fault(
            index.parent,
            prompt,
            target,
            references,
            model.model_kwargs.reference_area(),
        )

    def shift(self, shift: DynamicShift, is_dynamic: bool) -> DynamicShift:
        """The time shift of the model's sampler. shift: from its scheduler's config.
        is_dynamic: whether it depends on the size."""
        return shift

    @abstractmethod
    def block_linears(self, width: int, config: Mapping[str, int]) -> Shapes:
        """The linear layers of one block of this hidden size, by their names in the
        block."""

    @abstractmethod
    def outer_linears(self, width: int, config: Mapping[str, int]) -> Shapes:
        """The linear layers of the transformer outside of its blocks."""

    @abstractmethod
    def norms(self, config: Mapping[str, int]) -> dict[str, int]:
        """The modules with weights that are not linear layers: name -> number of
        weights. A module whose name starts with a dot is in each block."""

    def transformer_config(self, folder: Path) -> dict[str, int]:
        """The sizes in the transformer's config. Raises UserError for an impossible
        value."""
        part = folder / "transformer"
        published = self.published_transformer
        given = part_config(part)
        config = {key: given.get(key, value) for key, value in published.items()}
        if config["out_channels"] is None:  # as diffusers reads it
            config["out_channels"] = config["in_channels"]
        for key, value in config.items():
            most = MOST_LAYERS if key == "num_layers" else WIDEST
            if type(value) is not int or not 1 <= value <= most:
                expected = f"a whole number from 1 to {most}"
                raise UserError(
                    f"{part / 'config.json'}: {key}: {value!r} is not {expected}. {_AGAIN}"
                )
        return config

    def config_error(self, folder: Path) -> str:
        try:
            self.transformer_config(folder)
            dynamic_shift(folder)
            self._check_joints(folder)
        except UserError as error:
            return str(error)
        return ""

    def _check_joints(self, folder: Path) -> None:
        """Raises UserError where the output of one part does not fit the input of the
        next: one of them belongs to another model."""
        transformer = self.transformer_config(folder)
        text = text_config(folder)
        vae = part_config(folder / "vae")
        latents = vae.get("z_dim", 0)
        pixels = self.pixel_channels * (vae.get("patch_size") or 1) ** 2
        path = folder / "processor" / "preprocessor_config.json"
        image = read_model_json(path) if path.is_file() else {}
        if not path.is_file():
            path = folder / "processor" / "processor_config.json"
            whole = read_model_json(path) if path.is_file() else {}
            image = whole.get("image_processor") or {}
        vision = text.get("vision_config") or {}
        config = folder / "transformer" / "config.json"
        for place, key, has, other, wants in (
            (
                config,
                self.text_width_key,
                transformer[self.text_width_key],
                "text encoder",
                text.get("hidden_size"),
            ),
            (
                config,
                "in_channels",
                transformer["in_channels"],
                "VAE",
                latents * self.patch**2,
            ),
            (config, "out_channels", transformer["out_channels"], "VAE", latents),
            (
                folder / "vae" / "config.json",
                "in_channels",
                vae.get("in_channels"),
                "pipeline",
                pixels,
            ),
            (
                path,
                "patch_size",
                image and image.get("patch_size", 14),
                "text encoder",
                vision.get("patch_size"),
            ),
        ):
            if has and wants and has != wants:
                raise UserError(
                    f"{place}: {key}: {has!r}, and the {other} of this model has {wants!r}. {_AGAIN}"
                )
        kind = str(image.get("image_processor_type", "VLImageProcessor"))
        if "VLImageProcessor" not in kind:
            raise UserError(
                f"{path}: image_processor_type: {kind!r} is of another model than the text encoder. {_AGAIN}"
            )
        part = folder / ("tokenizer" if "tokenizer" in self.parts else "processor")
        if vision and not any(
            IMAGE_PAD in file.read_text(encoding="utf-8")
            for file in part.glob("*.json")
        ):
            raise UserError(
                f"{part}: has no token {IMAGE_PAD}, so is of another model than the text encoder. {_AGAIN}"
            )

    def linear_layers(self, folder: Path) -> Shapes:
        config = self.transformer_config(folder)
        shapes = self.block_linears(width_of(config), config)
        blocks = range(config["num_layers"])
        return {
            f"transformer_blocks.{index}.{name}": shape
            for index in blocks
            for name, shape in shapes.items()
        }

    def every_linear_layer(self, folder: Path) -> Shapes:
        config = self.transformer_config(folder)
        return self.outer_linears(width_of(config), config) | self.linear_layers(folder)

    def modules(self, folder: Path) -> dict[str, int]:
        config = self.transformer_config(folder)
        counts = {
            name: (inputs + self.biases) * outputs
            for name, (inputs, outputs) in self.every_linear_layer(folder).items()
        }
        blocks = [f"transformer_blocks.{i}" for i in range(config["num_layers"])]
        for name, count in self.norms(config).items():
            places = blocks if name.startswith(".") else [""]
            counts |= {place + name: count for place in places}
        return counts

    def weight_shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        linears = self.every_linear_layer(folder)
        shapes: dict[str, tuple[int, ...]] = {
            f"{name}.weight": (o, i) for name, (i, o) in linears.items()
        }
        shapes |= {
            f"{name}.bias": (o,) for name, (_, o) in linears.items() if self.biases
        }
        norms = self.modules(folder).items()
        return shapes | {
            f"{name}.weight": (count,) for name, count in norms if name not in linears
        }

    def encoder_weights(self, part: str, folder: Path) -> dict[str, tuple[int, ...]]:
        from toolkit.models.encoder_weights import text_encoder_weights, vae_weights

        config = part_config(folder / part)
        if part == "text_encoder":
            return text_encoder_weights(
                config, self.published_text_layers, self.published_text_sizes[0]
            )
        return vae_weights(config, self.published_vae_config)

    def block_count(self, folder: Path) -> int:
        return self.transformer_config(folder)["num_layers"]

    def footprint(self, folder: Path) -> ModelSizeInfo:
        layers = self.linear_layers(folder)
        all_modules = self.modules(folder)
        weights = {name: inputs * outputs for name, (inputs, outputs) in layers.items()}
        tabulated = {
            name: count
            for name, count in weights.items()
            if re.fullmatch(self.modulation_pattern, name)
        }
        of_text = text_config(folder)
        width, inner = self.published_text_sizes
        text_width = of_text.get("hidden_size", width)
        text_inner = of_text.get("intermediate_size", inner)
        text = self.published_text
        vae = self.published_vae
        text_layer = EncoderSize(text.linear_params // self.published_text_layers, 0)
        for part in ("text_encoder", "vae"):
            stored = {
                name: count
                for path in sorted((folder / part).glob("*.safetensors"))
                for name, count in tensor_sizes(path).items()
            }
            if stored and part == "vae":
                vae = EncoderSize(linear_params=0, other_params=sum(stored.values()))
            elif stored:
                text, text_layer = text_size(stored), text_layer_size(stored)
        vision = {**self.published_vision, **(of_text.get("vision_config") or {})}
        patch_width = vision["hidden_size"]
        patch_inner = vision["intermediate_size"]
        merged = PATCHES_PER_TOKEN * patch_width
        text_layers = TextLayers(
            largest=text_layer,
            largest_linear=text_width * text_inner,
            token_numbers=3 * text_inner + 8 * text_width,
            vision=merged * (merged + text_width),
            patch_numbers=1.15 * (3 * patch_inner + 8 * patch_width),
            patch_waits=max(patch_width, 6 * vision["patch_size"] ** 2),
            image_token_numbers=len(vision["deepstack_visual_indexes"]) * text_width,
        )
        vae_width = part_config(folder / "vae").get(
            "base_dim", self.published_vae_width
        )
        return ModelSizeInfo(
            width=next(iter(layers.values()))[0],
            blocks=self.block_count(folder),
            linear_params=sum(weights.values()),
            other_params=sum(all_modules.values()) - sum(weights.values()),
            largest_layer=max(weights.values()),
            largest_of_tokens=max(
                count for name, count in weights.items() if name not in tabulated
            ),
            modulation_layers=frozenset(tabulated),
            tabulated_weights=sum(tabulated.values()),
            table_inputs=frozenset(
                name for name in all_modules if name.startswith("time_text_embed.")
            ),
            text=text,
            vae=vae,
            encode_numbers=self.vae_tensors.encode * vae_width,
            decode_numbers=self.vae_tensors.decode * vae_width,
            encode_band_numbers=self.vae_tensors.encode_band * vae_width,
            decode_band_numbers=self.vae_tensors.decode_band * vae_width,
            text_token_numbers=text_layers.token_numbers,
            text_width=text_width,
            pixels_per_token=self.token_side**2,
            scales_references=self.scales_references,
            text_tokens=self.text_tokens,
            text_tokens_per_reference=self.text_tokens_per_reference,
            encoder_token_pixels=self.encoder_token_pixels,
            activation_units=self.activation_units,
            bytes_per_weight=BYTES_PER_WEIGHT,
            stacks_layers=self.stacks_layers,
            text_layers=text_layers,
        )


def width_of(config: Mapping[str, int]) -> int:
    """The hidden size of a transformer with this config.

    >>> width_of({"num_attention_heads": 24, "attention_head_dim": 128})
    3072
    """
    return config["num_attention_heads"] * config["attention_head_dim"]


def part_config(part: Path) -> dict[str, Any]:
    """The config of a part. Empty where it does not exist yet. Raises UserError when it
    cannot be read."""
    path = part / "config.json"
    return read_model_json(path) if path.is_file() else {}


def text_config(folder: Path) -> dict[str, Any]:
    """The config of the text encoder, with the keys of its language model at the top
    level."""
    config = part_config(folder / "text_encoder")
    return config | (config.get("text_config") or {})


def text_size(stored: Mapping[str, int]) -> EncoderSize:
    """Size of a text encoder. stored: name of each weight -> number of elements.

    >>> text_size({"model.layers.0.mlp.up_proj.weight": 8, "lm_head.weight": 4})
    EncoderSize(linear_params=8, other_params=0, unused=4)
    """
    unused = sum(count for name, count in stored.items() if name.startswith("lm_head"))
    linears = sum(
        count for name, count in stored.items() if OF_TEXT_LAYERS.fullmatch(name)
    )
    return EncoderSize(linears, sum(stored.values()) - linears - unused, unused)


def text_layer_size(stored: Mapping[str, int]) -> EncoderSize:
    """Size of one layer of a text encoder with these weights. Norms and biases, which
    are small, do not count."""
    numbers = {
        name.partition("layers.")[2].partition(".")[0]
        for name in stored
        if OF_TEXT_LAYERS.fullmatch(name)
    }
    return EncoderSize(text_size(stored).linear_params // max(1, len(numbers)), 0)


def with_single_files(facts: ModelSizeInfo, files: Mapping[str, Path]) -> ModelSizeInfo:
    """The sizes of a model folder, where single files replace encoders.

    files: part -> file. For a missing or damaged file the folder's size stays: other
    rules report it.
    """
    from toolkit.models.single_file import shapes_of, stored_weights, text_encoder_name

    for part, file in files.items():
        with suppress(UserError):
            stored = stored_weights(shapes_of(file), text_encoder_name)
            counts = {name: math.prod(one.shape) for name, one in stored.items()}
            if part == "text_encoder":
                layers = facts.text_layers and replace(
                    facts.text_layers, largest=text_layer_size(counts)
                )
                facts = replace(facts, text=text_size(counts), text_layers=layers)
            elif part == "vae":
                facts = replace(
                    facts,
                    vae=EncoderSize(linear_params=0, other_params=sum(counts.values())),
                )
    return facts


def size_of_area(area: int, aspect: float, multiple: int = 32) -> Size:
    """The size of about `area` pixels with aspect ratio width / height, sides rounded
    to this multiple.

    Source: diffusers, pipeline_qwenimage_edit_plus.py, `calculate_dimensions`.

    >>> str(size_of_area(1024 * 1024, aspect=16 / 9))
    '1376x768'
    """
    width = math.sqrt(area * aspect)
    height = width / aspect
    return Size(
        *(max(1, round(side / multiple)) * multiple for side in (width, height))
    )


def reference_size(image: Size, target: Size, area: int) -> Size:
    """The size in which VAE and transformer see a control image. Its own aspect ratio
    is kept.

    area: pixels; 0: the number of pixels of the target.

    >>> str(reference_size(Size(1600, 1600), target=Size(768, 768), area=0))
    '768x768'
    """
    return size_of_area(
        area or target.width * target.height, image.width / image.height
    )


SCHEDULER: Mapping[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "time_shift_type": "exponential",
    "num_train_timesteps": 1000,
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
"""Keys of a scheduler_config.json -> the only value that samples can be made with. An
absent key has this value too."""


def dynamic_shift(folder: Path, family: FolderFamily | None = None) -> DynamicShift:
    """The sampler's time shift from scheduler/scheduler_config.json, with diffusers'
    defaults for absent keys.

    family: may change the shift (`FolderFamily.shift`). Raises UserError for an
    impossible value, or one that samples cannot be made with.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    defaults = {
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    }
    config = read_model_json(path)
    for key, value in SCHEDULER.items():
        given = config.get(key, value)
        if given != value:
            what = (
                f"{json.dumps(given)}: samples are made with {json.dumps(value)} alone"
            )
            raise UserError(
                f"{path}: {key}: {what}. Copy the file of the published model."
            )
    values = {key: config.get(key, default) for key, default in defaults.items()}
    values["shift_terminal"] = config.get("shift_terminal") or None
    shift = config.get("shift", 1.0)
    for key, value in (*values.items(), ("shift", shift)):
        absent = value is None and key == "shift_terminal"
        if not absent and (type(value) not in (int, float) or not math.isfinite(value)):
            raise UserError(f"{path}: {key}: {value!r} is not a number. {_AGAIN}")
    if values["base_image_seq_len"] == values["max_image_seq_len"]:
        raise UserError(
            f"{path}: base_image_seq_len and max_image_seq_len are equal. {_AGAIN}"
        )
    if shift <= 0:
        raise UserError(f"{path}: shift: {shift!r} is not above 0. {_AGAIN}")
    is_dynamic = bool(config.get("use_dynamic_shifting"))
    if not is_dynamic:  # one shift for every size
        values["base_shift"] = values["max_shift"] = math.log(shift)
    dynamic = DynamicShift(**values)
    return family.shift(dynamic, is_dynamic) if family else dynamic
