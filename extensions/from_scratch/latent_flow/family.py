"""The family of the models that draw latents of an autoencoder from text: a transformer
of `TRANSFORMERS`, an autoencoder of diffusers, a text encoder of `TEXT_ENCODERS`.

Facts that are constant for a published model differ from folder to folder
(`LatentFlowFamily.of_folder`). `model_index.json` has the classes of the parts,
`prediction` (`ModelFacts.prediction`) and `max_tokens`. Imports no torch and loads no
weights: `model` does.

`toolkit.registry` names the family; `flow_config`, `flow_process`
and the other modules of this folder read it directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from extensions.from_scratch.arguments import MOST_LAYERS, file_fault
from extensions.from_scratch.autoencoder_config import (
    LEVELS,
    latent_channels,
    latent_scale,
)
from toolkit.config.sections.model_files import (
    INDEX,
    ORIGINAL_MODEL,
    quantization_fault,
    read_model_json,
    weight_files,
)
from toolkit.contracts.model import PREDICTIONS
from toolkit.errors import UserError, did_you_mean
from toolkit.files.safetensors_io import tensor_shapes
from toolkit.models.families import EncoderSize, ModelFamily, ModelSizeInfo
from toolkit.models.folder_family import BYTES_PER_WEIGHT
from toolkit.registry import Registry

_ADAPTERS = "extensions.from_scratch.latent_flow.transformers"

TRANSFORMERS = Registry(
    "transformer",
    {
        "SD3Transformer2DModel": f"{_ADAPTERS}:Sd3Transformer",
        "QwenImageTransformer2DModel": f"{_ADAPTERS}:QwenImageTransformer",
        "QwenImage21Transformer2DModel": f"{_ADAPTERS}:QwenImage21Transformer",
    },
)
"""Class of diffusers -> its adapter (`transformers.TransformerAdapter`)."""


ENCODE_TENSORS, DECODE_TENSORS = 14, 22
"""Maximum number of tensors of the VAE's width and the image's size that are in memory
at once. Measured with AutoencoderKLQwenImage on the CPU in bfloat16, base_dim 32,
dim_mult 1 2 4 4; convolutions that copy their input take more."""


POSITIONS = {"SD3Transformer2DModel": ("pos_embed_max_size", 96)}
"""Class whose positions are a table -> its argument with the number of tokens along a
side of the table, and the default."""


REFERENCES = {"QwenImageTransformer2DModel": 3, "QwenImage21Transformer2DModel": 10}
"""Class that takes control images -> their maximum number."""


class TextEncoderKind(NamedTuple):
    """A text encoder of transformers.

    >>> TEXT_ENCODERS["qwen3"].class_name
    'Qwen3Model'
    """

    class_name: str
    width: str
    """The key of its config with the width of its output."""

    arguments: Mapping[str, Any] = {}
    """Arguments of `from_pretrained`."""

    norm: str = ""
    """The final norm, which is left out: the transformer has its own norm, as in
    Qwen-Image-2.1."""


TEXT_ENCODERS = {
    "bert": TextEncoderKind("BertModel", "hidden_size", {"add_pooling_layer": False}),
    "distilbert": TextEncoderKind("DistilBertModel", "dim"),
    "t5": TextEncoderKind("T5EncoderModel", "d_model"),
    "clip_text_model": TextEncoderKind("CLIPTextModel", "hidden_size"),
    "clip": TextEncoderKind("CLIPTextModel", "hidden_size"),
    "qwen3": TextEncoderKind("Qwen3Model", "hidden_size", norm="norm"),
}
"""By `model_type` in the config of a text encoder."""

TEXT_LAYERS = {"num_hidden_layers", "num_layers", "n_layers"}
"""Keys of a text encoder's config with its number of layers."""

PIPELINE = "LatentFlowPipeline"
"""Class in `pipeline.py` of a model folder, a copy of the file next to this one.
diffusers runs it, not this program."""

PIPELINE_CODE = Path(__file__).with_name("pipeline.py")

PROJECTION = "projection.safetensors"
"""In the folder of the text encoder: the weight [outputs, inputs] of a linear layer
behind it, `weight`; optional."""

BLOCKS = "transformer_blocks."
DEFAULT_MAX_TOKENS = 77
PATCH = 2
"""Latent pixels along one side of a token, where a transformer's config does not say
it."""


