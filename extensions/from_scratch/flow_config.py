"""The section of `type: flow_trainer`.

The section resolves defaults by role and reports every fault of a job before anything
is loaded. The module imports no torch. `flow_process` trains with the section, `plan`
describes it, and `start` makes the first model folder from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from extensions.from_scratch.arguments import autoencoder_fault, faults
from extensions.from_scratch.autoencoder_config import (
    LEVELS,
    WITHOUT_NORMS,
    AutoencoderConfig,
    without_norms,
)
from extensions.from_scratch.latent_flow.family import (
    DEFAULT_MAX_TOKENS,
    FAMILY,
    PIPELINE,
    REFERENCES,
    TRANSFORMERS,
    LatentFlowFamily,
    part_config,
)
from extensions.from_scratch.losses_config import (
    DISCRIMINATOR,
    TINY,
    VAE,
    DiscriminatorConfig,
    LossesConfig,
    check_losses,
    logged_losses,
)
from extensions.from_scratch.roles_config import AutoencoderTraining, RolesSection
from toolkit.config.reading.base import ALL_OTHERS, StrictModel
from toolkit.config.reading.field_types import AutoOrBool, OneOf, PathStr, path_hint
from toolkit.config.reading.findings import warning
from toolkit.config.reading.located import KeyPath
from toolkit.config.reading.process import JobContext
from toolkit.config.sections.dataset import LOSS, loss_at, noise_levels, sides_of
from toolkit.config.sections.model_files import (
    ModelFolder,
    looks_like_a_path,
    path_fault,
)
from toolkit.config.sections.output import SampleConfig, SamplePicture
from toolkit.config.sections.train import (
    PRESERVATIONS,
    RoleOptimizerConfig,
    TrainConfig,
)
from toolkit.contracts.data import Size
from toolkit.contracts.model import PREDICTIONS
from toolkit.data.batches.image_data import ImageData
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.fingerprint import digest_of, fingerprint
from toolkit.data.scan.items import (
    refuse_large,
    refuse_references,
    sample_inputs,
    scan_items,
    too_large,
)
from toolkit.data.scan.validation_split import forward_passes, split_validation
from toolkit.errors import DataErrors, Diagnostic, RunError, UserError

FLOW, TEXT_ENCODER = "flow", "text_encoder"
"""The roles."""

LOSS_FLOW = "loss_flow"
"""The metric of the flow model's loss, as FluxFlow's training guide calls it."""

BESIDE_AN_ADAPTER = (
    "needs an adapter beside which the file works, and this trains a model. Remove it."
)

SLOW = 1e-5
"""Learning rate below which a transformer of random weights hardly moves."""

TEXT_SHARE = 0.1
"""The text encoder's learning rate where none is given, as a share of the flow
model's."""

MEASURE_EVERY = 100
"""Steps between two measurements of the scale of the latents of an autoencoder that
began with random weights."""

RESERVED_NAMES = ("start", "state", "samples", "control", "superseded")
"""Other folders in the folder of a run, next to the model's own folder `<name>/`."""

if TYPE_CHECKING:  # mypy does not accept a computed Literal
    from toolkit.data.streams.stream_dataset import StreamDataset

    AutoencoderClass = str
    ClassName = str
    Prediction = str
else:
    AutoencoderClass = Literal[tuple(LEVELS)]
    ClassName = Literal[tuple(TRANSFORMERS)]
    Prediction = Literal[PREDICTIONS]


class TransformerConfig(StrictModel):
    """`model.transformer`: a transformer of diffusers with random weights.

    Example:
        transformer:
          class_name: SD3Transformer2DModel
          config: {num_layers: 4, num_attention_heads: 4, attention_head_dim: 32}
    """

    class_name: ClassName = "SD3Transformer2DModel"
    """Class of diffusers."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the class, such as num_layers, num_attention_heads and
    attention_head_dim. Those that fit it to the latents and the text embeddings are
    filled in; other arguments have the values of diffusers."""

    on_resume: ClassVar = {ALL_OTHERS: "impossible"}


