"""`DiffusersFamily`: a family of a transformer, a VAE and a text encoder in diffusers
layout, whose sizes follow from the headers of their weights and their config files.

Where the folder does not exist yet, it returns the sizes of the published model. It
also reads the scheduler's time shift, and checks that the parts of a folder fit
together. It loads no weights. Families derive from it; those of Qwen-Image by
`qwen_family`. The planner, sampling and the family of new models use the functions.
Imports no torch.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from pydantic import BaseModel, ValidationError, create_model

from toolkit.config.sections.model_files import read_model_json
from toolkit.contracts.data import Size
from toolkit.contracts.model import LORA_SPELLINGS, DynamicShift
from toolkit.contracts.network_kinds import KINDS, ActivationUnits
from toolkit.errors import UserError, did_you_mean
from toolkit.files.safetensors_io import tensor_shapes, tensor_sizes
from toolkit.files.unreadable import AGAIN
from toolkit.models.families import (
    EncoderSize,
    ModelFamily,
    ModelSizeInfo,
    TextLayers,
)
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

WHOLE_VAE = VaeTensors(5.1, 6.1, 0, 0)
"""For AutoencoderKL, which sees the whole image at once."""

BYTES_PER_WEIGHT: Mapping[str | None, float] = {None: 2.0} | QTYPE_BYTES
"""By `model.qtype`; None: not quantized."""

OF_TEXT_LAYERS = re.compile(
    r"(?:model\.)?(?:language_model\.)?layers\.\d+\..*_proj\.weight"
)
OF_VISION = re.compile(r"(?:model\.)?visual\..*")
TOKENIZER_FILES = "tokenizer.json|vocab.json tokenizer.json|merges.txt"
PROCESSOR_FILES = "preprocessor_config.json|processor_config.json"
"""Processor files of `ModelFacts.parts`."""

FACTS_PAGE = "docs/extending.md has the table of facts."

Shapes = dict[str, tuple[int, int]]
"""Name of a linear layer -> (inputs, outputs)."""


class Joint(NamedTuple):
    """Where two parts of a model folder have to fit.

    >>> Joint(Path("config.json"), "text_dim", 64, "text encoder", 48).fits()
    False
    """

    file: Path
    key: str
    has: Any
    other: str
    """The part that it has to fit, in words."""

    wants: Any

    def fits(self) -> bool:
        """Whether both are equal, or one of them is not known."""
        return not (self.has and self.wants) or self.has == self.wants


class Qwen3Texts:
    """The facts of Qwen3-4B, the text encoder of several families, by its config. Its
    head is the table of its tokens. A class of a family names it before its base.

    >>> Qwen3Texts.published_text_layers
    36
    """

    published_text = EncoderSize(3_633_315_840, 389_152_256)
    published_text_sizes = (2560, 9728)
    published_text_layers = 36


class DiffusersFamily(ModelFamily):
    """See `ModelFamily`. All sizes of the transformer follow from the names and shapes
    of its weights. A subclass gives the facts; those without a default are the numbers
    that no file says before the model is downloaded.

    Example::

        class ThingFamily(DiffusersFamily):
            arch, title = "thing", "Thing"
            block_lists = ("layers",)
            shapes_file = Path(__file__).with_name("shapes.json")
    """

    parts: Mapping[str, str] = {
        **dict.fromkeys(("transformer", "vae", "text_encoder"), "config.json"),
        "tokenizer": f"{TOKENIZER_FILES} tokenizer_config.json",
        "scheduler": "scheduler_config.json",
    }
    weight_parts = ("transformer", "vae", "text_encoder")
    encoder_parts: Mapping[str, Sequence[str]] = {
        "vae": ("vae",),
        "text_encoder": ("text_encoder", "tokenizer"),
    }
    text_sees_references = False

    shapes_file: Path
    """The weights of the published transformer, as
    `toolkit.models.diffusers_model.write_shapes` writes them by `size`, and the memory
    of its blocks."""

    text_width_key: str
    """The key of the transformer's config that has the width of text features."""

    text_taps: Sequence[int] = (-1,)
    """Hidden states of the text encoder that are the text features, one beside the
    other: 0 is its input, 1 the output of its first layer; negative ones count from the
    last. The final norm is not applied to any but -1."""

    text_length: int = 512
    """The most tokens of a prompt with its template; what follows is cut off."""

    thinks: bool = False
    """Whether the template leaves room for the text encoder to think."""

    pads_text: bool = False
    """Whether shorter prompts are padded to `text_length`, and the padding seen."""

    text_tokens: int
    """Tokens of the template around a prompt."""

    text_tokens_per_reference: int = 0
    encoder_token_pixels: int = 0
    """See `ModelSizeInfo`."""

    scales_references: bool = False
    """Whether control images are scaled to `model_kwargs.reference_area`; otherwise
    they have the target's size."""

    published_text: EncoderSize
    published_text_sizes: tuple[int, int]
    """`hidden_size` and `intermediate_size` of the published text encoder."""

    published_text_layers: int
    published_vae: EncoderSize
    published_vae_width: int = 128
    """Channels of the published VAE at full resolution."""

    vae_tensors: VaeTensors = WHOLE_VAE
    """Tensors that its VAE keeps in memory."""

    modulation_pattern: str = "(?!)"
    """Pattern of the full names of the linear layers whose outputs the modulation cache
    can hold. The default fits no name."""

    def __init__(self) -> None:
        """Raises UserError for facts that are missing, misspelt or impossible."""
        if faults := " ".join([*self._faults()] or self._impossible()):
            kind = f"{type(self).__module__}.{type(self).__qualname__}"
            raise UserError(f"{kind}: {faults} {FACTS_PAGE}")

    def _faults(self) -> Iterator[str]:
        kinds = type(self).__mro__
        facts = {name for kind in kinds for name in inspect.get_annotations(kind)}
        missing = sorted(name for name in facts if not hasattr(self, name))
        if missing:
            yield f"needs {', '.join(missing)}."
        for kind in kinds:
            for name, value in vars(kind).items():
                known = name in facts or any(
                    hasattr(base, name) for base in kind.__bases__
                )
                # Methods and properties are the family's own.
                if not (known or name.startswith("_") or hasattr(value, "__get__")):
                    hint = did_you_mean(name, facts, list_all=False)
                    yield f"{name!r} is not a fact. {hint or 'Annotate it if it is your own.'}"
        if unnamed := [part for part in self.weight_parts if part not in self.classes]:
            yield f"classes has no {', '.join(unnamed)}."
        if self.lora_spelling not in LORA_SPELLINGS:
            hint = did_you_mean(self.lora_spelling, LORA_SPELLINGS)
            yield f"lora_spelling: {self.lora_spelling!r} is none. {hint}"
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name in facts - {*missing}
            if not hasattr(value := inspect.getattr_static(self, name), "__get__")
        }
        try:
            _fact_types().model_validate(given, strict=True)
        except ValidationError as error:
            for one in error.errors():
                name = str(one["loc"][0])
                yield f"{name}: {given[name]!r}: {one['msg']}."

    def _impossible(self) -> Iterator[str]:
        """Faults of facts that are all there and of their types."""
        if self.size_multiple % self.token_side:
            yield (
                f"size_multiple: {self.size_multiple} is not a multiple of latent_scale times patch, "
                f"{self.token_side}."
            )
        if not self.text_taps:
            yield "text_taps: names no hidden state."
        for name in ("lora_layers", "lora_outside"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                yield f"{name}: {getattr(self, name)!r} is not a pattern: {error}."

    # ------------------------------------------------------------ config files

    def shift(self, shift: DynamicShift, is_dynamic: bool) -> DynamicShift:
        """The time shift of the model's sampler. shift: from its scheduler's config.
        is_dynamic: whether it depends on the size."""
        return shift

    def config_error(self, folder: Path) -> str:
        try:
            dynamic_shift(folder)
            for joint in self.joints(folder):
                if not joint.fits():
                    raise UserError(
                        f"{joint.file}: {joint.key}: {joint.has!r}, and the {joint.other} of this model has "
                        f"{joint.wants!r}. {AGAIN}"
                    )
        except UserError as error:
            return str(error)
        return ""

    def joints(self, folder: Path) -> Iterator[Joint]:
        """Where the output of one part has to fit the input of the next: otherwise one
        of them belongs to another model."""
        config = folder / "transformer" / "config.json"
        wanted = text_config(folder).get("hidden_size")
        has = part_config(folder / "transformer").get(self.text_width_key)
        yield Joint(config, self.text_width_key, has, "text encoder", wanted)

    def prompt_note(self, folder: Path, prompt: str) -> str | None:
        most = self.text_length - self.text_tokens
        file = folder / "tokenizer" / "tokenizer.json"
        if len(prompt.encode("utf-8", "replace")) <= most or not file.is_file():
            return None
        from tokenizers import Tokenizer

        count = len(Tokenizer.from_file(str(file)).encode(prompt).ids)
        if count <= most:
            return None
        return cut_note(count, most)

    # ------------------------------------------------------------ the transformer

    def weight_shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted((folder / self.trained_part).glob("*.safetensors")):
            shapes |= tensor_shapes(path)
        if not shapes:
            shapes = published_shapes(self._written_shapes(), self.size)
        return dict(sorted(shapes.items(), key=lambda one: self.place_of(one[0])))

    def every_linear_layer(self, folder: Path) -> Shapes:
        return {
            name.removesuffix(".weight"): (shape[1], shape[0])
            for name, shape in self.weight_shapes(folder).items()
            if name.endswith(".weight") and len(shape) == 2
        }

    def linear_layers(self, folder: Path) -> Shapes:
        layers = self.every_linear_layer(folder).items()
        return {name: shape for name, shape in layers if self.place_of(name)[0] >= 0}

    def modules(self, folder: Path) -> dict[str, int]:
        counts: dict[str, int] = {}
        for name, shape in self.weight_shapes(folder).items():
            module = name.rpartition(".")[0]
            counts[module] = counts.get(module, 0) + math.prod(shape)
        return counts

    def block_count(self, folder: Path) -> int:
        return len(self.block_names(folder))

    # ------------------------------------------------------------ the whole model

    def footprint(self, folder: Path) -> ModelSizeInfo:
        layers = self.linear_layers(folder)
        modules = self.modules(folder)
        weights = {name: inputs * outputs for name, (inputs, outputs) in layers.items()}
        tabulated = {
            name: count
            for name, count in weights.items()
            if re.fullmatch(self.modulation_pattern, name)
        }
        widths = Counter(inputs for inputs, _ in layers.values())
        of_text = text_config(folder)
        hidden, inner = self.published_text_sizes
        hidden = of_text.get("hidden_size", hidden)
        inner = of_text.get("intermediate_size", inner)
        text, vae = (stored_sizes(folder / part) for part in ("text_encoder", "vae"))
        of_vae = part_config(folder / "vae")
        vae_width = (
            of_vae.get("base_dim")
            or of_vae.get("block_out_channels", [self.published_vae_width])[0]
        )
        return ModelSizeInfo(
            width=widths.most_common(1)[0][0],
            blocks=self.block_count(folder),
            linear_params=sum(weights.values()),
            other_params=sum(modules.values()) - sum(weights.values()),
            largest_layer=max(weights.values()),
            largest_of_tokens=max(
                count for name, count in weights.items() if name not in tabulated
            ),
            modulation_layers=frozenset(tabulated),
            tabulated_weights=sum(tabulated.values()),
            table_inputs=frozenset(
                name for name in modules if name.startswith("time_text_embed.")
            ),
            text=self._used_text(
                text_size(text, self.text_sees_references)
                if text
                else self.published_text,
                of_text,
            ),
            vae=EncoderSize(0, sum(vae.values())) if vae else self.published_vae,
            encode_numbers=self.vae_tensors.encode * vae_width,
            decode_numbers=self.vae_tensors.decode * vae_width,
            encode_band_numbers=self.vae_tensors.encode_band * vae_width,
            decode_band_numbers=self.vae_tensors.decode_band * vae_width,
            text_token_numbers=3 * inner + 8 * hidden,
            text_width=len(self.text_taps) * hidden,
            pixels_per_token=self.token_side**2,
            scales_references=self.scales_references,
            text_tokens=self.text_length if self.pads_text else self.text_tokens,
            text_tokens_per_reference=self.text_tokens_per_reference,
            encoder_token_pixels=self.encoder_token_pixels,
            activation_units=self.activation_units,
            bytes_per_weight=BYTES_PER_WEIGHT,
            stacks_layers=self.stacks_layers,
            text_layers=self.text_layers(hidden, inner, text, of_text),
        )

    @property
    def activation_units(self) -> Mapping[str, ActivationUnits]:
        """See `ModelSizeInfo`."""
        return published_units(self._written_shapes())

    def size_fault(self) -> str:
        if not self.shapes_file.is_file():
            kind = self.classes.get(self.trained_part)
            arguments = (
                f"Path({str(self.shapes_file)!r}), {kind!r}, {list(self.block_lists)}"
            )
            return (
                f"{self.shapes_file}: not written yet. In the program's folder: python -c \"from pathlib import Path; "
                f"from toolkit.models.diffusers_model import write_shapes; write_shapes({arguments}, "
                "published=dict())\" with the arguments of the transformer's config.json in dict(). See "
                "docs/extending.md, 'A model family'."
            )
        try:
            sizes = _published(self.shapes_file)["sizes"]
        except (ValueError, KeyError):
            return f"{self.shapes_file}: not as write_shapes writes it. Delete it, and write it again."
        if self.size and self.size not in sizes:
            return f"{self.shapes_file} has no size {self.size!r}. {did_you_mean(self.size, sizes)}"
        return ""

    def _written_shapes(self) -> Path:
        """`shapes_file`. Raises UserError where it has not the sizes."""
        if fault := self.size_fault():
            raise UserError(fault)
        return self.shapes_file

    def text_layers(
        self,
        width: int,
        inner: int,
        stored: Mapping[str, int],
        config: Mapping[str, Any],
    ) -> TextLayers | None:
        """The sizes of the text encoder's layers, for one that is read layer by layer;
        None: it is always loaded whole. stored: name of each weight on the disk ->
        number of elements. config: of the text encoder."""
        return None

    def used_text_layers(self, layers: int) -> int:
        """How many of the layers of the text encoder are used: behind the last of
        `text_taps` none."""
        return max(tap if tap >= 0 else layers + 1 + tap for tap in self.text_taps)

    def _used_text(self, text: EncoderSize, config: Mapping[str, Any]) -> EncoderSize:
        layers = config.get("num_hidden_layers", self.published_text_layers)
        share = 1 - self.used_text_layers(layers) / layers
        dropped = int(text.linear_params * share)
        return EncoderSize(
            text.linear_params - dropped, text.other_params, text.unused + dropped
        )


@cache
def _fact_types() -> type[BaseModel]:
    """A model with a field for each fact, of its type here or in a base of
    `DiffusersFamily`."""
    hints = get_type_hints(DiffusersFamily).items()
    facts: dict[str, Any] = {name: (kind, None) for name, kind in hints}
    return create_model("Facts", **facts)


def cut_note(count: int, most: int | None) -> str:
    """The note on a prompt of so many tokens, of which the model gets `most`."""
    cut = f"{count:,} text tokens, of which the model gets the first {most}"
    return f"{cut}, as in its own pipeline. Shorten the text."


@lru_cache(maxsize=32)
def _published(file: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def published_shapes(file: Path, size: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of each weight of a transformer in a `shapes_file`: `*` in a name
    stands for the number of a block, of which `blocks` has the count."""
    sizes = _published(file)["sizes"]
    entry = sizes[size or next(iter(sizes))]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in entry["weights"].items():
        blocks = name.partition(".*.")[0]
        for index in range(entry["blocks"].get(blocks, 1)):
            shapes[name.replace("*", str(index), 1)] = tuple(shape)
    return shapes


def published_units(file: Path) -> dict[str, ActivationUnits]:
    """The units in a `shapes_file` by `network.type`. Other kinds have those of `KINDS`,
    and what a LoRA has beyond its own there."""
    rows = _published(file).get("units", {})
    units = {}
    for kind in KINDS if rows else ():
        usual = KINDS[kind].units
        pairs: dict[str, Any] = {key: tuple(p) for key, p in rows.get(kind, {}).items()}
        for key, pair in rows["lora"].items() if not pairs else ():
            if base := getattr(usual, key):
                of_lora = getattr(KINDS["lora"].units, key)
                pairs[key] = tuple(map(_moved, base, pair, of_lora))
        units[kind] = replace(usual, **pairs)
    return units


def _moved(value: float, given: float, usual: float) -> float:
    return value + given - usual


def stored_sizes(part: Path) -> dict[str, int]:
    """Name and number of elements of each weight of a part, by the headers of its
    files; empty where it has none yet."""
    return {
        name: count
        for path in sorted(part.glob("*.safetensors"))
        for name, count in tensor_sizes(path).items()
    }


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


def text_size(stored: Mapping[str, int], sees_images: bool = True) -> EncoderSize:
    """Size of a text encoder. stored: name of each weight -> number of elements.
    sees_images: otherwise its vision tower is freed.

    >>> text_size({"model.layers.0.mlp.up_proj.weight": 8, "lm_head.weight": 4})
    EncoderSize(linear_params=8, other_params=0, unused=4)
    """
    unused = sum(
        count
        for name, count in stored.items()
        if name.startswith("lm_head") or (not sees_images and OF_VISION.fullmatch(name))
    )
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


def dynamic_shift(folder: Path, family: DiffusersFamily | None = None) -> DynamicShift:
    """The sampler's time shift from scheduler/scheduler_config.json, with diffusers'
    defaults for absent keys.

    family: may change the shift (`DiffusersFamily.shift`). Raises UserError for an
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
            raise UserError(f"{path}: {key}: {value!r} is not a number. {AGAIN}")
    if values["base_image_seq_len"] == values["max_image_seq_len"]:
        raise UserError(
            f"{path}: base_image_seq_len and max_image_seq_len are equal. {AGAIN}"
        )
    if shift <= 0:
        raise UserError(f"{path}: shift: {shift!r} is not above 0. {AGAIN}")
    is_dynamic = bool(config.get("use_dynamic_shifting"))
    if not is_dynamic:  # one shift for every size
        values["base_shift"] = values["max_shift"] = math.log(shift)
    dynamic = DynamicShift(**values)
    return family.shift(dynamic, is_dynamic) if family else dynamic
