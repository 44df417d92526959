"""The types that the packages of the toolkit share: small frozen dataclasses, protocols and abstract classes.

They are in one module because packages of one level do not import each other. Torch is named for the type checker
only, so that planning a run never imports it.

Shape suffixes: B batch, C latent channels, H/W latent height and width (pixels / `ModelFacts.latent_scale`),
L text tokens, D text embedding width.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from toolkit.sharded_param import RowShard


class Size(NamedTuple):
    """Width and height; pixels unless said otherwise."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Flip(NamedTuple):
    """How an image is mirrored."""

    x: bool = False
    """Mirror left to right."""

    y: bool = False
    """Mirror top to bottom."""


NO_FLIP = Flip()


# ---------------------------------------------------------------- data


PLACEHOLDERS = ("[trigger]", "[name]")
"""What the trigger word is put for, in captions and prompts."""


@dataclass(frozen=True, slots=True)
class CaptionRules:
    """What happens to a caption each time it is used; everything else is done once, at the scan."""

    dropout_rate: float = 0.0
    """Probability in [0, 1] that the caption of one use is empty."""

    shuffle_tokens: bool = False
    """Shuffle the comma-separated tags, anew at each use."""

    keep_tokens: int = 0
    """Leading tags that `shuffle_tokens` leaves in place (a prepended trigger word and the prefix are not counted)."""

    trigger: str = ""
    """Trigger word that the caption starts with, or empty. It is never moved."""

    prefix: str = ""
    """Text that the caption starts with, after the trigger word if that is in front, or empty. It is never moved."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Weights of the loss over the area of an image."""

    file: str
    """Mask file, white where the loss counts. With `alpha` it is the image itself, opaque where the loss counts."""

    alpha: bool = False
    min_value: float = 0.0
    """Loss weight outside the mask, in [0, 1]."""

    inverted: bool = False
    """The loss counts where the mask is black (transparent)."""


class Sample(NamedTuple):
    """One image of a dataset with its caption, control images and mask. Text and numbers only, no pixels.

    A tuple with files named by text: 100,000 of them take a tenth of the time of as many dataclasses with paths.
    """

    image: str
    """Path of the image file."""

    caption: str
    """Caption with the trigger word in place; empty when there is none."""

    repeats: int
    """How often the image is used in one epoch, per size; at least 1."""

    size: Size
    """Pixels of the image after EXIF rotation."""

    folder: str
    """The folder that holds the image, as the user wrote it (a subfolder appended with /)."""

    control_images: tuple[str, ...] = ()
    """Paths of its control images in slot order."""

    rules: CaptionRules = CaptionRules()
    mask: Mask | None = None
    loss_weight: float = 1.0
    """Factor on the loss; 0: nothing is learned from the image."""

    background: str = "white"
    """Colour that transparent pixels of the image and its control images are composited on."""

    flip: Flip = NO_FLIP
    """How the image, its control images and its mask are mirrored."""

    dataset: int = 0
    """Index of its entry in `datasets`."""

    @property
    def name(self) -> str:
        """The image's file without its folder."""
        return self.image.rpartition(os.sep)[2]


@dataclass(frozen=True, slots=True)
class ResizeCrop:
    """How an image is fitted to its bucket: resized to `scaled`, then cropped to `bucket` at (left, top)."""

    scaled: Size
    left: int
    top: int
    bucket: Size


class BucketedSample(NamedTuple):
    """One image at one training size."""

    sample: Sample
    crop: ResizeCrop


@dataclass(frozen=True)
class BatchSpec:
    """Which items form one micro-batch; a pure function of (seed, epoch, batch size)."""

    epoch: int
    """Counted from 0."""

    items: tuple[int, ...]
    """Indices into the list of bucketed samples, all of one bucket."""

    positions: tuple[int, ...]
    """Index of each use in the epoch's global order. With the epoch it keys all random numbers of that use."""

    samples: tuple[Any, ...] = ()
    """What a stream read for each item, not yet decoded; empty where `items` is enough to load them."""

    def select(self, rows: Iterable[int]) -> BatchSpec:
        """The given items as a micro-batch."""
        rows = tuple(rows)
        items, positions, samples = (
            tuple(of_items[row] for row in rows) if of_items else ()
            for of_items in (self.items, self.positions, self.samples)
        )
        return BatchSpec(self.epoch, items, positions, samples)