class TextEncoderConfig(StrictModel):
    """`model.text_encoder`: a text encoder of transformers, from a folder or with
    random weights.

    Example:
        text_encoder:
          config: {hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 4}
    """

    name_or_path: PathStr = ""
    """Folder, or hub id (`owner/name`), of a BERT, DistilBERT, T5 encoder, CLIP text
    model or Qwen3, or folder of a model with one in `text_encoder/`. Empty: a BertModel
    with random weights."""

    tokenizer: PathStr = ""
    """Folder or hub id of its tokenizer. Empty: the tokenizer of `name_or_path`; for
    random weights a tokenizer is made from the captions."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the BertConfig of random weights, such as hidden_size,
    num_hidden_layers, num_attention_heads and intermediate_size; vocab_size is also the
    tokenizer's maximum. Other arguments have the values of transformers.
    Dropout is not used."""

    projection_dim: int = Field(default=0, ge=0, le=100_000)
    """Width of a linear layer behind it, whose weights are random (orthogonal) and
    trained with it. 0: none."""

    max_tokens: int = Field(default=DEFAULT_MAX_TOKENS, ge=2, le=100_000)
    """Tokens of a caption or prompt; later ones are cut off."""

    train: AutoOrBool = "auto"
    """Train it along. auto: where its weights are random, or `optimizers.text_encoder`
    is given."""

    allow_random: bool = False
    """Allow random weights that are not trained: captions are then arbitrary, though
    constant, vectors."""

    on_resume: ClassVar = {
        ALL_OTHERS: "impossible",
        **dict.fromkeys(("name_or_path", "tokenizer"), "place"),
        "allow_random": "harmless",
    }


class NewAutoencoderConfig(StrictModel):
    """`model.new_vae`: an autoencoder of diffusers with random weights, which is
    trained along.

    Example:
        new_vae: {class_name: AutoencoderKL, config: {latent_channels: 8}}
    """

    class_name: AutoencoderClass = "AutoencoderKL"
    """Class of diffusers."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the class, as of a `vae_trainer`."""

    initial_logvar: float = Field(default=-4.0, ge=-30, le=20)
    """The log variance of the latents at the start; 0: a variance of 1."""

    on_resume: ClassVar = {ALL_OTHERS: "impossible"}


