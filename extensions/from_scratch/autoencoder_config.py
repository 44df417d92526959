"""`model` of a trainer of autoencoders: a class of diffusers, made from its arguments
or read from a folder.

The section resolves the folder, reads its config.json, and checks the arguments. The
module imports no torch and loads no weights: `autoencoders` does. The section is
`model` of `vae_trainer`, and `flow_config` makes one for the autoencoder of a flow
model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from toolkit.config.reading.base import ALL_OTHERS, StrictModel
from toolkit.config.reading.field_types import OneOf, PathStr
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.sections.model_files import read_model_json
from toolkit.errors import RunError, UserError

LEVELS = {
    "AutoencoderKL": ("block_out_channels", 1),
    "AutoencoderKLQwenImage": ("dim_mult", 4),
    "AutoencoderTiny": ("encoder_block_out_channels", 4),
}
"""Class of diffusers -> its argument with one entry per level of the encoder, and their
number by default. Each level but the first halves the sides."""

CONFIG = "config.json"
PART = "vae"
"""Its folder in the folder of a pipeline."""

SPADE = "_spade"
"""Entry of config.json that says whether the decoder has SPADE. diffusers skips names
that begin with _."""

SPADE_FILE = "spade.safetensors"
"""The weights of SPADE, next to the weights of the autoencoder."""

DISCRIMINATOR_FILE = "discriminator.safetensors"
"""The discriminator, next to the autoencoder's files. A run that starts from the folder
continues it."""

SPADE_HIDDEN = 128
"""Maximum number of channels of the layer between latents and modulation, as in the
paper. A norm with fewer channels has its own number."""

WITHOUT_NORMS = frozenset({"AutoencoderTiny"})
"""Classes whose decoder normalises nothing."""


def without_norms(class_name: str) -> str:
    """Why a class has no SPADE."""
    return f"{class_name} has no norms in its decoder that SPADE could modulate. Leave it out."


class AutoencoderConfig(StrictModel):
    """`model`: an autoencoder of diffusers.

    Example:
        model:
          class_name: AutoencoderKL
          config: {block_out_channels: [64], latent_channels: 8}
    """

    class_name: Literal[
        "AutoencoderKL", "AutoencoderKLQwenImage", "AutoencoderTiny"
    ] = "AutoencoderKL"
    """Class of diffusers that is made when `name_or_path` is not given. AutoencoderTiny
    has no distribution over its latents: `losses.kl` is 0 then."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the class, such as block_out_channels, down_block_types and
    latent_channels of an AutoencoderKL. Other arguments have the values of
    diffusers."""

    name_or_path: PathStr = ""
    """Folder of an autoencoder, or of a pipeline with one in `vae/`, to start from.
    Empty: random weights. A discriminator that a run saved in it is continued too."""

    train: Annotated[Literal["all", "decoder"], OneOf()] = "all"
    """The part that is trained. decoder: the latents do not change, so a flow model of
    them stays valid."""

    initial_logvar: float = Field(default=-4.0, ge=-30, le=20)
    """With random weights: the log variance of the latents at the start. 0 drowns the
    mean in noise for some hundred steps."""

    spade: bool | None = None
    """SPADE: the latents scale and shift the normalised features of the decoder, at
    each position. true: a decoder without SPADE gets it; at first it changes nothing.
    false: the SPADE of the folder is dropped. Not given: as the folder has it, and
    without a folder none. Its weights are in spade.safetensors, which only this program
    reads."""

    on_resume: ClassVar = {ALL_OTHERS: "impossible", "name_or_path": "place"}

    def check(self, job: JobContext) -> Iterator[Diagnostic]:
        """A folder that is missing or is not an autoencoder's, and keys that have no
        effect with a folder."""
        if not self.name_or_path:
            yield from self._check_spade(self.class_name)
            return
        for key in sorted(
            self.model_fields_set & {"class_name", "config", "initial_logvar"}
        ):
            yield Diagnostic(
                (key,),
                "has no effect with 'name_or_path', whose files decide it. Remove one of them.",
            )
        if self.is_yet_to_come(job):
            return
        try:
            name = self.arguments()["_class_name"]
        except RunError as error:
            yield Diagnostic(("name_or_path",), str(error))
            return
        if name not in LEVELS:
            known = ", ".join(LEVELS)
            yield Diagnostic(
                ("name_or_path",),
                f"{self.name_or_path!r} is a {name}. What can be trained: {known}.",
            )
        yield from self._check_spade(name)

    def _check_spade(self, class_name: str) -> Iterator[Diagnostic]:
        if self.spade and class_name in WITHOUT_NORMS:
            yield Diagnostic(("spade",), without_norms(class_name))

    def is_yet_to_come(self, job: JobContext) -> bool:
        """Whether an earlier process of the job writes the folder."""
        return job.yet_to_come(self.name_or_path)

    def folder(self) -> Path:
        """The folder of the autoencoder itself."""
        folder = Path(self.name_or_path).expanduser().resolve()
        if not (folder / CONFIG).is_file() and (folder / PART).is_dir():
            return folder / PART
        return folder

    def arguments(self) -> dict[str, Any]:
        """The arguments of the class with its name as `_class_name`. Raises RunError
        for a folder without them."""
        if not self.name_or_path:
            return {"_class_name": self.class_name, **self.config}
        file = self.folder() / CONFIG
        try:
            config = read_model_json(file, default={})
        except UserError as error:
            raise RunError(f"{error} Give the folder of an autoencoder.") from error
        if not isinstance(config.get("_class_name"), str):
            raise RunError(
                f"{file}: does not say of what class it is. Give the folder of an autoencoder."
            )
        return config

    def uses_spade(self) -> bool:
        """Whether the decoder has SPADE in training. Raises what `arguments` raises."""
        if self.spade is None:
            return bool(self.arguments().get(SPADE))
        return self.spade

    def latent_scale(self) -> int:
        """Pixels along one side of a latent pixel."""
        return latent_scale(self.arguments())


def latent_scale(arguments: Mapping[str, Any]) -> int:
    """Pixels along one side of a latent pixel, by the arguments of a class with its
    name as `_class_name`.

    >>> latent_scale({"_class_name": "AutoencoderKL", "block_out_channels": [32, 64]})
    2
    """
    key, default = LEVELS.get(arguments.get("_class_name", ""), ("", 1))
    levels = arguments.get(key)
    pixels: int = 2 ** (
        (len(levels) if isinstance(levels, list | tuple) else default) - 1
    )
    return pixels


def latent_channels(arguments: Mapping[str, Any]) -> int:
    """Channels of the latents, by the arguments of a class with its name as
    `_class_name`.

    >>> latent_channels({"_class_name": "AutoencoderKL", "latent_channels": 8})
    8
    """
    is_qwen = arguments.get("_class_name") == "AutoencoderKLQwenImage"
    return int(
        arguments.get("z_dim", 16) if is_qwen else arguments.get("latent_channels", 4)
    )