@dataclass(frozen=True)
class PromptEmbeds:
    """Text embeddings of a batch, padded at the end to the longest."""

    embeds_BLD: Tensor
    """Of a model whose text encoder is trained: token ids [B, L], which it embeds at each use."""

    lengths: tuple[int, ...]
    """Valid tokens of each item."""

    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further tensors of the family's text encoders by name, such as a pooled embedding: [B, ...], one shape for all
    prompts."""

    def select(self, rows: Sequence[int]) -> PromptEmbeds:
        """The given items, padded only as far as the longest of them."""
        rows = list(rows)
        lengths = tuple(self.lengths[row] for row in rows)
        extra = {name: tensor[rows] for name, tensor in self.extra.items()}
        return PromptEmbeds(self.embeds_BLD[rows, : max(lengths)], lengths, extra)

    def cpu(self) -> PromptEmbeds:
        """The same in CPU memory."""
        extra = {name: tensor.cpu() for name, tensor in self.extra.items()}
        return PromptEmbeds(self.embeds_BLD.cpu(), self.lengths, extra)

    @staticmethod
    def stack(prompts: Sequence[EncodedPrompt]) -> PromptEmbeds:
        """Single prompts as one batch. Raises ValueError when their extra tensors differ in name or shape."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        encoded = [{EMBEDS: prompt} if isinstance(prompt, torch.Tensor) else prompt for prompt in prompts]
        shapes = {tuple((name, t.shape) for name, t in sorted(one.items()) if name != EMBEDS) for one in encoded}
        if len(shapes) > 1:
            raise ValueError(f"prompts of one batch have unlike extra tensors: {sorted(map(str, shapes))}")
        padded_BLD = pad_sequence([one[EMBEDS] for one in encoded], batch_first=True)
        extra = {name: torch.stack([one[name] for one in encoded]) for name in encoded[0] if name != EMBEDS}
        return PromptEmbeds(padded_BLD, tuple(len(one[EMBEDS]) for one in encoded), extra)


EMBEDS = "tensor"
"""The name of the embeddings [L, D] in an encoded prompt, and of the only tensor of a cache entry that has one."""

EncodedPrompt: TypeAlias = "Tensor | Mapping[str, Tensor]"
"""One prompt: its embeddings [L, D], or these under `EMBEDS` and the tensors of `PromptEmbeds.extra`."""


class Batch(Protocol):
    """The data of one micro-batch; every trainer has its own class for it."""

    @property
    def spec(self) -> BatchSpec: ...

    @property
    def names(self) -> tuple[str, ...]:
        """The file of each item, for messages."""

    def __len__(self) -> int: ...

    def halves(self) -> Sequence[Batch]:
        """The batch split in two, with the same random numbers per item; a batch of one is not split."""

    def describe(self) -> str:
        """Its size for messages, such as "latents (3, 16, 64, 64)"."""


Cursor = Any
"""Position of the next micro-batch: a JSON value that only the source reads. None: the beginning."""


class MicroBatch(NamedTuple):
    """The next micro-batch of a source."""

    spec: BatchSpec
    cursor: Cursor
    """Position behind it, from which a resume continues."""

    ends_epoch: bool = False
    """Whether it is the last of its epoch, where the source has epochs."""


class BatchSource(Protocol):
    """Where micro-batches come from: an epoch list, or a stream of unknown length."""

    def iterate(self, cursor: Cursor) -> Iterator[MicroBatch]:
        """The micro-batches from the cursor on, always the same ones, to the end of the data."""

    def load(self, specs: Iterable[BatchSpec]) -> Iterator[Batch]:
        """The batches of these specs, in order, prefetched."""


# ---------------------------------------------------------------- models


class ModelSection(Protocol):
    """The keys of the `model:` section that decide the family and how it is loaded."""

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