class FlowModelConfig(StrictModel):
    """`model`: the model that is trained, and the latents it is trained on.

    Example:
        model:
          vae: output/my_model/vae/vae
          transformer: {config: {num_layers: 4}}
    """

    name_or_path: PathStr = ""
    """Folder that an earlier flow_trainer wrote: every part comes from it. Empty: a
    model with random weights."""

    prediction: Annotated[Prediction, OneOf(*PREDICTIONS)] = "flow"
    """The prediction of the transformer. flow: the velocity on the straight path from
    image to noise. v: cos(a) noise - sin(a) image on the path cos(a) image + sin(a)
    noise, a = pi t / 2. The model's folder records it."""

    transformer: TransformerConfig = Field(default_factory=TransformerConfig)
    """The transformer."""

    vae: PathStr = ""
    """Folder of the autoencoder, or of a model with one in `vae/`. With `name_or_path`
    it replaces that model's autoencoder, and must have the same number of channels.
    Required without `name_or_path` and `new_vae`."""

    new_vae: NewAutoencoderConfig | None = None
    """An autoencoder with random weights, with the section `autoencoder`, which trains
    it."""

    text_encoder: TextEncoderConfig = Field(default_factory=TextEncoderConfig)
    """The text encoder."""

    on_resume: ClassVar = {
        **dict.fromkeys(("prediction", "new_vae"), "impossible"),
        **dict.fromkeys(("name_or_path", "vae"), "place"),
    }

    def folder(self) -> Path:
        """`name_or_path` as an absolute path."""
        return Path(self.name_or_path).expanduser().resolve()

    def autoencoder(self) -> AutoencoderConfig:
        """The autoencoder, as other trainers name it."""
        new = self.new_vae
        if new:
            return AutoencoderConfig(
                class_name=new.class_name,
                config=new.config,
                initial_logvar=new.initial_logvar,
            )
        return AutoencoderConfig(name_or_path=self.vae or self.name_or_path)

    def is_yet_to_come(self, job: JobContext) -> bool:
        """Whether an earlier process of the job writes one of the folders that decide
        the images' sizes."""
        return self.autoencoder().is_yet_to_come(job) or job.yet_to_come(
            self.name_or_path
        )

    def family(self) -> LatentFlowFamily:
        """The facts of the model. Raises RunError or UserError for a folder that cannot
        be read."""
        vae = self.autoencoder().arguments()
        if self.name_or_path:
            layout = FAMILY.of_folder(self.folder())
            transformer = part_config(self.folder(), "transformer")
            return LatentFlowFamily.of_parts(
                vae, transformer, layout.prediction, layout.max_tokens
            )
        transformer = {
            "_class_name": self.transformer.class_name,
            **self.transformer.config,
        }
        return LatentFlowFamily.of_parts(
            vae, transformer, self.prediction, self.text_encoder.max_tokens
        )

    def class_of_transformer(self, job: JobContext) -> str:
        """The diffusers class; empty where the folder does not exist yet or cannot be
        read."""
        if not self.name_or_path:
            return self.transformer.class_name
        if job.yet_to_come(self.name_or_path) or path_fault(self.name_or_path):
            return ""
        try:
            return str(part_config(self.folder(), "transformer").get("_class_name", ""))
        except UserError:
            return ""

    def has_random_text(self) -> bool:
        """Whether the text encoder is made with random weights."""
        return not self.name_or_path and not self.text_encoder.name_or_path

    def check(self, job: JobContext) -> Iterator[Diagnostic]:
        """Folders that are missing or hold something else, and keys that exclude each
        other."""
        text = self.text_encoder
        if self.name_or_path:
            yield from self._check_beside_folder()
            if not job.yet_to_come(self.name_or_path):
                yield from self._check_folder()
        yield from self._check_arguments()
        if self.new_vae:
            for key in ("name_or_path", "vae"):
                if getattr(self, key):
                    yield Diagnostic(
                        ("new_vae",),
                        f"has no effect with 'model.{key}'. Remove one of them.",
                    )
        elif not self.name_or_path and not self.vae:
            remedy = "Give the folder of an autoencoder, such as a vae_trainer wrote, or 'new_vae'."
            yield Diagnostic(("vae",), f"required. {remedy}")
        if self.vae:
            autoencoder = AutoencoderConfig(name_or_path=self.vae)
            messages = [diagnostic.message for diagnostic in autoencoder.check(job)]
            if not messages and not autoencoder.is_yet_to_come(job):
                messages = [autoencoder_fault(autoencoder)]
            yield from (Diagnostic(("vae",), fault) for fault in messages if fault)
        for key in ("name_or_path", "tokenizer"):
            path = getattr(text, key)
            is_there = Path(path).expanduser().is_dir() or not looks_like_a_path(path)
            if path and not job.yet_to_come(path) and not is_there:
                where = f"is neither a folder nor a hub id owner/name (working directory: {Path.cwd()})."
                message = f"{path!r} {where} {path_hint(path)}".rstrip()
                yield Diagnostic(("text_encoder", key), message)
        if text.name_or_path and text.config:
            message = "has no effect with 'name_or_path', whose files decide it. Remove one of them."
            yield Diagnostic(("text_encoder", "config"), message)
        if text.tokenizer and not text.name_or_path:
            message = "needs name_or_path. A randomly initialised text encoder builds its tokenizer from the captions."
            yield Diagnostic(("text_encoder", "tokenizer"), message)

    def _check_arguments(self) -> Iterator[Diagnostic]:
        """Arguments that the classes of random weights do not take."""
        text = self.text_encoder
        given = {
            ("transformer", "config"): (
                self.transformer.class_name,
                self.transformer.config,
            ),
            ("text_encoder", "config"): ("BertConfig", text.config),
        }
        if self.new_vae:
            given["new_vae", "config"] = self.new_vae.class_name, self.new_vae.config
        for at, (name, arguments) in given.items():
            argument_faults = list(faults(name, arguments))
            for key, message in argument_faults:
                yield Diagnostic((*at, *key), message)
            most = arguments.get("max_position_embeddings", text.max_tokens)
            if name == "BertConfig" and not argument_faults and most < text.max_tokens:
                message = f"{text.max_tokens} exceeds the {most} positions of the text encoder. Change one of them."
                yield Diagnostic(("text_encoder", "max_tokens"), message)

    def _check_beside_folder(self) -> Iterator[Diagnostic]:
        message = "has no effect with 'model.name_or_path', whose files decide it. Remove one of them."
        if "transformer" in self.model_fields_set:
            yield Diagnostic(("transformer",), message)
        for key in sorted(
            self.text_encoder.model_fields_set - {"train", "allow_random"}
        ):
            yield Diagnostic(("text_encoder", key), message)

    def _check_folder(self) -> Iterator[Diagnostic]:
        fault = path_fault(self.name_or_path)
        if not fault:
            name = ModelFolder(self.folder()).pipeline()
            if name != PIPELINE:
                fault = f"{self.name_or_path!r} is a {name}. Give a folder that a flow_trainer wrote."
        if fault:
            yield Diagnostic(("name_or_path",), fault)
            return
        layout = FAMILY.of_folder(self.folder())
        if (
            "prediction" in self.model_fields_set
            and self.prediction != layout.prediction
        ):
            message = (
                f"{self.prediction!r}, but the model in {self.name_or_path} "
                f"predicts {layout.prediction!r}. Leave it out."
            )
            yield Diagnostic(("prediction",), message)
        try:
            given = self.family()
        except (RunError, UserError):
            return  # it is reported for `vae`
        if given.latent_channels != layout.latent_channels:
            message = (
                f"its latents have {given.latent_channels} channels, "
                f"those of the model {layout.latent_channels}."
            )
            yield Diagnostic(("vae",), message)


