"""Measures the memory of a run by one step on fake tensors. They have sizes and no
numbers, so a step of any size takes seconds and no memory. The trainers' own modules
and train steps run, so the arithmetic of a class is not written twice.

The tensors are on the device "cpu", because fake tensors of a GPU cannot go backward in
a build without CUDA. Operations that a GPU computes differently are in `_stand_ins`.
The figures are not yet compared with measurements on a GPU.

The planners in `plan` load `step_bytes` by name, so a plan without memory needs no
torch.
"""

from __future__ import annotations

import importlib
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.autoencoder_step import (
    Adversary,
    AutoencoderStep,
    trained_parameters,
)
from extensions.from_scratch.autoencoders import KINDS, Autoencoder, make_autoencoder
from extensions.from_scratch.discriminator import PatchDiscriminator
from extensions.from_scratch.flow_config import FLOW, TEXT_ENCODER, FlowTrainerConfig
from extensions.from_scratch.joint import JointBatch, JointStep
from extensions.from_scratch.latent_flow import text
from extensions.from_scratch.latent_flow.family import (
    PROJECTION,
    TRANSFORMERS,
    part_config,
    text_encoder_kind,
    text_width,
)
from extensions.from_scratch.latent_flow.model import LatentFlowModel
from extensions.from_scratch.losses_config import DISCRIMINATOR, VAE
from extensions.from_scratch.perceptual import PerceptualDistance
from extensions.from_scratch.pixels import PixelBatch
from extensions.from_scratch.plan import FLOAT, StepBytes, Work
from extensions.from_scratch.vae_config import VaeTrainerConfig
from toolkit.contracts.data import BatchSpec, PromptEmbeds
from toolkit.contracts.model import DynamicShift
from toolkit.contracts.training import Backward
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.flow.settings import FlowSettings
from toolkit.memory.block_runner import BlockRunner
from toolkit.models.families import ModelLoadOptions
from toolkit.models.folder_model import FolderModel
from toolkit.models.from_config import build
from toolkit.models.loading import NO_CODE
from toolkit.networks.full import FullNetwork, modules_with_weights
from toolkit.number_types import DTYPE_BYTES
from toolkit.optim.optimizer_args import optimizer_bytes
from toolkit.plan.run_plan import SaveSize
from toolkit.system.device import DTYPES
from toolkit.train.flow_step import FlowMatchingStep

CPU = torch.device("cpu")

Modules = dict[str, nn.Module]
"""Role, or name of a part that is not trained -> its module."""


def step_bytes(
    section: VaeTrainerConfig | FlowTrainerConfig, work: Work, on_gpu: bool
) -> StepBytes:
    """The memory of a step of this work. Raises UserError or RunError where a folder
    cannot be read."""
    encoding = 0
    step = _VaeStep(section, work)
    if isinstance(section, FlowTrainerConfig):
        # modules that were in one mode of fake tensors cannot be in the next
        if not step.along:
            encoding = _FlowStep(section, work, on_gpu).encoding(on_gpu)
        step = _FlowStep(section, work, on_gpu)
    weights, peak = peak_of(step.modules(), on_gpu, step.take)
    return _counted(section, step, weights, peak, encoding)


def _counted(
    section: Any, step: _VaeStep, weights: int, peak: int, encoding: int
) -> StepBytes:
    """Adds the memory that stays between steps. An optimizer keeps nothing for weights
    that no gradient reaches."""
    trained = step.trained
    counts = {
        role: sum(p.numel() for p in parameters) for role, parameters in trained.items()
    }
    optimizers = {role: section.role_optimizer(role) for role in trained}
    state = 0
    for role, optimizer in optimizers.items():
        shapes = [tuple(p.shape) for p in trained[role] if p.grad is not None]
        state += optimizer_bytes(
            optimizer.optimizer, optimizer.optimizer_params, shapes
        )
    averaged = sum(count for role, count in counts.items() if role != DISCRIMINATOR)
    average = FLOAT * averaged * section.train.ema_config.use_ema
    masters = sum(p.nbytes for parameters in trained.values() for p in parameters)
    written = counts | (
        {VAE: sum(p.numel() for p in step.autoencoder.module.parameters())}
        if VAE in trained
        else {}
    )
    size = {
        role: FLOAT if role == DISCRIMINATOR else DTYPE_BYTES[section.save.dtype]
        for role in written
    }
    files = sum(size[role] * count for role, count in written.items())
    states = 0 if section.save.states == "never" else masters + average + state
    return StepBytes(
        counts, weights, peak, state, average, SaveSize(files, states), encoding
    )


