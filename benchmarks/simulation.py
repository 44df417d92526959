"""Training steps of the program on fake tensors: of any size, on a computer that could
not hold them.

The program's own code loads, quantizes, attaches, checkpoints, swaps and steps. Weights
and images have sizes and no numbers, and the device is a fiction: fake tensors of CUDA
cannot go backward in a build without it, so everything is on the "cpu" for PyTorch, and
`LiveBytes` keeps apart what the program puts on its device and in the CPU memory.

Fake tensors do not show the allocator's gaps, the context of CUDA and the workspaces of
kernels. The largest of these is known, and counted: `flash_backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import QwenImageTransformer2DModel
from optimum.quanto.tensor.grouped import group
from optimum.quanto.tensor.packed import PackedTensor
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from benchmarks.live_bytes import LiveBytes, Peak
from benchmarks.random_weights import DrawnWeights
from benchmarks.synthetic import LATENT_CHANNELS, SEED, EncoderlessModel, ModelSize
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.setup import attach_network, build_block_runner, build_roles
from toolkit.contracts.data import BatchSpec, PromptEmbeds
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.data.batches.epoch_order import EpochSource
from toolkit.memory import block_runner, quantization
from toolkit.memory.offload import OFFLOADS, HostBlock, InFlightCopies
from toolkit.memory.quantization import quantizer
from toolkit.memory.recompute import RecomputeOffload
from toolkit.models import loading
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image import forward
from toolkit.models.qwen_image.modulation_cache import CHUNK, MOST_ROWS, ModulationCache
from toolkit.system.device import DTYPES
from toolkit.system.distributed import ProcessGroup
from toolkit.train import loop, metrics_buffer
from toolkit.train.base_model import cpu_block_indices
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.run import Callback, Run

DEVICE = torch.device("cpu")
"""What the program takes for its device. The CPU memory it calls "cpu", in a text."""

STEPS = 2
"""The second one has the optimizer's state from the beginning."""

LEVELS = MOST_ROWS
"""Noise levels in the modulation table: as many as it holds."""


def simulate(
    section: SdTrainerConfig, size: ModelSize, references: int
) -> dict[str, Peak]:
    """Loads the model and takes two steps.

    section: its model is a folder that `drawn.write_folder` wrote for `size`. Returns
    the bytes of "loading", "first step", "training" and "at rest" (behind them).
    """
    live = LiveBytes(FOLLOWED, WORKSPACES)
    with as_on_a_device(live), FakeTensorMode(allow_non_fake_inputs=True), live:
        live.phase("loading")
        model = load_model(section, size)
        model.network_module  # noqa: B018 - it is loaded now
        live.phase("attaching")
        network = attach_network(section, model, SEED, None)
        build_block_runner(section, model, DEVICE)
        step = FlowMatchingStep(model, SEED)
        batch, level = (
            batch_of(size, references, DTYPES[section.train.dtype]),
            torch.tensor([0.5]),
        )
        step.sample_noise_and_t = lambda spec, shape_CHW, stacked: (
            torch.empty((1, *shape_CHW)),
            level,
        )
        roles = build_roles(section, network, STEPS, SEED, ProcessGroup())
        run = Run(
            "simulated",
            Path(),
            STEPS,
            1,
            SEED,
            roles,
            callbacks=[Phases(live)],
            metrics_sync_interval=STEPS + 1,
        )
        fill_table(model)
        loop.train(
            run,
            EpochSource(
                lambda epoch: [batch.spec], lambda specs: (batch for _ in specs)
            ),
            step,
        )
        live.phase("at rest")
    return live.phases


class Phases(Callback):
    """The first step has no optimizer state yet, the next ones do."""

    essential = True

    def __init__(self, live: LiveBytes) -> None:
        self._live = live

    def on_start(self, run: Run) -> None:
        self._live.phase("first step")

    def after_step(self, run: Run) -> None:
        if run.state.step < run.steps:
            self._live.phase("training")