class AlongConfig(StrictModel):
    """`autoencoder`: trains the autoencoder along with the flow model, on the same
    images.

    Example:
        autoencoder:
          train: decoder
          losses: {l1: 1, kl: 0}
    """

    train: Annotated[Literal["all", "decoder"], OneOf()] = "all"
    """The part that is trained. decoder: the latents do not change."""

    spade: bool | None = None
    """SPADE in the decoder: true adds it, false drops the SPADE of the folder. None: as
    the folder has it."""

    losses: LossesConfig = Field(default_factory=LossesConfig)
    """The losses that are minimised."""

    discriminator: DiscriminatorConfig | None = None
    """Adversarial training; none without this section."""

    measure_every: int | None = Field(default=None, ge=0, le=1_000_000)
    """Optimizer steps of the autoencoder until the scale of its latents is measured
    again. The scale gives the flow model's latents a standard deviation of about 1. 0:
    it does not change. None: 100 for random weights, else 0."""

    measured_images: int = Field(default=64, ge=1, le=10_000)
    """Training images that measure the scale, evenly from all; of a stream its first
    ones."""

    on_resume: ClassVar = dict.fromkeys(
        ("discriminator", "train", "spade", "measure_every"), "impossible"
    )


class FlowOptimizersConfig(StrictModel):
    """`optimizers`: settings of single roles that differ from `train`.

    Example:
        optimizers:
          text_encoder: {lr: 0.0001}
    """

    flow: RoleOptimizerConfig = Field(default_factory=RoleOptimizerConfig)
    """Optimizer of the transformer."""

    text_encoder: RoleOptimizerConfig = Field(default_factory=RoleOptimizerConfig)
    """Optimizer of the text encoder, where it is trained. Its `lr`, where not given, is
    a tenth of the transformer's."""

    vae: RoleOptimizerConfig = Field(default_factory=RoleOptimizerConfig)
    """Optimizer of the autoencoder, where it is trained too."""

    discriminator: RoleOptimizerConfig = Field(default_factory=RoleOptimizerConfig)
    """Optimizer of the discriminator. Its betas are (0, 0.9) and amsgrad is on where
    its optimizer is an AdamW and they are not given."""


