"""What the trainer knows of a model: its facts, which import no torch, and the contract
of the model itself.

Shape suffixes: B batch, C latent channels, H/W latent height and width (pixels /
`ModelFacts.latent_scale`), P pixel channels (`ModelFacts.pixel_channels`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from toolkit.contracts.data import EncodedPrompt, PromptEmbeds, Size

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn


class ModelSection(Protocol):
    """The keys of the `model:` section that decide the family and how it is loaded.

    Example::

        family = family_for(section.model)  # toolkit.models.families
    """

    @property
    def name_or_path(self) -> str: ...

    @property
    def revision(self) -> str | None: ...

    @property
    def arch(self) -> str | None: ...

    @property
    def model_kwargs(self) -> Any: ...


PREDICTIONS = ("flow", "v")
"""What a model may predict: the keys of `toolkit.flow.loss.INTERPOLANTS`."""


LORA_SPELLINGS = ("alpha_folded", "bare", "diffusers")
"""How a family may spell its LoRA files: keys of `toolkit.networks.spelling.SPELLINGS`."""

ROWS_OF = {"img_mlp.gate_up": ("img_mlp.gate_layer", "img_mlp.proj")}
"""End of the name of a layer in ComfyUI's weights -> the layers of the model whose
outputs it has, one after the other and equally many. Source: ComfyUI,
ldm/qwen_image21/model.py, SwiGLUFeedForward: the gate's rows come first."""


@dataclass(frozen=True)
class LicenceTerms:
    """What a licence asks of whoever publishes a LoRA that was trained on the
    weights.

    >>> link = "https://example.org/licence"
    >>> terms = LicenceTerms("research", link, display="Built with X", notice="X is ...")
    >>> terms.duties
    'display "Built with X" and include the licence and a notice'
    """

    name: str
    """Its `license_name` on the hub."""

    link: str
    notice: str
    """The text of the file `NOTICE` next to the LoRA."""

    display: str = ""
    """What the documentation of the LoRA has to display; empty: nothing."""

    name_begins: str = ""
    """How the name of the LoRA has to begin; empty: as you like."""

    @property
    def duties(self) -> str:
        """What it asks, as a phrase after "must"."""
        named = f'have a name that begins with "{self.name_begins}"'
        shown = f'display "{self.display}"'
        asked = [named] * bool(self.name_begins) + [shown] * bool(self.display)
        return " and ".join([*asked, "include the licence and a notice"])