# ------------------------------------------------------------ what has no numbers


class SizesOfWeights(DrawnWeights):
    """In the place of the reader of weight files: tensors of the right size, in
    bfloat16 as they are published."""

    def __init__(self, live: LiveBytes, part: Path, *_: object) -> None:
        self._live = live
        with _disable_current_modes():
            super().__init__(part, device=DEVICE)

    def take(self, name: str) -> Tensor:
        self.names.discard(name)
        with self._live.on_host():
            return torch.empty(self._shapes[name], dtype=torch.bfloat16)


def load_model(section: SdTrainerConfig, size: ModelSize) -> EncoderlessModel:
    """The adapter with the options that the program gives it, as far as they concern
    the transformer."""
    model, train = section.model, section.train
    options = ModelLoadOptions(
        folder=Path(model.name_or_path),
        device=DEVICE,
        dtype=DTYPES[train.dtype],
        weights_dtype=DTYPES[section.weights_dtype()],
        transform_block=quantizer(
            model.qtype, products=model.quantized_products or None
        )
        if model.quantize
        else None,
        modulation_table=model.modulation_table is True,
        cpu_blocks=cpu_block_indices(section.model),
    )
    return EncoderlessModel(options, size)


def fill_table(model: EncoderlessModel) -> None:
    """Noise levels are looked up by their numbers, which a list of fake ones does not
    have: straight to the rows."""
    levels = [place / LEVELS for place in range(LEVELS)]
    for begin in range(0, LEVELS, CHUNK) if model.modulation_cache else ():
        model.modulation_cache.compute(levels[begin : begin + CHUNK])


def batch_of(size: ModelSize, references: int, dtype: torch.dtype) -> LatentBatch:
    """One sample, its references as large as its image, on the CPU, where the program
    keeps batches."""
    side = size.latent_side
    latents_BCHW = torch.empty((1, LATENT_CHANNELS, side, side), dtype=dtype)
    embeds_BLD = torch.empty((1, size.text_tokens, size.text_width), dtype=dtype)
    return LatentBatch(
        latents_BCHW=latents_BCHW,
        prompts=PromptEmbeds(embeds_BLD, (size.text_tokens,)),
        control_latents=((latents_BCHW[0],) * references,),
        spec=BatchSpec(0, (0,), (0,)),
        names=("simulated.png",),
        loss_weight_B=torch.ones(1),
    )


# ------------------------------------------------------------ the fiction of a device


def norm_of_a_gpu(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float
) -> Tensor:
    """What `rms_norm` launches and keeps on a GPU: one kernel forward and one backward,
    as this norm. On a CPU it is the formula."""
    return nn.functional.layer_norm(x, shape, weight, None, eps)


@contextmanager
def as_on_a_device(live: LiveBytes) -> Iterator[None]:
    """Inside the block what the program puts on its device, or in the CPU memory, is
    there for `live`."""
    places = {
        (nn.Module, "to"): lambda module, place, *_: moved(live, module, place),
        (loading, "ShardReader"): partial(SizesOfWeights, live),
        # There are no values to check.
        (loading, "check_finite"): lambda *_, **_options: None,
        (QwenImageTransformer2DModel, "from_config"): empty_model(
            QwenImageTransformer2DModel.from_config
        ),
        (ModulationCache, "is_elsewhere"): lambda cache: True,
        (HostBlock, "__init__"): waiting_on_host(live, HostBlock.__init__),
        (block_runner, "offloading"): lambda _, level: [
            wrapper(CopiesOf(live), is_elsewhere=lambda tensor: True)
            for named, wrapper in OFFLOADS.items()
            if named == level
        ],
        (block_runner, "recomputing"): lambda _: RecomputeOffload(
            CopiesOf(live), is_elsewhere=lambda tensor: True
        ),
        (torch.UntypedStorage, "data_ptr"): lambda storage: storage._cdata,
        (forward, "rms_norm"): norm_of_a_gpu,
        (quantization, "decode_e4m3"): lambda codes, dtype: codes.view(
            torch.float8_e4m3fn
        ).to(dtype),
        (FakeTensor, "tolist"): lambda levels: (
            [0.5] * levels.numel()
        ),  # put together they have no numbers
        (metrics_buffer, "begin_to_host"): lambda tensors: (
            lambda: [[1.0] * tensor.numel() for tensor in tensors]
        ),
    }
    with ExitStack() as stack:
        for (owner, name), stand_in in places.items():
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        yield


