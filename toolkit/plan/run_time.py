"""The work of a run, from its settings and the sizes of the model: the input of
`toolkit.plan.step_time`. Imports no torch.

`SdPlanner` asks for it, and calculates from it how long a run takes on a card. Not
counted: network disks, the
traffic between GPUs. 8-bit products count like products in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from toolkit.config.sections.output import SampleConfig, SamplePicture
from toolkit.config.sections.train import UNTIL_THE_DATA_ENDS
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.network_kinds import KINDS
from toolkit.memory.flops import WEIGHTS_PER_TOKEN
from toolkit.models.families import (
    ModelFamily,
    ModelSizeInfo,
    family_for,
    model_bytes,
)
from toolkit.number_types import DTYPE_BYTES
from toolkit.plan.memory import MemoryEstimate
from toolkit.plan.memory_inputs import (
    BatchSizes,
    ItemGroup,
    LargestBatch,
    TrainableParams,
    block_kernels,
    count_trainable_params,
    share_of_rank,
)
from toolkit.plan.run_plan import SaveSize
from toolkit.plan.step_time import (
    DECODE_FLOP,
    ENCODE_FLOP,
    Blocks,
    PassWork,
    RunWork,
    StepWork,
    total,
)

STEP_ACCESSES = 16
"""Bytes of a trained weight that a step moves besides the optimizer's state: weight
twice, gradient, clipping."""

AVERAGE_ACCESSES = 12
"""The same of its average."""

OTHER_LEVEL = {"full": "offload_attention", "offload_attention": "full"}
"""Level -> the one that differs from it in where attention comes from."""

Often = Callable[[tuple[int, float]], int]
"""From an interval in (steps, epochs) to how often it comes in a run, the end
included."""


def run_work(
    section: DiffusionSection,
    groups: Sequence[ItemGroup],
    steps: int,
    often: Often,
    memory: MemoryEstimate,
    save: SaveSize,
) -> RunWork | None:
    """The work of a run; None where nothing is trained on.

    steps: optimizer steps. often: see `Often`. memory: the estimate at the level of
    checkpointing that is used.
    """
    if not sum(group.uses for group in groups if not group.held_out):
        return None
    return _RunWork(section, groups, memory).whole(steps, often, save)


class _RunWork:
    def __init__(
        self,
        section: DiffusionSection,
        groups: Sequence[ItemGroup],
        memory: MemoryEstimate,
    ) -> None:
        self.section = section
        self.groups = groups
        self.memory = memory
        self.family = family_for(section.model)
        self.facts = self.family.footprint(section.model.files_folder())
        self.trained = count_trainable_params(section)
        self.sizes = BatchSizes(section, self.facts, groups)
        blocks = blocks_of(
            section, self.family, self.facts, self.trained, memory.modulation_table
        )
        if memory.mapped and blocks.swapped_bytes:
            swapped = min(section.model.blocks_to_swap, blocks.blocks)
            copied = blocks.swapped_bytes * (1 - memory.pinned_blocks / swapped)
            blocks = replace(
                blocks, copied_bytes=copied, from_disk=float(memory.from_disk)
            )
        self.blocks = blocks

    def whole(self, steps: int, often: Often, save: SaveSize) -> RunWork:
        section = self.section
        level = self.memory.level
        step = self.step(level)
        if steps == UNTIL_THE_DATA_ENDS:
            return RunWork(step, 0, level)
        other = "" if section.train.parallel == "fsdp" else OTHER_LEVEL.get(level, "")
        validations = 0
        if section.validation:
            validations = 1 + often((section.validation.every, 0))
        saves = often(section.save.interval())
        samples, pictures = self.samples(often)
        return RunWork(
            step,
            steps,
            level,
            other_level=other,
            other_step=self.step(other) if other else None,
            samples=samples,
            pictures=pictures,
            validation=self.validation().times(validations),
            encoding=self.encoding(),
            read_bytes=model_bytes(section.model),
            copied_bytes=saves * (save.file + save.state),
            written_bytes=save.file + save.state,
        )

    # ------------------------------------------------------------ a step

    def step(self, level: str) -> StepWork:
        """The mean over the images, each in a batch of its size."""
        train = self.section.train
        images, micro_batches = share_of_rank(train)
        # each makes a pass without gradients and a whole one
        preservations = len(train.preservations())
        trained = [group for group in self.groups if not group.held_out]
        uses = sum(group.uses for group in trained)
        forward = PassWork()
        backward = PassWork()
        for group in trained:
            batch = self.sizes.of_group(group, images)
            share = micro_batches * group.uses / uses
            passes = 1 + 2 * preservations
            forward += self._forward(batch).times(share * passes)
            forward += self._encoded_again(group, batch).times(share)
            one_backward = self.blocks.backward(batch.tokens, pairs_of(batch), level)
            backward += one_backward.times(share * (1 + preservations))
        optimizer = (
            STEP_ACCESSES * self.trained.weights
            + 2 * self.trained.optimizer_bytes(train)
        )
        if train.ema_config.use_ema:
            optimizer += AVERAGE_ACCESSES * self.trained.weights
        return StepWork(forward, backward, optimizer)

    def _encoded_again(self, group: ItemGroup, batch: LargestBatch) -> PassWork:
        """Images and captions that are encoded at each use."""
        if group.streamed:
            return self._encoded(group, batch)
        if group.shuffled:
            return self._encoded(group, batch, pictures=False)
        return PassWork()

    # ------------------------------------------------------------ the rest

    def samples(self, often: Often) -> tuple[PassWork, int]:
        """All sets of a run, and their pictures."""
        section = self.section
        if section.sample is None or section.train.disable_sampling:
            return PassWork(), 0
        pictures = section.sample.sample_items()
        sets = often(section.sample.interval()) + section.draws_first()
        return total(map(self.picture, pictures)).times(sets), sets * len(pictures)

    def picture(self, item: SamplePicture) -> PassWork:
        """One sample image: its steps, twice with guidance, and the decoder."""
        steps, guidance = steps_and_guidance(item, self.family)
        decoded = item.layers if self.facts.stacks_layers else 1
        return self._generated(self.sizes.of_picture(item), steps, guidance, decoded)

    def validation(self) -> PassWork:
        """One validation: the losses."""
        validation = self.section.validation
        if validation is None:
            return PassWork()
        held_out = [group for group in self.groups if group.held_out]
        losses = total(self._losses(group) for group in held_out)
        return losses.times(validation.timesteps)

    def _losses(self, group: ItemGroup) -> PassWork:
        """The loss of each image of a group, at one timestep."""
        return self._forward(self.sizes.of_group(group)).times(group.items)

    def encoding(self) -> PassWork:
        """All images and captions, where nothing is cached yet."""
        cached = [group for group in self.groups if not group.streamed]
        return total(
            self._encoded(group, self.sizes.of_group(group)).times(group.items)
            for group in cached
        )

    def _encoded(
        self, group: ItemGroup, batch: LargestBatch, pictures: bool = True
    ) -> PassWork:
        """The encoders' work for a batch of a group. pictures: images too, not only
        captions."""
        tokens = batch.images * (batch.text_tokens + batch.encoder_tokens)
        pixels = 0
        if pictures:
            # a picture with layers is its own control image
            references = 0 if group.layers else batch.references
            pixels = batch.images * (
                (1 + group.layers) * batch.pixels + references * batch.reference_pixels
            )
        return PassWork(
            products=2.0 * self.facts.text.linear_params * tokens,
            convolutions=ENCODE_FLOP * pixels,
        )

    def _forward(self, batch: LargestBatch) -> PassWork:
        return self.blocks.forward(batch.tokens, pairs_of(batch))

    def _generated(
        self, batch: LargestBatch, steps: int, guidance: float, decoded: int = 1
    ) -> PassWork:
        """A generated image. decoded: number of images that the decoder makes of it."""
        passes = 2 if guidance > 1 else 1
        decoding = PassWork(convolutions=DECODE_FLOP * batch.pixels * decoded)
        return self._forward(batch).times(passes * steps) + decoding


def steps_and_guidance(
    sample: SamplePicture | SampleConfig, family: ModelFamily
) -> tuple[int, float]:
    """The denoising steps and the guidance scale of a sample; the family's where it
    gives none."""
    scale = sample.guidance_scale
    return (
        sample.sample_steps or family.sample_steps,
        family.guidance if scale is None else scale,
    )


def times_key(section: DiffusionSection, groups: Sequence[ItemGroup], gpu: str) -> str:
    """The device and the settings that the time of a step depends on, as text. Sizes
    are rounded, so that one image more or less changes nothing. gpu: the driver's name
    of the device; empty: the CPU."""
    model = section.model
    train = section.train
    trained = [group for group in groups if not group.held_out]
    uses = max(1, sum(group.uses for group in trained))
    pixels = sum(group.uses * prod(group.bucket) for group in trained) / uses
    references = sum(group.uses * group.references for group in trained) / uses
    layers = sum(group.uses * group.layers for group in trained) / uses
    parts = [
        gpu or "CPU",
        model.name_or_path,
        model.qtype if model.quantize else train.dtype,
        f"{section.network.type} of {count_trainable_params(section).weights:,}",
        train.checkpointing_level(),
        f"swap {model.blocks_to_swap}",
        f"{train.batch_size} x {train.gradient_accumulation}",
        f"{pixels / 1e6:.2g} MP",
        f"{references:.1g} control images",
    ]
    if layers:
        parts.append(f"{layers:.2g} layers")
    return ", ".join(parts)


def pairs_of(batch: LargestBatch) -> float:
    """Pairs of tokens that attention compares in a batch."""
    return float(batch.images * batch.tokens_of_image**2)


def blocks_of(
    section: DiffusionSection,
    family: ModelFamily,
    facts: ModelSizeInfo,
    trained: TrainableParams,
    table: bool,
) -> Blocks:
    """The blocks of a section's model. table: whether the modulation cache is used."""
    model = section.model
    number_bytes = DTYPE_BYTES[section.train.dtype]
    qtype = model.qtype if model.quantize else None
    used = facts.linear_params - facts.tabulated_weights
    units = (
        facts.activation_units.get(section.network.type)
        or KINDS[section.network.type].units
    )
    # The two streams of a block have weights of their own, and a token goes through
    # those of one.
    streams = max(1, round(used / facts.blocks / (WEIGHTS_PER_TOKEN * facts.width**2)))
    blocks = Blocks(
        width=facts.width,
        blocks=facts.blocks,
        token_weights=used / streams,
        number_bytes=number_bytes,
        trains_model=section.network.trains_model,
        kernels_per_block=block_kernels(model),
        saved_units=units.everything[number_bytes > 2],
    )
    extra = 0.0
    weights = used
    if not table:
        extra += number_bytes * facts.tabulated_weights
        weights = facts.linear_params
    at_rest = facts.stored(weights, qtype, number_bytes)
    if qtype:  # its codes are read, and a copy in the compute dtype is written
        extra += facts.stored(used, qtype, number_bytes) + number_bytes * used
    swapped = min(model.blocks_to_swap, facts.blocks) / facts.blocks
    blocks = replace(blocks, extra_bytes=extra, swapped_bytes=swapped * at_rest)
    if section.network.trains_model:
        return blocks
    layers = family.adapter_layers(model.files_folder())
    of_tokens = [
        sum(layers[name])
        for name in trained.layers
        if name not in facts.modulation_layers
    ]
    return replace(
        blocks,
        adapter_numbers=sum(of_tokens) / streams,
        adapter_weights=trained.weights / streams,
    )