# ------------------------------------------------------------ the steps


class _VaeStep:
    """The step of an autoencoder, alone or along with a flow model."""

    def __init__(
        self, section: VaeTrainerConfig | FlowTrainerConfig, work: Work
    ) -> None:
        self.section = section
        self.work = work
        self.along = section.trained_autoencoder()
        self.dtype = DTYPES[section.train.dtype]
        self.trained: dict[str, list[Tensor]] = {}
        """Role -> its parameters, once `take` has begun."""

        with torch.device("meta"):
            if isinstance(section, FlowTrainerConfig):
                frozen = section.model.autoencoder()
            else:
                frozen = section.model
            self.autoencoder = _autoencoder(self.along.model if self.along else frozen)
            gan = self.along.discriminator if self.along else None
            network = PatchDiscriminator(gan.channels, gan.layers, 0) if gan else None
            self.adversary = Adversary(network, gan) if network and gan else None
            self.perceptual = (
                PerceptualDistance() if self.along and self.along.losses.lpips else None
            )

    def modules(self) -> Modules:
        """All modules that exist during a step."""
        networks: Modules = {}
        if self.along:
            networks[VAE] = self.autoencoder.module
        if self.adversary:
            networks[DISCRIMINATOR] = self.adversary.network
        if self.perceptual:
            networks["LPIPS"] = self.perceptual
        return networks

    def take(self) -> None:
        """The forward and backward passes of the step."""
        step = self.autoencoder_step()
        step.backward(self.pixels(), _Passes(self.trained))

    def autoencoder_step(self) -> AutoencoderStep:
        """The step of the autoencoder. Its parameters are trained from now on."""
        assert self.along
        self.trained[VAE] = list(
            trained_parameters(self.autoencoder, self.along.model.train).values()
        )
        if self.adversary:
            self.trained[DISCRIMINATOR] = list(self.adversary.network.parameters())
        return _AutoencoderStep(
            self.autoencoder,
            self.along.losses,
            0,
            self.adversary,
            self.perceptual,
            self.dtype,
        )

    def pixels(self) -> PixelBatch:
        """The images."""
        images, width, height, _ = self.work
        rows = tuple(range(images))
        names = ("",) * images
        return PixelBatch(
            torch.empty(images, 3, height, width),
            names,
            BatchSpec(0, rows, rows),
            names,
            torch.ones(images),
        )