class FlowTrainerConfig(RolesSection):
    """`type: flow_trainer`: trains a flow model on the latents of an autoencoder, from
    nothing or from its own earlier result.

    Example:
        type: flow_trainer
        model: {vae: output/my_model/vae/vae}
        datasets: [{folder_path: datasets/photos, resolution: 256}]
    """

    process_types: ClassVar[tuple[str, ...]] = ("flow_trainer",)

    planner: ClassVar = "extensions.from_scratch.plan:FlowPlanner"

    model: FlowModelConfig
    """The model that is trained, and the latents it is trained on."""

    optimizers: FlowOptimizersConfig = Field(default_factory=FlowOptimizersConfig)
    """Optimizer and learning rate of each role, where they differ from `train`."""

    autoencoder: AlongConfig | None = None
    """Trains the autoencoder along; without this section it is frozen."""

    train: TrainConfig = Field(default_factory=TrainConfig)
    """Length, optimizer, loss and precision."""

    sample: SampleConfig | None = None
    """Images drawn during training; none without this section. Width and height are by
    default those of the first dataset's resolution."""

    # ------------------------------------------------------------ trained roles

    def trains_text(self) -> bool:
        """Whether the text encoder is trained along."""
        wanted = self.model.text_encoder.train
        given = TEXT_ENCODER in self.optimizers.model_fields_set
        if wanted == "auto":
            return self.model.has_random_text() or given
        return bool(wanted)

    def roles(self) -> tuple[str, ...]:
        """The names of the roles that are trained."""
        along = self.autoencoder
        is_trained = {
            FLOW: True,
            TEXT_ENCODER: self.trains_text(),
            VAE: along is not None,
            DISCRIMINATOR: along is not None and along.discriminator is not None,
        }
        return tuple(role for role, trained in is_trained.items() if trained)

    def measure_every(self) -> int:
        """Steps between two measurements of the latents' scale; 0: it is not
        measured."""
        given = self.autoencoder.measure_every if self.autoencoder else 0
        by_default = MEASURE_EVERY if self.model.new_vae else 0
        return by_default if given is None else given

    def role_defaults(self, role: str) -> dict[str, Any]:
        own = self.own_optimizer(role)
        defaults: dict[str, Any] = {}
        if role == TEXT_ENCODER:
            defaults["lr"] = TEXT_SHARE * self.role_optimizer(FLOW).lr
        is_another = own.optimizer != self.train.optimizer
        if is_another and "optimizer" in own.model_fields_set:
            defaults["optimizer_params"] = {}  # those of `train` are of its optimizer
        return defaults | super().role_defaults(role)

    def trained_autoencoder(self) -> AutoencoderTraining | None:
        along = self.autoencoder
        if along is None:
            return None
        model = self.model.autoencoder().model_copy(
            update={"train": along.train, "spade": along.spade}
        )
        return AutoencoderTraining(
            model, along.losses, along.discriminator, "autoencoder."
        )

    def sample_pictures(self) -> tuple[SamplePicture, ...]:
        """The images of one set with everything filled in."""
        if self.sample is None:
            return ()
        sides = zip(
            ("width", "height"), sides_of(self.datasets[0].resolution[0]), strict=True
        )
        missing = {
            key: side for key, side in sides if key not in self.sample.model_fields_set
        }
        return self.sample.model_copy(update=missing).sample_items()

    def weights_dtype(self) -> str:
        """Number type of the trained weights in memory."""
        return self.train.dtype if self.train.full_bf16 else "float32"

    def logged_numbers(self) -> Sequence[str]:
        """Metrics of a step, and of the validation where there is one."""
        levels = noise_levels(self.validation.timesteps) if self.validation else ()
        scaled = ("loss_scale",) if self.train.dtype == "float16" else ()
        roles = self.roles()
        kinds = ("loss", "grad_norm", "lr") if len(roles) > 1 else ()
        by_role = (f"{kind}/{role}" for role in roles for kind in kinds)
        along = self.autoencoder
        of_vae = logged_losses(along.losses, along.discriminator) if along else ()
        of_a_step = (
            "loss",
            LOSS_FLOW,
            "grad_norm",
            "lr",
            "t_mean",
            *by_role,
            *scaled,
            *of_vae,
        )
        return (*of_a_step, *([LOSS] if levels else []), *map(loss_at, levels))

    # ------------------------------------------------------------ checks

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Combinations of keys of several subsections."""
        yield from super().check(job)
        yield from self._check_text()
        yield from self._check_autoencoder()
        yield from self._check_train()
        given = self.optimizers.model_fields_set
        yield from self.check_optimizers(
            [role for role in FlowOptimizersConfig.model_fields if role in given]
        )
        yield from self._check_references(job)
        yield from self._warn()
        name = self.display_name(job)
        if name in RESERVED_NAMES:
            message = f"{name!r} is a folder of every run; the model's folder has the same name. Choose another."
            yield Diagnostic(("name",), message)

    def _check_references(self, job: JobContext) -> Iterator[Diagnostic]:
        given: dict[KeyPath, tuple[str, ...]] = {}
        for index, dataset in enumerate(self.datasets):
            key, slots = dataset.references
            given[("datasets", index, key)] = slots
        if self.sample and self.sample.lora:
            yield Diagnostic(("sample", "lora"), BESIDE_AN_ADAPTER)
        if self.sample and self.sample.vae_path:
            message = "is for models of the Qwen-Image family, and this model has an autoencoder of its own. Remove it."
            yield Diagnostic(("sample", "vae_path"), message)
        for index, item in enumerate(self.sample.samples if self.sample else ()):
            given["sample", "samples", index, "ctrl_img"] = item.ctrl_img
        if self.validation:
            given["validation", "control_path"] = self.validation.control_path
        name = self.model.class_of_transformer(job)
        if name and not REFERENCES.get(name):
            able = " or ".join(REFERENCES)
            message = (
                f"{name} does not support control images. Remove it, or train a "
                f"{able} (model.transformer.class_name)."
            )
            for at, paths in given.items():
                if paths:
                    yield Diagnostic(at, message)

    def _check_autoencoder(self) -> Iterator[Diagnostic]:
        along = self.autoencoder
        if along:
            new = self.model.new_vae
            has_no_kl = new is not None and new.class_name == TINY
            for diagnostic in check_losses(
                along.losses, along.discriminator, has_no_kl
            ):
                yield Diagnostic(("autoencoder", *diagnostic.key), diagnostic.message)
            if new and along.train != "all":
                message = f"{along.train!r} needs a trained encoder, but 'model.new_vae' has random weights. Remove it."
                yield Diagnostic(("autoencoder", "train"), message)
            if new and along.spade and new.class_name in WITHOUT_NORMS:
                yield Diagnostic(
                    ("autoencoder", "spade"), without_norms(new.class_name)
                )
            if self.validation and along.train == "all":
                message = "needs fixed latents, but 'autoencoder' changes them during training. Remove it."
                yield Diagnostic(("validation",), message)
        elif self.model.new_vae:
            message = (
                "an autoencoder with random weights has to be trained. Add the "
                "section 'autoencoder', or set 'vae'."
            )
            yield Diagnostic(("model", "new_vae"), message)
        sections = {VAE: "autoencoder", DISCRIMINATOR: "autoencoder.discriminator"}
        for role, section in sections.items():
            if role in self.optimizers.model_fields_set and role not in self.roles():
                message = f"needs the section '{section}'. Add it, or remove this key."
                yield Diagnostic(("optimizers", role), message)

    def _check_text(self) -> Iterator[Diagnostic]:
        if (
            self.model.has_random_text()
            and not self.trains_text()
            and not self.model.text_encoder.allow_random
        ):
            yield Diagnostic(
                ("model", "text_encoder", "train"),
                "false, but its weights are random, so captions would be noise. Remove 'train', give 'name_or_path' a "
                "trained text encoder, or 'allow_random: true'.",
            )
        if TEXT_ENCODER in self.optimizers.model_fields_set and not self.trains_text():
            message = "has no effect: 'model.text_encoder.train: false' freezes it. Remove one of them."
            yield Diagnostic(("optimizers", TEXT_ENCODER), message)

    def _check_train(self) -> Iterator[Diagnostic]:
        train, roles = self.train, self.roles()
        without = "needs the model without its adapter, and a flow_trainer trains the model itself. Remove it."
        offload = (
            "'block_offload' is not supported by flow_trainer yet. Use full_offload."
        )
        fsdp = "'fsdp' is not supported by flow_trainer yet. Remove it."
        single = f"works with a single role, but {' and '.join(roles)} are trained. Remove it."
        beside = ("assistant",)
        is_block_offload = train.checkpointing_level() == "block_offload"
        is_fused = train.fused_backward_pass and len(roles) > 1
        for key, is_wrong, message in (
            *((key, getattr(train, key), without) for key in PRESERVATIONS),
            *((key, getattr(train, key), BESIDE_AN_ADAPTER) for key in beside),
            ("gradient_checkpointing", is_block_offload, offload),
            ("parallel", train.parallel == "fsdp", fsdp),
            ("fused_backward_pass", is_fused, single),
        ):
            if is_wrong:
                yield Diagnostic(("train", key), message)

    def _warn(self) -> Iterator[Diagnostic]:
        """Rates that move nothing, guidance without an unconditional model."""
        lr = self.role_optimizer(FLOW).lr
        key = ("optimizers", FLOW, "lr")
        if not self.model.name_or_path and 0 < lr < SLOW:
            is_own = "lr" in self.optimizers.flow.model_fields_set
            at = key if is_own else ("train", "lr")
            message = f"{lr:g} is very low for a randomly initialised transformer; below {SLOW:g} it barely learns."
            yield Diagnostic(at, message, "warning")
        if self.sample:
            scales = [item.guidance_scale for item in self.sample_pictures()]
            guided = any(scale is None or scale > 1 for scale in scales)
            if (
                guided
                and not self.model.name_or_path
                and not any(d.caption_dropout_rate for d in self.datasets)
            ):
                message = "guidance needs an unconditional model: set caption_dropout_rate (for example 0.1) or"
                yield warning("sample.guidance_scale", f"{message} guidance_scale 1.")

    # ------------------------------------------------------------ the plan

    def inputs_digest(self, job: JobContext) -> str:
        """Digest of the images, as a resume compares them; empty where they cannot be
        read, which the run reports, and of a stream, whose settings say which it is."""
        if self.streamed:
            return ""
        try:
            return digest_of(fingerprint(self.scan().scan.samples))
        except (UserError, RunError):
            return ""

    def size_multiple(self) -> int:
        return self.model.family().size_multiple

    def stream(self) -> StreamDataset | None:
        stream = super().stream()
        if stream:
            reason = too_large(stream.largest, self.model.family())
            if reason:
                raise DataErrors([Diagnostic(("datasets[0].resolution",), reason)])
        return stream

    def scan(self) -> ImageData:
        trains_vae = self.autoencoder is not None
        cache = ScanCache.beside(self.training_folder, reads_whole=trains_vae)
        family = self.model.family()
        multiple = family.size_multiple
        scan, items, split = split_validation(
            self, *scan_items(self, multiple, cache), multiple, forward_passes
        )
        used = [*items, *(split.items if split else ())]
        refuse_references(used, family)
        refuse_large(used, family)
        for index, item in enumerate(self.sample_pictures()):
            key = f"sample.samples[{index}]"
            reason = too_large(family.drawable(Size(item.width, item.height)), family)
            if reason:
                raise DataErrors([Diagnostic((key,), reason)])
            sample_inputs(key, item, family)
        return ImageData(scan, items, split, self.stream())