class ModelFacts:
    """Constants of a model family, known before any file is read.
    `toolkit.models.families.ModelFamily` has what depends on a model folder.

    >>> class Tiny(ModelFacts):
    ...     latent_scale = 8
    ...     patch = 2
    >>> latent = Tiny().latent_size(Size(1024, 768))
    >>> str(latent), Tiny().tokens(latent)
    ('128x96', 3072)
    """

    arch: str
    """Its name in `model.arch` and in `toolkit.registry.FAMILIES`."""

    title: str
    """Name of the published model."""

    pipelines: tuple[str, ...]
    """Accepted values of `_class_name` in model_index.json."""

    pipeline_without_images: tuple[str, Mapping[str, str | int]] | None = None
    """diffusers' pipeline for a prompt without control images, and the attributes to
    set on it; None: `pipelines`."""

    published: Mapping[str, str] = {}
    """Hub id -> the name of the published model."""

    terms: LicenceTerms | None = None
    """What that licence asks of whoever publishes what is made with the weights; None:
    nothing."""

    licence: str = ""
    """Licence of the published weights, for the plan; empty: their owner's."""

    parts: Mapping[str, str]
    """Subfolder of a model folder -> the files that it has to contain, or patterns of
    their names, separated by spaces; `a|b` is one of both."""

    classes: Mapping[str, str] = {}
    """Subfolder of a model folder -> the class of the part in model_index.json, and in
    its config.json."""

    settings: Mapping[str, Any] = {}
    """`part/key` of a part's config.json -> the only value that can be trained, which
    absence stands for too."""

    weight_parts: Sequence[str]
    """Subfolders whose weights are needed, as safetensors."""

    trained_part: str = "transformer"
    """Subfolder of the trained module."""

    block_lists: Sequence[str] = ("transformer_blocks",)
    """Attributes of the trained module that hold its repeated blocks, in the order in
    which they run."""

    lora_layers: str = ""
    """Pattern of the full names of the layers of blocks that an adapter has where a job
    names none; empty: all linear layers of the blocks."""

    lora_outside: str = "(?!)"
    """Pattern of the full names of the linear layers outside of the blocks that an
    adapter has too. The default fits no name."""

    layer_names: Mapping[str, Sequence[str]] = {}
    """Name of a layer in the weights of the model's authors, or of ComfyUI -> the layer
    here, or several whose outputs it has, one after the other and equally many. `*` is
    the number of a block. LoRA files with these names are read."""

    recipes: Mapping[str, Any] = {}
    """Name of a published model -> its `toolkit.models.recipes.Recipe`, where that table
    has none."""

    modelspec: tuple[str, str]
    """`modelspec.architecture` and `modelspec.implementation` in a file's metadata, as
    other trainers write them."""

    size_multiple: int
    """Training widths and heights are multiples of this many pixels."""

    pixel_channels: int = 3
    """Channels of its images: 3, red, green and blue; or 4, with opacity."""

    latent_channels: int
    latent_scale: int
    """Pixels of an image along one side of a latent pixel."""

    patch: int = 1
    """Latent pixels along one side of a token."""

    longest_side: int | None = None
    """Pixels of the longest image that it has positions for; None: any."""

    own_sizes: tuple[Size, ...] = ()
    """Sizes in pixels that the model was published with, a square first. An image for
    which no size is given gets one of them."""

    max_references: int = 0
    """Largest number of control images per sample."""

    min_references: int = 0
    """Control images that every prompt of the model was published with; fewer are
    noted."""

    stacks_layers: bool = False
    """Whether a target is several images of one size, a picture and its layers, with
    the picture as the only control image. Their latents stand below each other as one
    of [C, N H, W], first the picture, then its layers from back to front."""

    text_sees_references: bool = True
    """Whether the text encoder sees the control images in addition to a prompt."""

    text_at_reference_size: bool = False
    """Whether the text encoder sees the control images in
    `DiffusionModel.reference_size`, as the VAE does, instead of choosing a size of its
    own."""

    sure_prompt: int = 0
    """Characters of a prompt that fits into the model with any control images."""

    prediction: str = "flow"
    """What the model predicts, and how noise is mixed in: one of PREDICTIONS."""

    empty_negative: str = " "
    """The negative prompt where none is given; by default as diffusers' documentation
    of Qwen-Image advises."""

    guidance: float = 4.0
    """Guidance scale of samples where none is given; up to 1: none."""

    sample_steps: int = 20
    """Steps of samples where none are given."""

    sample_sigmas: tuple[float, ...] = ()
    """Noise levels in (0, 1], before the shift, that the model is distilled for; other
    numbers of steps resample them. None: the model is not distilled, and its levels are
    evenly spaced."""

    lora_spelling: str = "alpha_folded"
    """How new runs spell their LoRA files: one of LORA_SPELLINGS."""

    embeds_guidance: bool = False
    """Whether the guidance scale is an input of the model: sampling then needs no
    negative prediction."""

    encoder_parts: Mapping[str, Sequence[str]]
    """Subfolders of the encoders of latents ("vae") and text embeddings
    ("text_encoder")."""

    @property
    def token_side(self) -> int:
        """Pixels of an image along one side of a token."""
        return self.latent_scale * self.patch

    def place_of(self, name: str) -> tuple[int, int, str]:
        """Where a layer or weight of this name runs: number of its list of blocks, of
        its block, and the name; (-1, 0, name) outside of the blocks.

        >>> ModelFacts().place_of("transformer_blocks.3.attn.to_q")
        (0, 3, 'transformer_blocks.3.attn.to_q')
        """
        for number, blocks in enumerate(self.block_lists):
            index = name.removeprefix(f"{blocks}.").partition(".")[0]
            if name.startswith(f"{blocks}.") and index.isdecimal():
                return number, int(index), name
        return -1, 0, name

    def latent_size(self, pixels: Size) -> Size:
        """Width and height of the latents of an image."""
        return Size(*(side // self.latent_scale for side in pixels))

    def tokens(self, latent: Size) -> int:
        """Tokens of an image whose latents have this size."""
        return (latent.width // self.patch) * (latent.height // self.patch)

    def drawable(self, pixels: Size) -> Size:
        """The size rounded down to one that the model can generate."""
        return Size(*(side // self.token_side * self.token_side for side in pixels))

    def sample_size(self, pixels: Size, reference: Size | None) -> Size:
        """The size of a sample for which this one is given, with this first control
        image."""
        return self.drawable(pixels)

    def default_size(
        self, reference: Size | None = None, learned: Sequence[Size] = ()
    ) -> Size:
        """The size of an image that is given none: of `learned`, or else of
        `own_sizes`, the one whose aspect ratio is nearest to the reference's; without a
        reference the first."""
        side = min(1024, self.longest_side or 1024)
        sizes = learned or self.own_sizes or (self.drawable(Size(side, side)),)
        if reference is None:
            return sizes[0]
        aspect = math.log(reference.width / reference.height)
        return min(
            sizes, key=lambda size: abs(math.log(size.width / size.height) - aspect)
        )

    def config_error(self, folder: Path) -> str:
        """The fault of the values in the config files of a model folder; empty:
        none."""
        return ""

    def too_many_references(self, count: int, key: str = "control_path") -> str:
        """The error message for more control images than `max_references`. key: theirs
        in the config."""
        given = f"has {count} control image{'s' * (count > 1)}, and {self.title} takes"
        if not self.max_references:
            return f"{given} none. Leave {key} out."
        return f"{given} at most {self.max_references}. Shorten {key}."

    def prompt_error(
        self, model: ModelSection, prompt: str, target: Size, references: Sequence[Size]
    ) -> str | None:
        """The error message for a prompt that is too long with these control images, or
        None.

        Also None where it cannot be checked yet, because the model's tokenizer is not
        on the disk.
        """
        return None

    def prompt_note(self, folder: Path, prompt: str) -> str | None:
        """A note on a prompt that is used although its end is cut off, or None. None
        also where that is not known, as in `prompt_error`. folder: of the model, as far
        as it is on the disk."""
        return None


@dataclass(frozen=True)
class DynamicShift:
    """The time shift of a model's own sampler, as diffusers'
    FlowMatchEulerDiscreteScheduler names it: t becomes exp(mu) t / (1 + (exp(mu) - 1)
    t).

    >>> round(DynamicShift().mu(tokens=4096, steps=20), 3)
    0.694
    """

    base_image_seq_len: int = 256
    max_image_seq_len: int = 8192
    base_shift: float = 0.5
    max_shift: float = 0.9
    shift_terminal: float | None = 0.02
    """The last timestep before 0, to which the schedule is stretched; None: no
    stretching."""

    def mu(self, tokens: int, steps: int) -> float:
        """The shift exponent for an image of `tokens` tokens, sampled in `steps` steps:
        linear in the tokens.

        Source: diffusers, pipeline_qwenimage_edit_plus.py, `calculate_shift`."""
        slope = (self.max_shift - self.base_shift) / (
            self.max_image_seq_len - self.base_image_seq_len
        )
        return self.base_shift + slope * (tokens - self.base_image_seq_len)


BlockForward = Callable[..., "tuple[Tensor, ...]"]
"""Runs a block (the first argument) on tensors (the others; some may be None, or a
hashable value that compiled blocks know). Its outputs are the inputs of the next
block."""


BlockWrapper = Callable[[BlockForward], BlockForward]
"""Wraps the forward of a block without changing its result."""


WeightStreaming = Callable[["Sequence[nn.Module]", "torch.device"], BlockWrapper]
"""Takes modules and a device: moves the modules' frozen weights to the CPU memory, and
returns the wrapper that brings them to the device, module by module."""


def project(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """The outputs of linear layers that read the same input; what their adapters can
    share is computed once (`Network.fuse_projections`)."""
    groups = [getattr(layer, "fused_group", None) for layer in layers]
    group = next(
        (group for group in groups if group is not None and group.is_shared()), None
    )
    if group is None:
        return [layer(x) for layer in layers]
    known = iter(group.down(x))
    return [
        layer(x, next(known)) if layer_group is group else layer(x)
        for layer, layer_group in zip(layers, groups, strict=True)
    ]


class DiffusionModel(ABC):
    """The interface to a model family. Nothing outside `toolkit/models` knows which one
    it is.

    Example::

        latents_BCHW = model.encode_images(pixels_BPHW)
        prompts = PromptEmbeds.stack([model.encode_prompt("a fox", [])])
        velocity_BCHW = model.predict_velocity(x_t_BCHW, t_B, prompts, [[]])
    """

    family: ModelFacts

    @property
    @abstractmethod
    def dynamic_shift(self) -> DynamicShift:
        """By how much the noise level is shifted for a number of tokens."""

    @property
    @abstractmethod
    def network_module(self) -> torch.nn.Module:
        """The module that is trained or carries the adapter (the transformer); loaded
        by the first access."""

    @abstractmethod
    def cache_key(self, part: str) -> str:
        """Hash of the weights and settings of `vae` or `text_encoder`: all that decides
        the result of encoding."""

    def cache_keys(self, part: str) -> tuple[str, ...]:
        """`cache_key`, and behind it those under which earlier versions of the program
        stored the same results."""
        return (self.cache_key(part),)

    @abstractmethod
    def reference_size(self, image: Size, target: Size) -> Size:
        """Size that a control image of size `image` is resized to before
        `encode_images`, for a target of this size."""

    @property
    def predicts_composite(self) -> bool:
        """With `ModelFacts.stacks_layers`: whether a target has the picture itself
        before its layers."""
        return True

    @abstractmethod
    def encode_images(self, pixels_BPHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] [B, P, sH, sW] to normalised latents [B, C, H, W], s
        `ModelFacts.latent_scale`.

        Deterministic (the mean).
        """

    @abstractmethod
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """The inverse of `encode_images`: float32 pixels [B, P, sH, sW], clamped to
        [-1, 1]."""

    def prompt_error(
        self, prompt: str, target: Size, references: Sequence[Size]
    ) -> str | None:
        """The error message for a prompt that is too long with these control images, or
        None.

        references: sizes of the control images before resizing.
        """
        return None

    @abstractmethod
    def encode_prompt(
        self, prompt: str, references: Sequence[Image.Image]
    ) -> EncodedPrompt:
        """Embeddings [L, D] of one prompt with its RGB control images, at most
        `max_references`; where the text encoder is trained, token ids [L]. The images
        are of any size, or with `text_at_reference_size` of that."""

    def encode_together(
        self,
        encodings: Sequence[Callable[[], EncodedPrompt]],
        progress: Callable[[int, int], None] = lambda done, total: None,
        folder: Path | None = None,
    ) -> Iterator[Callable[[], EncodedPrompt]]:
        """For each of these functions, which call `encode_prompt` once each, one that
        gives its result when it is called before the next is taken. A model may read
        its text encoder layer by layer for all of them, and then calls `progress` with
        (layers done, layers). folder: for files while it works; None: the system's."""
        yield from encodings

    @abstractmethod
    def predict_velocity(
        self,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        references: Sequence[Sequence[Tensor]],
        guidance_B: Tensor | None = None,
    ) -> Tensor:
        """The prediction that `ModelFacts.prediction` names, by default the velocity
        (noise - image), [B, C, H, W] at noise fraction t in [0, 1], 1 = pure noise.

        guidance_B: the guidance scale that a distilled model embeds; None: the family's
        own. A family without such an input raises ValueError for any other.
        """

    def sampling_steps(
        self, prompts: PromptEmbeds, references: Sequence[Sequence[Tensor]]
    ) -> Callable[..., Tensor]:
        """`predict_velocity` of these prompts and references for the steps of a
        sampling run: a function of x_t_BCHW, t_B and, where the model has that input,
        guidance_B.

        It is called without gradients, and with the same weights each time: a family
        may keep results that depend on neither x_t nor t while the function lives.
        """
        return lambda x_t_BCHW, t_B, *guidance: self.predict_velocity(
            x_t_BCHW, t_B, prompts, references, *guidance
        )

    def sampling_level(self, t_B: Tensor) -> Tensor:
        """The timestep that the family's own pipeline passes to the model for t [B],
        float32.

        It may differ from t by the rounding of that pipeline; training passes t itself.
        """
        return t_B

    @abstractmethod
    def apply_cfg(self, cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance: combines the two velocities as this family's own
        pipeline does."""

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Hidden size of the transformer: channels per token."""

    @property
    @abstractmethod
    def head_dim(self) -> int:
        """Channels per attention head."""

    @abstractmethod
    def num_tokens(
        self,
        latents_BCHW: Tensor,
        prompts: PromptEmbeds,
        references: Sequence[Sequence[Tensor]],
    ) -> int:
        """Tokens of a batch in the blocks: images, control images and texts of all its
        items."""

    @abstractmethod
    def blocks(self) -> Sequence[torch.nn.Module]:
        """The repeated blocks, in order: the unit of quantization, checkpointing,
        compiling and swapping."""

    @abstractmethod
    def lora_targets(self) -> Sequence[str]:
        """Full dotted names, inside `network_module`, of the linear layers a LoRA
        adapts by default."""

    def prepare_compiling(self) -> None:  # noqa: B027 - most families need nothing
        """Called before the blocks are compiled."""

    def fused_projection_groups(self) -> Sequence[Sequence[str]]:
        """Groups of `lora_targets` that the model runs by `project`, in its order."""
        return ()

    @abstractmethod
    def wrap_blocks(
        self,
        wrappers: Sequence[BlockWrapper],
        last_block_wrappers: Sequence[BlockWrapper] | None = None,
    ) -> None:
        """Wraps every block's forward in `wrappers`, the first one innermost; replaces
        earlier wrappers.

        last_block_wrappers: those of the last block of a batch, where the backward pass
        begins; None: the same.
        """

    def enable_modulation_cache(self, streaming: WeightStreaming) -> str | None:
        """Moves the modulation layers to the CPU and caches their outputs per timestep
        (`model.modulation_table`).

        Called once the network is attached. streaming: runs layers whose weights stay
        in CPU memory. Returns why that is not possible here, or None.
        """
        return None

    def prefetch_timesteps(self, levels: Iterable[float]) -> None:  # noqa: B027 - only a cache makes use of it
        """Timesteps in [0, 1] of the next calls of `predict_velocity`. Other timesteps
        work too, but slower."""

    @abstractmethod
    def unload_encoders(self, keep: Iterable[str] = ()) -> None:
        """Frees the encoders that training no longer needs. keep: names of parts that
        stay."""