def moved(live: LiveBytes, module: nn.Module, place: Any) -> nn.Module:
    """`module.to(place)`."""
    live.move(
        (t for t in (*module.parameters(), *module.buffers()) if not t.is_meta),
        to_host=isinstance(place, str),
    )
    return module


def empty_model(from_config: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The same with real tensors of the "meta" device, and the tables of its rotary
    embedding as fake ones."""

    def without_modes(config: Any) -> nn.Module:
        with _disable_current_modes():
            model = from_config(config)
        embed = model.pos_embed
        embed.pos_freqs, embed.neg_freqs = (
            torch.empty_like(table) for table in (embed.pos_freqs, embed.neg_freqs)
        )
        return model

    return without_modes


def waiting_on_host(live: LiveBytes, init: Callable[..., None]) -> Callable[..., None]:
    """A swapped block's weights are in the CPU memory, and the adapter on it is not."""

    def init_there(
        waiting: HostBlock, block: nn.Module, device: torch.device, trained: bool
    ) -> None:
        init(waiting, block, device, trained)
        live.move([waiting.memory], to_host=True)
        live.move(
            [p for p in block.parameters() if p.requires_grad and not trained],
            to_host=False,
        )

    return init_there


class CopiesOf:
    """`offloading.CudaCopies`, all of it at once. What leaves is held as long as
    there."""

    def __init__(self, live: LiveBytes) -> None:
        self._live, self._in_flight = live, InFlightCopies()

    def begin_block(self) -> None:
        self._in_flight.begin_block()

    def to_host(self, tensor: Tensor) -> Tensor:
        self._in_flight.hold(tensor, lambda: None)
        with self._live.on_host():
            return torch.empty(tensor.shape, dtype=tensor.dtype)

    def to_device(self, host: Tensor) -> Callable[[], Tensor]:
        self.release()
        tensor = torch.empty(host.shape, dtype=host.dtype)
        return lambda: tensor

    def release(self) -> None:
        self._in_flight.release()


def symmetric(base: Tensor, dtype: torch.dtype, axis: int, scale: Tensor) -> Tensor:
    """What quanto's operation does, which PyTorch cannot look into."""
    return torch.clamp(torch.round(base / scale), min=-128, max=127).to(dtype)


def affine(
    base: Tensor,
    bits: int,
    axis: int,
    group_size: int | None,
    scale: Tensor,
    shift: Tensor,
) -> Tensor:
    """The same; packed here, because quanto packs plain tensors only, and fake ones are
    none."""
    rows = base if group_size is None else group(base, axis=axis, group_size=group_size)
    codes = torch.round((rows + shift) / scale)
    return PackedTensor.pack(
        torch.clamp(codes, min=0, max=2**bits - 1).to(torch.uint8), bits
    )


def flash_backward(grad: Tensor, query_BHSD: Tensor, *_: Any, **__: Any) -> int:
    """Bytes of what CUDA's flash kernel adds up in float32 on its way back: the
    gradient of the query.

    Source: flash-attention 2, csrc/flash_attn/flash_api.cpp, `mha_bwd` (`dq_accum`);
    PyTorch has the same.
    """
    return 4 * query_BHSD.numel()


FOLLOWED = {
    quantization.frozen_product: quantization.eager_product,
    torch.ops.quanto.quantize_symmetric.default: symmetric,
    torch.ops.quanto.quantize_affine.default: affine,
}
WORKSPACES = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default: flash_backward
}
