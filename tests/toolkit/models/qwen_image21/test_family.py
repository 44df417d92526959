"""Sizes of the published model, and what a step of it takes, against its own
modules."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
from torch._subclasses import FakeTensorMode
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from benchmarks import simulation
from benchmarks.live_bytes import LiveBytes
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.rules import findings
from extensions.sd_trainer.setup import attach_network, build_block_runner
from tests.diffusers_21 import open_21
from tests.measured import at_least, at_most
from toolkit.contracts.data import EMBEDS, PromptEmbeds, Size
from toolkit.contracts.network_kinds import KINDS
from toolkit.memory import block_runner
from toolkit.memory.estimate import step_peak
from toolkit.memory.recompute import RecomputeOffload
from toolkit.models.folder_family import OF_TEXT_LAYERS
from toolkit.models.qwen_image21.family import FAMILY
from toolkit.models.qwen_image21.prompts import SLOTS
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.plan.memory_inputs import (
    LETTERS_PER_TOKEN,
    BatchSizes,
    ItemGroup,
    count_trainable_params,
    step_shape,
)


def sizes(module: torch.nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in module.named_parameters()}


def test_sizes_of_the_published_model_are_those_of_its_config() -> None:
    """The encoder's are Qwen3-VL-8B's, as its config.json has them."""
    facts = FAMILY.footprint(Path("not here"))
    text = {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    }
    text |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    vision = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
    }
    vision |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]}
    with torch.device("meta"):
        transformer, vae = (
            sizes(QwenImage21Transformer2DModel()),
            sizes(AutoencoderKLQwenImage21()),
        )
        encoder = sizes(
            Qwen3VLForConditionalGeneration(
                Qwen3VLConfig(text_config=text, vision_config=vision)
            )
        )
    assert facts.linear_params + facts.other_params == sum(transformer.values())
    assert facts.vae.other_params == sum(vae.values())
    linear = sum(
        count for name, count in encoder.items() if OF_TEXT_LAYERS.fullmatch(name)
    )
    head = sum(count for name, count in encoder.items() if name.startswith("lm_head"))
    assert facts.text.linear_params == linear
    assert facts.text.unused == head
    assert facts.text.other_params == sum(encoder.values()) - linear - head


LEAST_RANK = {"boft": 6, "diag-oft": 4}
"""Blocks of rotations that are larger than one number, and divide the widths of the
small model."""


def section_of(
    folder: Path,
    level: str = "full",
    kind: str = "lora",
    **model: object,
) -> SdTrainerConfig:
    least = LEAST_RANK.get(kind, 1)
    return SdTrainerConfig.model_validate(
        {
            "type": "sd_trainer",
            "network": {"type": kind}
            | ({} if kind == "full" else {"linear": least, "linear_alpha": 1}),
            "datasets": [{"folder_path": "images"}],
            "train": {
                "optimizer": "adamw",
                "dtype": "bf16",
                "gradient_checkpointing": level,
            },
            "model": {"name_or_path": str(folder), "arch": "qwen_image_2", **model},
        }
    )


def test_tokens_of_references_are_counted_where_they_are(tmp_path: Path) -> None:
    """The transformer has the latents of a reference, 4096 tokens, and the text around
    it; the encoder more."""
    facts = FAMILY.footprint(tmp_path)
    group = ItemGroup(Size(1024, 1024), 3, False, False, uses=1, longest=30)
    sizes = BatchSizes(section_of(tmp_path), facts, [group])
    largest = sizes.of_group(group)
    assert (
        largest.tokens == 4 * 4096 + 3 * 8 + facts.text_tokens + 30 // LETTERS_PER_TOKEN
    )
    assert largest.encoder_tokens == 3 * 1024


@pytest.mark.parametrize(
    ("table", "said"), [(True, [("model", "modulation_table")]), ("auto", [])]
)
def test_a_modulation_table_is_said_to_have_no_effect(
    tiny_21: Path, table: object, said: list
) -> None:
    found = findings(section_of(tiny_21, modulation_table=table))
    assert [one.key for one in found if "modulation_table" in one.key] == said


@pytest.fixture(scope="module")
def of_layers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A model of so many layers. Read only."""

    @cache
    def written(layers: int) -> Path:
        folder = tmp_path_factory.mktemp("layers")
        spec = TinySpec(arch="qwen_image_2", layers=layers, heads=8)
        write_tiny_model(folder, spec)
        return folder

    return written


OFFLOADED = [
    (name, "block_offload") for name, kind in KINDS.items() if kind.units.offloaded
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "level"),
    [
        *((kind, "none") for kind in KINDS),
        ("lora", "cheap"),
        ("lora", "full"),
        *OFFLOADED,
    ],
)
def test_a_step_takes_what_is_planned(
    of_layers: Callable[[int], Path],
    kind: str,
    level: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensors alive in a step with one reference, counted on fake ones, against the
    estimate."""
    # what is outside the blocks is 3 % beside two of these
    folder = of_layers(4 if kind == "loha" else 2)
    section = section_of(folder, level, kind=kind)
    live = LiveBytes(simulation.FOLLOWED)
    offload = RecomputeOffload(
        simulation.CopiesOf(live), is_elsewhere=lambda tensor: True
    )
    monkeypatch.setattr(block_runner, "recomputing", lambda _: offload)
    model = open_21(folder, torch.bfloat16)
    network = attach_network(section, model, 1, None)
    build_block_runner(section, model, simulation.DEVICE)
    slots = torch.full((FAMILY.max_references,), -1)
    slots[0] = 1
    prompts = PromptEmbeds.stack([{EMBEDS: torch.randn(64, 64), SLOTS: slots}])
    layout = model.text_layout(prompts, 0)
    model.text_layout = lambda *_: layout  # what stands in fake tensors cannot be read
    x_BCHW, level_B = torch.randn(1, 16, 32, 32), torch.tensor([0.5])

    def step() -> None:
        model.predict_velocity(
            x_BCHW, level_B, prompts, [[x_BCHW[0]]]
        ).square().mean().backward()
        for parameter in network.parameters().values():
            parameter.grad = None

    with FakeTensorMode(allow_non_fake_inputs=True), live:
        with torch.no_grad():  # fills the tables of positions
            model.predict_velocity(x_BCHW, level_B, prompts, [[x_BCHW[0]]])
        gc.collect()
        live.phase("step")
        before = live.device
        step()
    facts = FAMILY.footprint(folder)
    work = step_shape(
        section, facts, count_trainable_params(section), tokens=64 + 2 * 32 * 32
    )
    planned = sum(step_peak(work, level, gaps=lambda activations: 0))
    share = (live.phases["step"].device - before) / planned
    at_most(f"a step of {kind} with {level}, taken / planned", share, 1.03)
    at_least(f"a step of {kind} with {level}, taken / planned", share, 0.97)
    waits = work.kept_on_host(level)
    assert live.phases["step"].host == pytest.approx(waits, rel=0.03)