class ModelFacts:
    """Constants of a model family, known before any file is read. `toolkit.models.families.ModelFamily` has what
    depends on a model folder."""

    arch: str
    """Its name in `model.arch` and in `toolkit.registry.FAMILIES`."""

    title: str
    """Name of the published model."""

    pipelines: tuple[str, ...]
    """Accepted values of `_class_name` in model_index.json."""

    published: tuple[str, ...] = ()
    """Hub ids of this family."""

    parts: Mapping[str, str]
    """Subfolder of a model folder -> a file that it has to contain, or a pattern of its name."""

    weight_parts: Sequence[str]
    """Subfolders whose weights are needed, as safetensors."""

    trained_part: str = "transformer"
    """Subfolder of the trained module."""

    modelspec: tuple[str, str]
    """`modelspec.architecture` and `modelspec.implementation` in a file's metadata, as other trainers write them."""

    size_multiple: int
    """Training widths and heights are multiples of this many pixels."""

    latent_channels: int
    latent_scale: int
    """Pixels of an image along one side of a latent pixel."""

    patch: int = 1
    """Latent pixels along one side of a token."""

    longest_side: int | None = None
    """Pixels of the longest image that it has positions for; None: any."""

    own_sizes: tuple[Size, ...] = ()
    """Sizes in pixels that the model was published with, a square first; of which a picture gets one where no size is
    given."""

    max_references: int = 0
    """Largest number of control images per sample."""

    text_sees_references: bool = True
    """Whether the text encoder sees the control images beside a prompt."""

    sure_prompt: int = 0
    """Characters of a prompt that fits into the model with any control images."""

    prediction: str = "flow"
    """What the model predicts, and how noise is mixed in: one of PREDICTIONS."""

    empty_negative: str = " "
    """The negative prompt where none is given; by default as diffusers' documentation of Qwen-Image advises."""

    embeds_guidance: bool = False
    """Whether the guidance scale is an input of the model: sampling then needs no negative prediction."""

    encoder_parts: Mapping[str, Sequence[str]]
    """Subfolders of the encoders of latents ("vae") and text embeddings ("text_encoder")."""

    @property
    def token_side(self) -> int:
        """Pixels of an image along one side of a token."""
        return self.latent_scale * self.patch

    def latent_size(self, pixels: Size) -> Size:
        """Width and height of the latents of an image."""
        return Size(*(side // self.latent_scale for side in pixels))

    def tokens(self, latent: Size) -> int:
        """Tokens of an image whose latents have this size."""
        return (latent.width // self.patch) * (latent.height // self.patch)

    def drawable(self, pixels: Size) -> Size:
        """The size rounded down to one that the model can generate."""
        return Size(*(side // self.token_side * self.token_side for side in pixels))

    def default_size(self, reference: Size | None = None, learned: Sequence[Size] = ()) -> Size:
        """The size of a picture that is given none: of `learned`, or else of `own_sizes`, the one whose aspect ratio is
        nearest to that of the reference; without a reference the first."""
        side = min(1024, self.longest_side or 1024)
        sizes = learned or self.own_sizes or (self.drawable(Size(side, side)),)
        if reference is None:
            return sizes[0]
        aspect = math.log(reference.width / reference.height)
        return min(sizes, key=lambda size: abs(math.log(size.width / size.height) - aspect))

    def config_error(self, folder: Path) -> str:
        """What is wrong with the values in the config files of a model folder; empty: nothing."""
        return ""

    def prompt_error(self, model: ModelSection, prompt: str, target: Size, references: Sequence[Size]) -> str | None:
        """The error message for a prompt that is too long with these control images, or None.

        Also None where it cannot be checked yet, because the model's tokenizer is not on the disk.
        """
        return None


class TimeShift(Protocol):
    """The timestep shift of a model's own sampler: t becomes exp(mu) t / (1 + (exp(mu) - 1) t)."""

    @property
    def shift_terminal(self) -> float | None:
        """The last timestep before 0, to which the schedule is stretched; None: no stretching."""

    def mu(self, tokens: int, steps: int) -> float:
        """The shift exponent for an image of `tokens` tokens, sampled in `steps` steps."""


@dataclass(frozen=True)
class DynamicShift:
    """The sampler's resolution-dependent time shift, as diffusers' FlowMatchEulerDiscreteScheduler names it."""

    base_image_seq_len: int = 256
    max_image_seq_len: int = 8192
    base_shift: float = 0.5
    max_shift: float = 0.9
    shift_terminal: float | None = 0.02

    def mu(self, tokens: int, steps: int) -> float:
        """Linear in the number of tokens. Source: diffusers, pipeline_qwenimage_edit_plus.py, `calculate_shift`."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (tokens - self.base_image_seq_len)


BlockForward = Callable[..., "tuple[Tensor, ...]"]
"""Runs a block (the first argument) on tensors (the others, or None). Its outputs are the inputs of the next block."""

BlockWrapper = Callable[[BlockForward], BlockForward]
"""Wraps the forward of a block without changing its result."""

WeightStreaming = Callable[["Sequence[nn.Module]", "torch.device"], BlockWrapper]
"""Takes modules and a device: moves the modules' frozen weights to the CPU memory, and returns the wrapper that brings
them to the device, module by module."""


class DiffusionModel(ABC):
    """The interface to a model family. Nothing outside `toolkit/models` knows which one it is."""

    family: ModelFacts

    @property
    @abstractmethod
    def dynamic_shift(self) -> TimeShift:
        """By how much the noise level is shifted for a number of tokens."""

    @property
    @abstractmethod
    def network_module(self) -> torch.nn.Module:
        """The module that is trained or carries the adapter (the transformer); loaded by the first access."""

    @abstractmethod
    def cache_key(self, part: str) -> str:
        """Hash of the weights and settings of `vae` or `text_encoder`: all that decides the result of encoding."""

    @abstractmethod
    def reference_size(self, image: Size, target: Size) -> Size:
        """Size that a control image of size `image` is resized to before `encode_images`, for a target of this size."""

    @abstractmethod
    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] [B, 3, sH, sW] to normalised latents [B, C, H, W], s `ModelFacts.latent_scale`.

        Deterministic (the mean).
        """

    @abstractmethod
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """The inverse of `encode_images`: float32 pixels [B, 3, sH, sW], clamped to [-1, 1]."""

    def prompt_error(self, prompt: str, target: Size, references: Sequence[Size]) -> str | None:
        """The error message for a prompt that is too long with these control images, or None.

        references: sizes of the control images before resizing.
        """
        return None

    @abstractmethod
    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> EncodedPrompt:
        """Embeddings [L, D] of one prompt with its RGB control images, of any size, at most `max_references`; where the
        text encoder is trained, token ids [L]."""

    @abstractmethod
    def predict_velocity(
        self,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        references: Sequence[Sequence[Tensor]],
        guidance_B: Tensor | None = None,
    ) -> Tensor:
        """What `ModelFacts.prediction` says, by default the velocity (noise - image), [B, C, H, W] at noise fraction t
        in [0, 1], 1 = pure noise.

        guidance_B: the guidance scale that a distilled model embeds; None: the family's own. A family without such an
        input raises ValueError for any other.
        """

    def sampling_level(self, t_B: Tensor) -> Tensor:
        """The timestep that the family's own pipeline passes to the model for t [B], float32.

        It may differ from t by the rounding of that pipeline; training passes t itself.
        """
        return t_B

    @abstractmethod
    def apply_cfg(self, cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance: combines the two velocities as this family's own pipeline does."""

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Hidden size of the transformer: channels per token."""

    @property
    @abstractmethod
    def head_dim(self) -> int:
        """Channels per attention head."""

    @abstractmethod
    def num_tokens(self, latents_BCHW: Tensor, prompts: PromptEmbeds, references: Sequence[Sequence[Tensor]]) -> int:
        """Tokens of a batch in the blocks: images, control images and texts of all its items."""

    @abstractmethod
    def blocks(self) -> Sequence[torch.nn.Module]:
        """The repeated blocks, in order: the unit of quantization, checkpointing, compiling and swapping."""

    @abstractmethod
    def lora_targets(self) -> Sequence[str]:
        """Full dotted names, inside `network_module`, of the linear layers a LoRA adapts by default."""

    def fused_projection_groups(self) -> Sequence[Sequence[str]]:
        """Groups of `lora_targets` that are called one after the other with the same input."""
        return ()

    @abstractmethod
    def wrap_blocks(
        self, wrappers: Sequence[BlockWrapper], last_block_wrappers: Sequence[BlockWrapper] | None = None
    ) -> None:
        """Wraps every block's forward in `wrappers`, the first one innermost; replaces earlier wrappers.

        last_block_wrappers: those of the last block of a batch, where the backward pass begins; None: the same.
        """

    def enable_modulation_cache(self, streaming: WeightStreaming) -> str | None:
        """Moves the modulation layers to the CPU and caches their outputs per timestep (`model.modulation_table`).

        Called once the network is attached. streaming: runs layers whose weights stay in CPU memory.
        Returns why that is not possible here, or None.
        """
        return None

    def prefetch_timesteps(self, levels: Iterable[float]) -> None:  # noqa: B027 - only a cache makes use of it
        """Timesteps in [0, 1] of the next calls of `predict_velocity`. Other timesteps work too, but slower."""

    @abstractmethod
    def unload_encoders(self, keep: Iterable[str] = ()) -> None:
        """Frees the encoders that training no longer needs. keep: names of parts that stay."""


# ---------------------------------------------------------------- training


class Network(ABC):
    """The trained parameters: an adapter on a frozen model, or the model itself."""

    @classmethod
    def from_config(cls, settings: Any, targets: Sequence[str], seed: int, dtype: torch.dtype) -> Self:
        """The network of a `network:` section, on these modules; its compute dtype is `dtype`."""
        raise NotImplementedError

    @staticmethod
    @abstractmethod
    def trainable_modules(model: DiffusionModel) -> Sequence[str]:
        """Full dotted names, inside `network_module`, of the modules this kind can train."""

    @abstractmethod
    def attach(self, model: torch.nn.Module) -> None:
        """Adds the trainable parameters to `model` and freezes the rest. The output of the model stays the same."""

    def fuse_projections(self, groups: Iterable[Sequence[str]]) -> None:  # noqa: B027 - most kinds make no use of it
        """Optional optimisation: fuses the projections of layers that share an input
        (`DiffusionModel.fused_projection_groups`). Must not change results.
        """

    @abstractmethod
    def load_pretrained(self, deltas: Mapping[str, Any]) -> None:
        """Initialises the network from a file's deltas (`toolkit.networks.lora_formats.LayerDelta` by module)."""

    @abstractmethod
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Trainable parameters by a name that is stable across runs; float32 unless `train.full_bf16`."""

    def sharded_params(self) -> dict[str, RowShard]:
        """Tensors of `parameters` and `export` that are sharded, by name.

        A network with sharded parameters uses the same names in `export` and `parameters`.
        """
        return {}

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Disables dropout inside the block; for sampling and validation during training."""
        yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Disables the network inside the block, as peft's `disable_adapter`. No effect where the model itself is
        trained."""
        yield

    def after_step(self, step_ok: Tensor) -> dict[str, Tensor]:
        """Post-processes the weights after an optimizer step (max norm, say), without waiting for the device.

        step_ok: 0-dim bool; where it is false nothing may change, bit for bit. Returns 0-dim metrics to log.
        """
        return {}

    def module_name_of(self, name: str) -> str:
        """The dotted name of the layer that a parameter belongs to."""
        return name.rpartition(".")[0]

    def lora_b_parameters(self) -> frozenset[str]:
        """Names of the parameters with LoRA+'s own learning rate (the up matrices); empty where there are none.

        Source: https://arxiv.org/abs/2402.12354 (its B).
        """
        return frozenset()

    @abstractmethod
    def export(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """`weights` (named as in `parameters`) under the names of the saved file."""


@dataclass
class TrainState:
    """Everything a resume needs that is not a tensor. Only the loop changes it."""

    step: int = 0
    """Optimizer steps done."""

    cursor: Cursor = None
    """Position of the next micro-batch."""

    epoch: int = 0
    """Epoch of the last micro-batch, counted from 0; 0 where the source has no epochs."""

    epochs_done: int = 0
    """Completed epochs."""

    epochs_before: int = 0
    """`epochs_done` before the last step: tells whether an epoch ended with it."""

    samples: int = 0
    """Samples trained on, repeats included."""

    skipped: int = 0
    """Optimizer steps that a role skipped because its loss or gradient was not finite."""

    extra: dict[str, Any] = field(default_factory=dict)
    """State of callbacks for a resume, by callback name; JSON values only."""


@dataclass(frozen=True)
class StepLosses:
    """What a `TrainStep` returns: one loss per sample and role, and metrics."""

    by_role: dict[str, Tensor]
    """Role -> differentiable float32 losses [B]. Roles that learn from one loss have the same tensor: it has one
    backward pass and counts once."""

    per_sample: dict[str, Tensor] = field(default_factory=dict)
    """Metric name -> one value per sample [B], on any device, such as the timestep t."""

    numbers: dict[str, Tensor] = field(default_factory=dict)
    """Metric name -> one value of the batch (0-dim). Of an accumulation step the mean is logged, weighted by the
    samples of the batches that have the metric."""


class Backward(Protocol):
    """Runs the backward passes of one micro-batch. Losses are averaged over the whole accumulation step."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""

    @property
    def roles(self) -> frozenset[str]:
        """Roles that are trained in this step; losses of others are ignored."""

    def __call__(self, losses: Mapping[str, Tensor], retain_graph: bool = False, final: bool = True) -> None:
        """One backward pass of the sum of these losses (role -> [B]); only parameters of these roles get gradients.

        retain_graph: another backward pass of this micro-batch uses the same graph. final: no other one of this
        micro-batch has a loss of these roles.
        """


BatchT = TypeVar("BatchT", bound=Batch)
"""The type of batch that the source loads and the step takes."""


class TrainStep(ABC, Generic[BatchT]):
    """Forward pass and losses of one micro-batch. All the loop knows of the model."""

    @abstractmethod
    def __call__(self, batch: BatchT, step: int) -> StepLosses:
        """The losses of a micro-batch. step: optimizer steps done."""

    def backward(self, batch: BatchT, backward: Backward) -> StepLosses:
        """Computes the losses and runs their backward passes: by default one of their sum.

        A step of several roles that see each other (a generator and its discriminator) calls `backward` once for each,
        one of several losses with passes of their own once for each loss.
        """
        losses = self(batch, backward.step)
        backward(losses.by_role)
        return losses


@dataclass(frozen=True)
class RoleResult:
    """One optimizer step of one role."""

    loss: float
    lr: float
    grad_norm: float
    skipped: bool = False
    """Loss or gradient was not finite: the role's parameters did not change."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, as callbacks see it."""

    step: int
    """Number of the step just done, from 1."""

    epoch: int
    """Epoch the step's last micro-batch belongs to, counted from 0."""

    loss: float
    lr: float
    grad_norm: float
    samples: int
    """Samples trained on since the run began."""

    step_s: float
    """Wall seconds since the previous optimizer step ended, without saving and sampling. Steps whose metrics were
    fetched together (`Callback.on_metrics`) have their mean, as the host prepares a step while the device computes."""

    data_s: float
    """Part of `step_s` spent waiting for batches."""

    per_sample: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Metric name -> one value per sample of the step: its `loss`, and those of the `TrainStep` (`t`)."""

    skipped: bool = False
    """A loss or gradient was not finite: at least one role skipped this step."""

    lr_by_group: dict[str, float] = field(default_factory=dict)
    """Further learning rates by name: of each role (`<role>`, `<role>/<group>`) and parameter group where there are
    several, and those that the optimizer estimates."""

    extra_metrics: dict[str, float] = field(default_factory=dict)
    """Extra scalars to log: name -> value. With several roles also `loss/<role>` and `grad_norm/<role>` of those that
    were trained."""

    by_role: dict[str, RoleResult] = field(default_factory=dict)
    """The results of the roles that took part in the step."""

    def logged(self) -> dict[str, float]:
        """The metrics of the step, by their names in metrics.jsonl."""
        return {
            "loss": self.loss,
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            **{f"lr/{name}": lr for name, lr in self.lr_by_group.items()},
            **self.extra_metrics,
            **{f"{name}_mean": fmean(values) for name, values in self.per_sample.items() if name != "loss"},
        }


Progress = Callable[[str, int, int], None]
"""Called as (what, done, total) by long work that is not training."""