class _FlowStep(_VaeStep):
    """The step of a flow model, with the autoencoder where it is trained along."""

    section: FlowTrainerConfig

    def __init__(self, section: FlowTrainerConfig, work: Work, on_gpu: bool) -> None:
        super().__init__(section, work)
        level = section.train.checkpointing_level()
        if level == "auto":
            level = "full" if on_gpu else "none"
        self.level = "full" if level == "full_offload" else level
        self.family = section.model.family()
        weights_dtype = DTYPES[section.weights_dtype()]
        with torch.device("meta"):
            self.encoder, self.text_width = _text_encoder(section)
            self.transformer, class_name = _transformer(
                section, self.family.latent_channels, self.text_width
            )
        if not self.along:
            nn.Module.to(self.autoencoder.module, self.dtype)
        nn.Module.to(self.transformer, weights_dtype)
        if self.encoder:
            nn.Module.to(
                self.encoder, weights_dtype if section.trains_text() else self.dtype
            )
        options = ModelLoadOptions(
            folder=Path(), device=CPU, dtype=self.dtype, weights_dtype=weights_dtype
        )
        parts = {
            "vae": self.autoencoder,
            "transformer": self.transformer,
            "text_encoder": self.encoder,
        }
        self.model = _Model(
            options, self.family, class_name, parts, section.trains_text()
        )

    def modules(self) -> Modules:
        networks = {FLOW: self.transformer, **super().modules()}
        if self.section.trains_text() and self.encoder:
            networks[TEXT_ENCODER] = self.encoder
        validation = self.section.validation
        if self.section.sample or (validation and validation.edits):
            networks[VAE] = self.autoencoder.module
        return networks

    def encoding(self, on_gpu: bool) -> int:
        """Bytes of a pass that encodes one image, including the text encoder."""
        modules: Modules = {VAE: self.autoencoder.module} | (
            {TEXT_ENCODER: self.encoder} if self.encoder else {}
        )
        height = self.work.height
        width = self.work.width
        return sum(
            peak_of(
                modules,
                on_gpu,
                lambda: self.model.encode_images(torch.empty(1, 3, height, width)),
            )
        )

    def take(self) -> None:
        section, (images, width, height, references) = self.section, self.work
        self.trained[FLOW] = self._attached(self.transformer)
        if TEXT_ENCODER in section.roles() and self.encoder:
            self.trained[TEXT_ENCODER] = self._attached(self.encoder)
        roles = tuple(self.trained)
        BlockRunner(self.model, CPU, self.dtype, self.level)
        named = FlowSettings.named_in(section.train)
        flow = _FlowMatchingStep(
            self.model, 0, samples_per_epoch=images, roles=roles, **named
        )
        tokens = self.family.max_tokens
        pixels = self.pixels()
        ids = torch.zeros(images, tokens, dtype=torch.int64)
        if section.trains_text():
            embeds = ids
        else:
            embeds = torch.empty(images, tokens, self.text_width, dtype=self.dtype)
        prompts = PromptEmbeds(embeds, (tokens,) * images)
        if self.along:
            step = JointStep(self.autoencoder_step(), flow, self.model)
            seen = ((pixels.pixels_B3HW[0],) * references,) * images
            step.backward(JointBatch(pixels, prompts, seen), _Passes(self.trained))
            return
        scale = self.family.latent_scale
        latents = torch.empty(
            images,
            self.family.latent_channels,
            height // scale,
            width // scale,
            dtype=self.dtype,
        )
        slots = ((latents[0],) * references,) * images
        batch = LatentBatch(
            latents, prompts, slots, pixels.spec, pixels.names, pixels.loss_weight_B
        )
        flow.backward(batch, _Passes(self.trained))

    def _attached(self, module: nn.Module) -> list[Tensor]:
        network = FullNetwork(modules_with_weights(module), self.dtype)
        network.attach(module)
        return list(network.parameters().values())


class _Model(LatentFlowModel):
    """A model of these parts, without a folder."""

    def __init__(
        self,
        options: ModelLoadOptions,
        family: Any,
        class_name: str,
        parts: Mapping[str, Any],
        trains_text: bool,
    ) -> None:
        self._adapter = TRANSFORMERS.load(class_name)
        self._trains_text = trains_text
        self._trained_vae = None
        FolderModel.__init__(self, options, family)
        self._parts = dict(parts)

    dynamic_shift = DynamicShift(base_shift=0.0, max_shift=0.0, shift_terminal=None)

    @property
    def autoencoder(self) -> Autoencoder:
        # moving it, `Module.to` cannot swap fake parameters
        autoencoder: Autoencoder = self._parts["vae"]
        return autoencoder