class LatentFlowFamily(ModelFamily):
    """See `ModelFamily`. Without a folder the facts are for an AutoencoderKL of Stable
    Diffusion 3.

    Example::

        family = FAMILY.of_folder(folder)
        print(family.latent_channels, family.prediction, family.max_tokens)
    """

    arch = "latent_flow"
    model_class = "extensions.from_scratch.latent_flow.model:LatentFlowModel"
    network_maker = "extensions.from_scratch.latent_flow.new:new_transformer"
    title = "latent flow model"
    pipelines = (PIPELINE,)
    modelspec = ("Latent-Flow", "https://github.com/huggingface/diffusers")
    empty_negative = ""  # a dropped caption is trained as this
    text_sees_references = False
    encoder_parts: Mapping[str, tuple[str, ...]] = {
        "vae": ("vae",),
        "text_encoder": ("text_encoder", "tokenizer"),
    }
    weight_parts = ("transformer", "vae", "text_encoder")
    parts: Mapping[str, str] = {
        "transformer": "config.json",
        "vae": "config.json",
        "text_encoder": "config.json",
        "tokenizer": "tokenizer.json",
        "scheduler": "scheduler_config.json",
    }

    def __init__(
        self,
        latent_channels: int = 16,
        latent_scale: int = 8,
        patch: int = PATCH,
        prediction: str = "flow",
        max_tokens: int = DEFAULT_MAX_TOKENS,
        positions: int | None = None,
        max_references: int = 0,
    ) -> None:
        """max_tokens: of a prompt; later tokens are cut off. positions: tokens along
        the longest side that the transformer has positions for; None: any number.
        max_references: maximum number of control images."""
        self.latent_channels = latent_channels
        self.latent_scale = latent_scale
        self.patch = patch
        self.size_multiple = latent_scale * patch
        self.prediction = prediction
        self.max_tokens = max_tokens
        self.longest_side = positions * self.size_multiple if positions else None
        self.max_references = max_references

    def of_folder(self, folder: Path) -> LatentFlowFamily:
        if not (folder / INDEX).is_file():
            return self
        index = read_model_json(folder / INDEX)
        vae = part_config(folder, "vae")
        transformer = part_config(folder, "transformer")
        prediction = index.get("prediction", self.prediction)
        max_tokens = index.get("max_tokens", self.max_tokens)
        return self.of_parts(vae, transformer, prediction, max_tokens)

    @classmethod
    def of_parts(
        cls,
        vae: Mapping[str, Any],
        transformer: Mapping[str, Any],
        prediction: str,
        max_tokens: int,
    ) -> LatentFlowFamily:
        """The facts in the configs of these parts, each with its class as
        `_class_name`."""
        name = transformer["_class_name"]
        patch = transformer.get("patch_size", PATCH)
        most = transformer.get(*POSITIONS[name]) if name in POSITIONS else None
        references = REFERENCES.get(name, 0)
        return cls(
            latent_channels(vae),
            latent_scale(vae),
            patch,
            prediction,
            max_tokens,
            most,
            references,
        )

    def config_error(self, folder: Path) -> str:
        try:
            self._check(folder)
        except UserError as error:
            return str(error)
        return ""

    def _check(self, folder: Path) -> None:
        index, transformer, vae = (
            read_model_json(folder / INDEX),
            *(part_config(folder, p) for p in ("transformer", "vae")),
        )
        prediction = index.get("prediction", PREDICTIONS[0])
        tokens = index.get("max_tokens", DEFAULT_MAX_TOKENS)
        if prediction not in PREDICTIONS:
            raise UserError(
                f"{folder / INDEX}: prediction: {prediction!r} is none of {', '.join(PREDICTIONS)}."
            )
        if type(tokens) is not int or tokens < 1:
            raise UserError(
                f"{folder / INDEX}: max_tokens: {tokens!r} is not a whole number above 0."
            )
        for part, config, known in (
            ("transformer", transformer, TRANSFORMERS),
            ("vae", vae, LEVELS),
        ):
            name = str(config.get("_class_name"))
            if name not in known:
                file = folder / part / "config.json"
                raise UserError(
                    f"{file}: {name!r} is not a {part} of this family. {did_you_mean(name, known)}"
                )
            fault = file_fault(folder / part / "config.json", config)
            if fault:
                raise UserError(fault)
        text_encoder_kind(folder / "text_encoder")
        shapes = part_shapes(folder / "transformer")
        inputs = transformer.get("in_channels", 0)
        vae_channels = latent_channels(vae)
        if inputs and inputs % vae_channels:
            raise UserError(
                f"{folder}: the transformer has {inputs} channels, and the latents of vae have {vae_channels}."
            )
        if not any(name.startswith(BLOCKS) for name in shapes):
            raise UserError(
                f"{folder / 'transformer'}: its weights have no {BLOCKS.rstrip('.')}."
            )

    def linear_layers(self, folder: Path) -> dict[str, tuple[int, int]]:
        return {
            name: shape
            for name, shape in self.every_linear_layer(folder).items()
            if name.startswith(BLOCKS)
        }

    def every_linear_layer(self, folder: Path) -> dict[str, tuple[int, int]]:
        return {
            name.removesuffix(".weight"): (shape[1], shape[0])
            for name, shape in part_shapes(folder / "transformer").items()
            if len(shape) == 2
        }

    def modules(self, folder: Path) -> dict[str, int]:
        counts: dict[str, int] = {}
        for name, shape in part_shapes(folder / "transformer").items():
            if name not in BUFFERS:
                module = name.rpartition(".")[0]
                counts[module] = counts.get(module, 0) + prod(shape)
        return counts

    def block_count(self, folder: Path) -> int:
        names = part_shapes(folder / "transformer")
        return len({name.split(".")[1] for name in names if name.startswith(BLOCKS)})

    def footprint(self, folder: Path) -> ModelSizeInfo:
        layers = self.linear_layers(folder)
        config = part_config(folder, "transformer")
        sizes = [inputs * outputs for inputs, outputs in layers.values()]
        in_blocks, largest = sum(sizes), max(sizes, default=0)
        text = part_config(folder, "text_encoder")
        vae = part_config(folder, "vae")
        hidden = text.get("hidden_size", text.get("dim", text.get("d_model", 0)))
        inner = text.get(
            "intermediate_size", text.get("hidden_dim", text.get("d_ff", 4 * hidden))
        )
        vae_width = vae.get(
            "base_dim", next(iter(vae.get(LEVELS[vae["_class_name"]][0], ())), 64)
        )
        return ModelSizeInfo(
            width=config.get("num_attention_heads", 1)
            * config.get("attention_head_dim", 1),
            blocks=self.block_count(folder),
            linear_params=in_blocks,
            other_params=sum(self.modules(folder).values()) - in_blocks,
            largest_layer=largest,
            largest_of_tokens=largest,
            modulation_layers=frozenset(),
            tabulated_weights=0,
            table_inputs=frozenset(),
            text=EncoderSize(
                0, sum(map(prod, part_shapes(folder / "text_encoder").values()))
            ),
            vae=EncoderSize(0, sum(map(prod, part_shapes(folder / "vae").values()))),
            encode_numbers=ENCODE_TENSORS * vae_width,
            decode_numbers=DECODE_TENSORS * vae_width,
            text_token_numbers=3 * inner + 8 * hidden,
            text_width=text_width(folder),
            pixels_per_token=self.token_side**2,
            scales_references=False,
            text_tokens=2,
            text_tokens_per_reference=0,
            bytes_per_weight=BYTES_PER_WEIGHT,
        )


