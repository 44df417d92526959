"""`QwenFamily`: what the families of Qwen-Image share in addition to `DiffusersFamily`.

The layers of their transformers follow from its config file, so that a model in single
files, whose folder has no weights, has the right sizes too. Their text encoders see
images, and are read layer by layer. Where the folder does not exist yet, all sizes are
those of the published model. The families in `qwen_image` and `qwen_image21` derive
from it. Imports no torch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from toolkit.config.sections.model_files import local_index, read_model_json
from toolkit.contracts.data import Size
from toolkit.contracts.model import ModelSection
from toolkit.contracts.network_kinds import ActivationUnits
from toolkit.errors import UserError
from toolkit.files.unreadable import AGAIN
from toolkit.models.families import PATCHES_PER_TOKEN, EncoderSize, TextLayers
from toolkit.models.folder_family import (
    BANDED_VAE,
    DiffusersFamily,
    Joint,
    Shapes,
    part_config,
    text_config,
    text_layer_size,
)
from toolkit.models.template import IMAGE_PAD

MOST_LAYERS, WIDEST = 1000, 10**5
"""With larger values a config counts as damaged."""


class QwenFamily(DiffusersFamily):
    """See `ModelFamily`. A subclass gives the layers of its transformer as functions of
    the transformer's config.

    Example::

        family = FAMILIES.load("qwen_image_2")  # a QwenFamily
        config = family.transformer_config(folder)
        shapes = family.block_linears(width_of(config), config)
    """

    published_transformer: Mapping[str, int]
    """Config of the published transformer: the keys that are sizes, with `num_layers`
    among them."""

    published_vision: Mapping[str, Any]
    """The sizes in `vision_config` of the published text encoder."""

    published_vae_config: Mapping[str, Any]
    """The keys of its config that decide its weights, which `vae_weights` reads."""

    shapes_file = Path()
    """Not used: the layers follow from the config."""

    vae_tensors = BANDED_VAE
    text_sees_references = True

    biases: bool
    """Whether the linear layers have biases."""

    keeps_length: bool = True
    """Whether guidance restores the length of each token of the conditional
    prediction."""

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
                    f"{part / 'config.json'}: {key}: {value!r} is not {expected}. {AGAIN}"
                )
        return config

    def config_error(self, folder: Path) -> str:
        try:
            self.transformer_config(folder)
        except UserError as error:
            return str(error)
        return super().config_error(folder)

    def joints(self, folder: Path) -> Iterator[Joint]:
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
        patch = image and image.get("patch_size", 14)
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
            (path, "patch_size", patch, "text encoder", vision.get("patch_size")),
        ):
            yield Joint(place, key, has, other, wants)
        kind = str(image.get("image_processor_type", "VLImageProcessor"))
        if "VLImageProcessor" not in kind:
            raise UserError(
                f"{path}: image_processor_type: {kind!r} is of another model than the text encoder. {AGAIN}"
            )
        part = folder / ("tokenizer" if "tokenizer" in self.parts else "processor")
        if vision and not any(
            IMAGE_PAD in file.read_text(encoding="utf-8")
            for file in part.glob("*.json")
        ):
            raise UserError(
                f"{part}: has no token {IMAGE_PAD}, so is of another model than the text encoder. {AGAIN}"
            )

    def every_linear_layer(self, folder: Path) -> Shapes:
        config = self.transformer_config(folder)
        width = width_of(config)
        shapes = self.block_linears(width, config)
        return self.outer_linears(width, config) | {
            f"transformer_blocks.{index}.{name}": shape
            for index in range(config["num_layers"])
            for name, shape in shapes.items()
        }

    def size_fault(self) -> str:
        return ""  # the shapes follow from the facts

    def weight_shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        config = self.transformer_config(folder)
        linears = self.every_linear_layer(folder)
        shapes: dict[str, tuple[int, ...]] = {
            f"{name}.weight": (o, i) for name, (i, o) in linears.items()
        }
        shapes |= {
            f"{name}.bias": (o,) for name, (_, o) in linears.items() if self.biases
        }
        blocks = [f"transformer_blocks.{i}" for i in range(config["num_layers"])]
        for name, count in self.norms(config).items():
            places = blocks if name.startswith(".") else [""]
            shapes |= {f"{place}{name}.weight": (count,) for place in places}
        return shapes

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

    def text_layers(
        self,
        width: int,
        inner: int,
        stored: Mapping[str, int],
        config: Mapping[str, Any],
    ) -> TextLayers | None:
        layers = self.published_text_layers
        largest = EncoderSize(self.published_text.linear_params // layers, 0)
        if stored:
            largest = text_layer_size(stored)
        vision = {**self.published_vision, **(config.get("vision_config") or {})}
        patch_width = vision["hidden_size"]
        patch_inner = vision["intermediate_size"]
        merged = PATCHES_PER_TOKEN * patch_width
        return TextLayers(
            largest=largest,
            largest_linear=width * inner,
            token_numbers=3 * inner + 8 * width,
            vision=merged * (merged + width),
            patch_numbers=1.15 * (3 * patch_inner + 8 * patch_width),
            patch_waits=max(patch_width, 6 * vision["patch_size"] ** 2),
            image_token_numbers=len(vision["deepstack_visual_indexes"]) * width,
        )


def width_of(config: Mapping[str, int]) -> int:
    """The hidden size of a transformer with this config.

    >>> width_of({"num_attention_heads": 24, "attention_head_dim": 128})
    3072
    """
    return config["num_attention_heads"] * config["attention_head_dim"]