class _AutoencoderStep(AutoencoderStep):
    def _noise(
        self,
        spec: BatchSpec,
        purpose: str,
        shape: torch.Size,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        return torch.empty(len(spec.items), *shape)


class _FlowMatchingStep(FlowMatchingStep):
    def sample_noise_and_t(
        self, spec: BatchSpec, shape_CHW: torch.Size, levels: int = 1, stacked: int = 1
    ) -> tuple[Tensor, Tensor]:
        return torch.empty(len(spec.items), *shape_CHW), torch.full(
            (len(spec.items),), 0.5
        )

    def weighting(self, t_B: Tensor) -> Tensor:
        return torch.ones(len(t_B))


class _Passes(Backward):
    """The backward passes of the first step."""

    step = 0
    roles: frozenset[str] = frozenset()

    def __init__(self, trained: Mapping[str, list[Tensor]]) -> None:
        self.trained = trained
        self.roles = frozenset(trained)

    def __call__(
        self,
        losses: Mapping[str, Tensor],
        retain_graph: bool = False,
        final: bool = True,
    ) -> None:
        inputs = [weight for role in losses for weight in self.trained[role]]
        next(iter(losses.values())).mean().backward(
            inputs=inputs, retain_graph=retain_graph
        )


# ------------------------------------------------------------ the modules


def _autoencoder(model: AutoencoderConfig) -> Autoencoder:
    """The autoencoder of a section, without its weights."""
    if not model.name_or_path:
        return make_autoencoder(model, 0, torch.device("meta"))
    arguments = model.arguments()
    kind = KINDS[arguments["_class_name"]]
    autoencoder = kind(kind.model_class.from_config(arguments))
    if model.uses_spade():
        importlib.import_module("extensions.from_scratch.spade").attach_spade(
            autoencoder.module, 0
        )
    return autoencoder


def _transformer(
    section: FlowTrainerConfig, channels: int, width: int
) -> tuple[nn.Module, str]:
    """The transformer, and its class."""
    model = section.model
    if model.name_or_path:
        config = part_config(model.folder(), "transformer")
        return TRANSFORMERS.load(config["_class_name"]).model_class.from_config(
            config
        ), config["_class_name"]
    name = model.transformer.class_name
    given = model.transformer.config
    adapter = TRANSFORMERS.load(name)
    fitting = adapter.fitting(given, channels, width)
    return build(
        adapter.model_class, {**fitting, **given}, "model.transformer.config"
    ), name


def _text_encoder(section: FlowTrainerConfig) -> tuple[text.TextEncoder | None, int]:
    """The text encoder, None for one of the hub that is not downloaded; and the width
    of the text embeddings."""
    model, wanted = section.model, section.model.text_encoder
    if model.has_random_text():
        tokens = wanted.config.get("vocab_size", text.VOCABULARY)
        encoder: Any = text.make_encoder(wanted.config, tokens, wanted.max_tokens, 0)
        width = encoder.config.hidden_size
    else:
        given = Path(wanted.name_or_path).expanduser()
        if model.name_or_path:
            places = [model.folder() / "text_encoder"]
        else:
            places = [given, given / "text_encoder"]
        part = next(
            (place for place in places if (place / "config.json").is_file()), None
        )
        if part is None:
            return None, wanted.projection_dim or 768
        kind = text_encoder_kind(part)
        transformers = importlib.import_module("transformers")
        config = transformers.AutoConfig.from_pretrained(part, **NO_CODE)
        config = getattr(config, "text_config", None) or config
        encoder = getattr(transformers, kind.class_name)(config, **kind.arguments)
        width = getattr(config, kind.width)
        if (part / PROJECTION).is_file():
            outputs = text_width(part.parent)
            return text.TextEncoder(
                encoder.eval(), nn.Linear(width, outputs, bias=False)
            ), outputs
    outputs = wanted.projection_dim
    projection = nn.Linear(width, outputs, bias=False) if outputs else None
    return text.TextEncoder(encoder.eval(), projection), outputs or width


# ------------------------------------------------------------ fake tensors


def peak_of(
    modules: Mapping[str, nn.Module], on_gpu: bool, take: Callable[[], Any]
) -> tuple[int, int]:
    """Bytes of the modules, and the bytes beyond them at the peak of `take`. modules:
    on the meta device; they become fake."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        _stand_ins(on_gpu),
        LiveBytes() as live,
    ):
        for module in modules.values():
            module.to_empty(device="cpu")
        weights = live.peak = live.now
        take()
        return weights, live.peak - weights


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations return, each storage until its
    end.

    >>> with LiveBytes() as live:
    ...     x = torch.zeros(1024, dtype=torch.float32)
    >>> live.now
    4096
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch declares no types of it
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._see(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._end, storage.nbytes()).atexit = False

    def _end(self, size: int) -> None:
        self.now -= size


@contextmanager
def _stand_ins(on_gpu: bool) -> Iterator[None]:
    """Replaces operations that fake tensors do not support, and those that a GPU
    computes differently: autocast on a GPU computes GroupNorm in float32."""
    plain = nn.functional.group_norm

    def group_norm(x: Tensor, *rest: Any, **more: Any) -> Tensor:
        return plain(
            x.float() if on_gpu and torch.is_autocast_enabled("cpu") else x,
            *rest,
            **more,
        )

    # a line per frame of an error
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    with (
        mock.patch.object(nn.functional, "group_norm", group_norm),
        mock.patch.object(FakeTensor, "tolist", lambda tensor: [0.5] * tensor.numel()),
    ):
        yield