BUFFERS = ("pos_embed.pos_embed",)
"""Buffers that SD3Transformer2DModel stores with its weights."""


def part_config(folder: Path, part: str) -> dict[str, Any]:
    """config.json of a part of a model folder. Raises UserError where it cannot be
    read."""
    return read_model_json(folder / part / "config.json")


def text_encoder_kind(part: Path) -> TextEncoderKind:
    """The kind of the text encoder in a folder. Raises UserError for a kind that is not
    supported, for a config that is not possible, and for one that another program has
    quantized."""
    fault = quantization_fault(part, "text_encoder", ORIGINAL_MODEL)
    if fault:
        raise UserError(fault)
    config = read_model_json(part / "config.json")
    name = str(config.get("model_type"))
    if name not in TEXT_ENCODERS:
        raise UserError(
            f"{part / 'config.json'}: model_type {name!r} cannot be used. {did_you_mean(name, TEXT_ENCODERS)}"
        )
    inner = config.get("text_config") or config
    for key in TEXT_LAYERS & inner.keys() if isinstance(inner, dict) else ():
        if type(inner[key]) is not int or not 1 <= inner[key] <= MOST_LAYERS:
            raise UserError(
                f"{part / 'config.json'}: {key}: {inner[key]!r} is not a number from 1 to {MOST_LAYERS}."
            )
    return TEXT_ENCODERS[name]


def text_width(folder: Path) -> int:
    """The width of the text embeddings of a model folder."""
    part = folder / "text_encoder"
    if (part / PROJECTION).is_file():
        return tensor_shapes(part / PROJECTION)["weight"][0]
    return encoder_width(part)


def encoder_width(part: Path) -> int:
    """The width of the output of the text encoder in a folder, without a projection."""
    config = read_model_json(part / "config.json")
    return int((config.get("text_config") or config)[text_encoder_kind(part).width])


def encoder_positions(part: Path) -> int | None:
    """The most tokens of the text encoder in a folder; None: any number."""
    config = read_model_json(part / "config.json")
    return (config.get("text_config") or config).get("max_position_embeddings")


def part_shapes(part: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a part, from the headers of its files; empty
    where the folder does not exist yet."""
    if not part.is_dir():
        return {}
    return {
        name: shape
        for path in weight_files(part)
        for name, shape in tensor_shapes(path).items()
    }


FAMILY = LatentFlowFamily()
