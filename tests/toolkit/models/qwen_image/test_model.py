"""The adapter alone: encoding, batching, guidance, what it loads and drops. Parity with
diffusers: test_parity.py."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.diffusers_reference import (
    PHOTOS,
    REFERENCES,
    encode_photos,
    open_tiny,
    photo_item,
    recording,
    relative,
)
from toolkit.contracts.data import PromptEmbeds, Size
from toolkit.contracts.model import BlockForward, BlockWrapper
from toolkit.errors import RunError
from toolkit.memory.offload import BlockSwap
from toolkit.memory.quantization import quantizer
from toolkit.models.qwen_image.model import QwenImageModel

SIZE = Size(128, 96)
CAPTIONS = ("coffee", "a cup of coffee on a table, natural light", "a cat")


@pytest.fixture(scope="module")
def adapter(tiny_model: Path) -> QwenImageModel:
    return open_tiny(tiny_model, reference_area=0)


@pytest.fixture(scope="module")
def mixed(adapter: QwenImageModel):
    """Six items with 0, 1, 2, 1, 0 and 1 references, of several aspect ratios and text
    lengths."""
    wide, tall, square = REFERENCES
    items = [
        photo_item(SIZE, (), CAPTIONS[0]),
        photo_item(SIZE, (wide,), CAPTIONS[1]),
        photo_item(SIZE, (tall, square), CAPTIONS[2]),
        photo_item(SIZE, (PHOTOS / "20_photo_wide" / "rocket.jpg",), CAPTIONS[0]),
        photo_item(SIZE, (), CAPTIONS[1]),
        photo_item(SIZE, (tall,), CAPTIONS[2]),
    ]
    dataset = encode_photos(adapter, *items)
    prompts = PromptEmbeds.stack(
        [next(iter(entries.captions.values())).read() for entries in dataset.entries]
    )
    references = [
        tuple(each.read() for each in entries.references) for entries in dataset.entries
    ]
    generator = torch.Generator().manual_seed(3)
    x_t_BCHW = torch.randn((6, 16, 12, 16), generator=generator)
    return x_t_BCHW, torch.tensor([0.1, 0.5, 0.9, 0.3, 0.7, 0.2]), prompts, references


@pytest.mark.slow
@torch.no_grad()
def test_a_batch_of_unlike_items_equals_item_by_item_calls(
    adapter: QwenImageModel, mixed
) -> None:
    x_t_BCHW, t_B, prompts, references = mixed
    assert (
        len(set(prompts.lengths)) > 2
        and len({ref.shape for refs in references for ref in refs}) >= 3
    )
    together_BCHW = adapter.predict_velocity(x_t_BCHW, t_B, prompts, references)
    for row in range(len(t_B)):
        alone = adapter.predict_velocity(
            x_t_BCHW[[row]], t_B[[row]], prompts.select([row]), [references[row]]
        )
        assert relative(together_BCHW[row], alone[0]) < 2e-6


def forwards(model: QwenImageModel, *step) -> list[dict]:
    """What the first block was given in each forward of one prediction."""
    with recording(model.blocks()[0]) as seen:
        model.predict_velocity(*step)
    return seen.inputs


@torch.no_grad()
def test_items_of_equal_shapes_and_text_lengths_share_one_forward(
    adapter: QwenImageModel, mixed
) -> None:
    x_t_BCHW, t_B, prompts, references = mixed
    same_text = PromptEmbeds(
        prompts.embeds_BLD[[0] * 6, : prompts.lengths[0]], (prompts.lengths[0],) * 6
    )
    # chelsea and rocket are both 3:2 at the target's area; the items without references
    # form one group.
    sizes = [
        len(call["hidden_states"])
        for call in forwards(adapter, x_t_BCHW, t_B, same_text, references)
    ]
    assert sorted(sizes) == [1, 1, 2, 2]
    # six texts of other lengths, or sizes
    assert len(forwards(adapter, x_t_BCHW, t_B, prompts, references)) == 6


@torch.no_grad()
def test_no_attention_mask_is_ever_passed_and_no_text_padded(
    adapter: QwenImageModel, mixed
) -> None:
    x_t_BCHW, t_B, prompts, references = mixed
    calls = forwards(adapter, x_t_BCHW, t_B, prompts, references)
    assert all(call["encoder_hidden_states_mask"] is None for call in calls)
    assert sorted(call["encoder_hidden_states"].shape[1] for call in calls) == sorted(
        prompts.lengths
    )


@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(
    adapter: QwenImageModel, mixed
) -> None:
    x_t_BCHW, t_B, prompts, references = mixed
    rows = [0, 4]
    chosen = prompts.select(rows)
    filled_BLD = chosen.embeds_BLD.clone()
    filled_BLD[0, chosen.lengths[0] :] = 7.0
    arguments = x_t_BCHW[rows], t_B[rows]
    clean = adapter.predict_velocity(*arguments, chosen, [references[r] for r in rows])
    dirty = adapter.predict_velocity(
        *arguments,
        PromptEmbeds(filled_BLD, chosen.lengths),
        [references[r] for r in rows],
    )
    assert torch.equal(clean, dirty)


def test_guidance_keeps_the_length_of_each_token(adapter: QwenImageModel) -> None:
    cond, uncond = torch.randn(
        (2, 1, 16, 4, 4), generator=torch.Generator().manual_seed(0)
    )
    guided = adapter.apply_cfg(cond, uncond, 4.0)
    lengths = [
        v.reshape(1, 16, 2, 2, 2, 2).square().sum(dim=(1, 3, 5)) for v in (cond, guided)
    ]
    torch.testing.assert_close(*lengths)
    torch.testing.assert_close(adapter.apply_cfg(cond, uncond, 1.0), cond)
    assert relative(guided, cond) > 0.1


def test_guidance_leaves_zeros_as_they_are(adapter: QwenImageModel) -> None:
    zeros = torch.zeros(1, 16, 4, 4)
    assert adapter.apply_cfg(zeros, zeros, 4.0).equal(zeros)


def test_weights_on_a_cpu_begin_at_multiples_of_64_bytes(
    adapter: QwenImageModel,
) -> None:
    """Also those that a library leaves where they are in a mapped file."""
    for name in ("transformer", "vae", "text_encoder"):
        weights = adapter.part(name).state_dict()
        assert not [key for key, one in weights.items() if one.data_ptr() % 64], name


def test_parts_are_loaded_when_used_and_dropped_when_asked(tiny_model: Path) -> None:
    model = open_tiny(tiny_model)
    assert model._parts == {}
    model.encode_images(torch.zeros(1, 3, 32, 32))
    model.encode_prompt("a cat", [])
    assert set(model._parts) == {"vae", "text_encoder", "tokenizer"}
    model.unload_encoders(keep=["vae"])
    assert set(model._parts) == {"vae"}


def test_a_missing_part_is_named(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("model_index.json", "transformer"):
        (tmp_path / name).symlink_to(tiny_model / name)
    model = open_tiny(tmp_path)
    assert len(model.blocks()) == 2
    with pytest.raises(RunError, match="vae: is missing"):
        model.encode_images(torch.zeros(1, 3, 32, 32))
    with pytest.raises(RunError, match="tokenizer: is missing"):
        model.encode_prompt("a cat", [])


def test_the_size_of_the_work_is_that_of_the_forwards(
    adapter: QwenImageModel, mixed
) -> None:
    x_t_BCHW, t_B, prompts, references = mixed
    with torch.no_grad():
        seen = forwards(adapter, x_t_BCHW, t_B, prompts, references)
    streams = [
        call[name]
        for call in seen
        for name in ("hidden_states", "encoder_hidden_states")
    ]
    assert adapter.num_tokens(x_t_BCHW, prompts, references) == sum(
        stream.shape[0] * stream.shape[1] for stream in streams
    )
    assert {stream.shape[2] for stream in streams} == {adapter.hidden_size}
    assert adapter.hidden_size == adapter.head_dim * adapter.blocks()[0].attn.heads


@pytest.mark.parametrize("table", [False, True], ids=["", "table"])
def test_backward_begins_with_the_last_block_of_the_last_pass(
    tiny_model: Path, mixed, table: bool
) -> None:
    x_t_BCHW, t_B, prompts, references = mixed
    model = open_tiny(tiny_model, reference_area=0, modulation_table=table)
    model.network_module.requires_grad_(False)
    model.enable_modulation_cache(BlockSwap)
    passes: list[tuple[str, int]] = []

    def noted(what: str) -> BlockWrapper:
        def wrap(run: BlockForward) -> BlockForward:
            def run_noted(
                block: torch.nn.Module, *tensors: torch.Tensor | None
            ) -> tuple[torch.Tensor, ...]:
                passes.append((what, model.blocks().index(block)))
                return run(block, *tensors)

            return run_noted

        return wrap

    model.wrap_blocks([noted("all")], last_block_wrappers=[noted("first back")])
    model.predict_velocity(x_t_BCHW, t_B, prompts, references)
    last = len(model.blocks()) - 1
    assert passes[-1] == ("first back", last)
    assert len(passes) > last + 1 and all(what == "all" for what, _ in passes[:-1])
    passes.clear()
    model.wrap_blocks([noted("all")])
    model.predict_velocity(x_t_BCHW, t_B, prompts, references)
    assert passes[-1] == ("all", last)


@pytest.mark.parametrize("qtype", ["int8", "int4"])
def test_a_quantized_text_encoder_still_sees_pictures(
    tiny_model: Path, qtype: str
) -> None:
    picture = Image.open(REFERENCES[0])
    plain_LD = open_tiny(tiny_model).encode_prompt("a cat", [picture])
    model = open_tiny(
        tiny_model, transform_text_block=quantizer(qtype), text_encoder_cache_tag=qtype
    )
    quantized_LD = model.encode_prompt("a cat", [picture])
    assert plain_LD.shape == quantized_LD.shape
    assert (
        0
        < relative(quantized_LD, plain_LD)
        < {"int8": 0.03, "int4": 0.3, "int2": 1.0}.get(qtype, 0.1)
    )


def test_low_vram_changes_no_number(tiny_model: Path, adapter: QwenImageModel) -> None:
    frugal = open_tiny(tiny_model, low_vram=True)
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    assert torch.equal(frugal.encode_images(pixels), adapter.encode_images(pixels))
