"""What counts in the time of a run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.toolkit.plan.test_memory_plan import item, section
from toolkit.config.sections.train import UNTIL_THE_DATA_ENDS
from toolkit.contracts.data import BucketedSample, CaptionRules
from toolkit.memory.flops import KERNELS_PER_BLOCK
from toolkit.plan.cards import asked_card
from toolkit.plan.memory import Machine
from toolkit.plan.memory_inputs import group_items
from toolkit.plan.memory_plan import plan_memory
from toolkit.plan.run_plan import SaveSize
from toolkit.plan.run_time import run_work, times_key
from toolkit.plan.step_time import DECODE_FLOP, ENCODE_FLOP, PassWork, RunWork, StepWork

FULL = {"gradient_checkpointing": "full"}
SAVE = SaveSize(file=300, state=1500)
PARTS = [
    "steps",
    "samples",
    "validation",
    "encoding",
    "saving",
    "loading",
    "compiling",
]


def work_of(
    *items: BucketedSample,
    held_out: tuple[BucketedSample, ...] = (),
    steps: int = 1000,
    sets: int = 4,
    **parts: Any,
) -> RunWork:
    job, groups = section(**parts), group_items(items or (item(),), held_out)
    memory = plan_memory(job, groups, Machine("cuda"), compiled=True)
    found = run_work(
        job, groups, steps, lambda interval: sets if interval[0] else 1, memory, SAVE
    )
    assert found is not None
    return found


def flops(*works: PassWork) -> float:
    """Of products and attention."""
    return sum(
        work.products + work.attention + work.attention_backward for work in works
    )


def of_step(step: StepWork) -> float:
    return flops(step.forward, step.backward)


def of_tokens(found: Any) -> Any:
    """Encoded pixels and captions aside: within 5 % of what is counted by hand."""
    return pytest.approx(found, rel=0.05)


def test_a_step_takes_the_operations_of_its_images_on_average() -> None:
    """One with a reference at 1024 x 1024 takes 587 TFLOP with full checkpointing
    (tests/toolkit/memory/test_flops.py); a preserved blank prompt has passes of its
    own."""
    one = work_of(train=FULL).step
    assert of_step(one) == of_tokens(587e12)
    assert one.forward.kernels + one.backward.kernels == pytest.approx(
        60 * KERNELS_PER_BLOCK[""]
    )
    small = work_of(item(256, references=0), train=FULL).step
    mixed = work_of(
        item(repeats=3), item(256, references=0, repeats=1), train=FULL
    ).step
    assert of_step(mixed) == pytest.approx((3 * of_step(one) + of_step(small)) / 4)
    many = work_of(train=FULL | {"batch_size": 2, "gradient_accumulation": 3}).step
    assert of_step(many) == pytest.approx(6 * of_step(one))
    assert many.forward.kernels == pytest.approx(3 * one.forward.kernels)
    # Two more passes, one of them without gradients.
    kept = work_of(train=FULL | {"blank_prompt_preservation": True}).step
    assert flops(kept.forward) == pytest.approx(3 * flops(one.forward))
    assert flops(kept.backward) == pytest.approx(2 * flops(one.backward))


def test_nothing_is_known_of_a_job_without_images() -> None:
    job = section(train=FULL)
    memory = plan_memory(job, group_items([item()]), Machine("cuda"))
    assert (
        run_work(job, group_items([], [item()]), 1000, lambda interval: 1, memory, SAVE)
        is None
    )


@pytest.mark.parametrize(
    ("model", "kernels"),
    [
        ({}, ""),
        ({"quantize": True, "qtype": "int4"}, "int4"),
        (
            {"quantize": True, "qtype": "int8", "quantized_products": "int8"},
            "int8 products",
        ),
    ],
)
def test_a_small_step_waits_for_the_host(model: dict, kernels: str) -> None:
    step = work_of(item(64, references=0), model=model, train=FULL).step
    card = asked_card("B200")
    assert step.seconds(card, compiled=False) == pytest.approx(
        60 * KERNELS_PER_BLOCK[kernels] * 65e-6, rel=0.01
    )
    assert step.seconds(card) == pytest.approx(
        0.2 * 60 * KERNELS_PER_BLOCK[""] * 65e-6, rel=0.01
    )


def test_the_optimizer_moves_its_state_and_the_average() -> None:
    lora = 147_456_000
    of = {name: work_of(train=FULL | change).step.optimizer_bytes for name, change in {
        "sgd": {"optimizer": "sgd"},
        "adamw": {"optimizer": "adamw"},
        "average": {"optimizer": "adamw", "ema_config": {"use_ema": True}},
    }.items()}  # fmt: skip
    assert (
        of["adamw"] - of["sgd"] == 2 * 8 * lora
        and of["average"] - of["adamw"] == 12 * lora
    )


def sampled(**sample: Any) -> dict[str, Any]:
    return {
        "sample": {
            "samples": [{"prompt": "a cat"}, {"prompt": "a dog"}],
            "sample_steps": 10,
            "guidance_scale": 1,
            **sample,
        }
    }


def test_samples_are_passes_of_their_own_size_twice_with_guidance() -> None:
    plain = work_of(train=FULL, **sampled())
    assert plain.pictures == 2 * (1 + 4), "a set before step 1 and four in the run"
    guided = work_of(train=FULL, **sampled(guidance_scale=4))
    assert guided.samples.products == pytest.approx(2 * plain.samples.products)
    assert (
        guided.samples.convolutions
        == plain.samples.convolutions
        == 10 * DECODE_FLOP * 1024**2
    )
    assert guided.samples.attention_backward == 0
    # Each is a forward pass of an image without references.
    forward = work_of(item(references=0), train=FULL).step.forward
    assert plain.samples.products == pytest.approx(10 * 10 * forward.products, rel=0.01)
    small = work_of(train=FULL, **sampled(width=512, height=512))
    assert small.samples.products < 0.3 * plain.samples.products


def test_no_sample_is_counted_that_is_not_drawn() -> None:
    assert (
        work_of(train=FULL | {"disable_sampling": True}, **sampled()).samples
        == PassWork()
    )
    assert work_of(train=FULL).pictures == 0
    assert (
        work_of(train=FULL | {"skip_first_sample": True}, **sampled()).pictures == 2 * 4
    )
    assert work_of(train=FULL, **sampled()).pictures == 2 * 5


def test_all_layers_count_in_steps_samples_and_encoding() -> None:
    """Four layers at 640 x 640: six images in the transformer, five encoded, four
    decoded."""

    def layered(count: int) -> BucketedSample:
        return item(
            640,
            references=0,
            layers=tuple(f"a_layer{index}.png" for index in range(count)),
        )

    sample = {
        "samples": [{"prompt": "a", "ctrl_img": "a.png"}],
        "sample_steps": 10,
        "layers": 4,
    }
    parts = {
        "model": {"name_or_path": "Qwen/Qwen-Image-Layered"},
        "sample": sample | {"width": 640, "height": 640, "guidance_scale": 1},
        "train": FULL,
    }
    found, fewer = work_of(layered(4), **parts), work_of(layered(1), **parts)
    assert found.step.forward.products == pytest.approx(
        6 / 3 * fewer.step.forward.products, rel=0.02
    )
    assert found.step.forward.attention == pytest.approx(
        36 / 9 * fewer.step.forward.attention, rel=0.04
    )
    assert found.encoding.convolutions == 5 * ENCODE_FLOP * 640 * 640
    assert found.pictures == 1 + 4
    assert found.samples.convolutions == 5 * 4 * DECODE_FLOP * 640 * 640
    assert found.samples.products == pytest.approx(
        5 * 10 * found.step.forward.products, rel=0.01
    )
    keys = {
        times_key(section(**parts), group_items([layered(count)]), "H100")
        for count in (1, 4)
    }
    assert [key.rpartition(", ")[2] for key in sorted(keys)] == ["1 layers", "4 layers"]
    assert "layers" not in times_key(section(), group_items([item()]), "H100")


def test_a_validation_is_forward_passes() -> None:
    measured = {"validation": {"folder_path": "v", "every": 100, "timesteps": 4}}
    found = work_of(held_out=(item(), item()), train=FULL, **measured)
    # Before step 1 and four in the run, each of two images at four noise levels.
    forward = work_of(train=FULL).step.forward
    assert found.validation.products == pytest.approx(
        5 * 2 * 4 * forward.products, rel=0.01
    )


def test_a_pass_moves_copies_of_quantized_weights_and_layers_without_a_table() -> None:
    """Of 3072 squared weights each of 60 blocks has 24, and 12 that the table replaces.
    Codes of one byte are read and written as bfloat16, 2 bytes."""
    unit = 60 * 3072**2
    for (table, qtype), expected in {
        (True, ""): 0,
        (False, ""): 2 * 12,
        (True, "int8"): (1 + 2) * 24,
        (False, "int8"): 2 * 12 + (1 + 2) * 24,
    }.items():
        quantized = {"quantize": True, "qtype": qtype} if qtype else {}
        model = quantized | {"modulation_table": table}
        moved = work_of(train=FULL, model=model).step.forward.weights
        assert moved == pytest.approx(expected * unit, rel=0.001), (table, qtype)
    swapped = {"modulation_table": False, "blocks_to_swap": 15}
    assert work_of(train=FULL, model=swapped).step.forward.bus == pytest.approx(
        2 * 36 * unit / 4, rel=0.001
    )


def test_all_images_and_captions_are_encoded_once() -> None:
    found = work_of(
        item(repeats=40),
        item(512, references=0, repeats=1),
        held_out=(item(references=0),),
        train=FULL,
    )
    assert found.encoding.convolutions == ENCODE_FLOP * (2 * 1024**2 + 512**2 + 1024**2)
    assert 1e12 < found.encoding.products < 20e12


def test_shuffled_captions_are_encoded_at_each_use() -> None:
    rules = CaptionRules(shuffle_tokens=True)
    shuffled, kept = (
        work_of(item(rules=each), train=FULL).step.forward
        for each in (rules, CaptionRules())
    )
    assert shuffled.products - kept.products == pytest.approx(
        work_of(train=FULL).encoding.products
    )


def test_saves_are_copied_and_the_last_one_is_waited_for() -> None:
    found = work_of(train=FULL, save={"save_every": 250})
    assert (found.copied_bytes, found.written_bytes) == (4 * 1800, 1800)
    assert found.read_bytes == pytest.approx(58e9, rel=0.03)


def test_a_run_of_unknown_length_has_the_time_of_a_step_alone() -> None:
    found = work_of(train=FULL, steps=UNTIL_THE_DATA_ENDS, **sampled())
    assert (found.steps, found.pictures, found.read_bytes) == (0, 0, 0)
    assert of_step(found.step) == of_tokens(587e12)


def test_a_run_is_the_sum_of_its_parts_on_a_card() -> None:
    card = asked_card("RTX 4090")
    found = work_of(train=FULL, save={"save_every": 250}, **sampled())
    parts = found.parts(card, compiled=True)
    assert list(parts) == PARTS
    assert parts["steps"] == 1000 * found.step.seconds(card)
    assert (parts["validation"], parts["compiling"]) == (0, 28)
    assert found.parts(card, compiled=True, compile_s=11)["compiling"] == 11
    assert found.parts(card, compiled=False)["compiling"] == 0
    assert parts["loading"] == pytest.approx(2 + 58, rel=0.03)


def test_the_single_stream_model_has_its_own_weights_per_token() -> None:
    """13 D^2 in each of 32 blocks, all of which each token goes through; a LoRA of rank
    16 in each layer."""
    found = work_of(
        item(references=0), model={"name_or_path": "Qwen/Qwen-Image-2.1"}, train=FULL
    ).step.forward
    tokens = 4096 + 14
    assert found.products == pytest.approx(2 * 13 * 4096**2 * 32 * tokens, rel=0.02)
    assert found.attention == pytest.approx(4 * tokens**2 * 4096 * 32, rel=0.02)


def key(*items: BucketedSample, gpu: str = "", **parts: Any) -> str:
    return times_key(section(**parts), group_items(items or (item(),)), gpu)


def test_times_are_kept_by_what_changes_a_step() -> None:
    assert key(train=FULL) == (
        "CPU, Qwen/Qwen-Image-Edit-2509, bfloat16, lora of 147,456,000, full, swap 0, 1 x 1, 1 MP, 1 control images"
    )
    changes: list[dict[str, Any]] = [
        {"gpu": "NVIDIA L4"},
        {"model": {"name_or_path": "Qwen/Qwen-Image-2512"}},
        {"model": {"quantize": True, "qtype": "int4"}},
        {"model": {"blocks_to_swap": 4}},
        {"train": {"gradient_checkpointing": "auto"}},
        {"train": {"batch_size": 2}},
        {"network": {"type": "lora", "linear": 8}},
    ]
    keys = [key(**change) for change in changes]
    keys += [key(item(512)), key(item(references=0)), key(item(references=3))]
    assert len({key(), *keys}) == 1 + len(keys)
    assert key(item(repeats=40), item(repeats=3)) == key(item()), (
        "how many images there are changes no step"
    )


@pytest.mark.parametrize(
    ("card", "model", "side", "published"),
    [
        (
            "RTX 5070 Ti",
            "Qwen/Qwen-Image-2.1",
            1024,
            3.93,
        ),  # anima_lora, project/qwen21_lora/report.md (2026-09-24)
        (
            "RTX 5090",
            "Qwen/Qwen-Image-2512",
            1328,
            4.50,
        ),  # musubi-tuner, pull request 722, compiled
    ],
)
def test_steps_on_other_cards_are_of_the_size_that_others_publish(
    card: str, model: str, side: int, published: float
) -> None:
    """Not the same program, and another level of checkpointing perhaps: an error of the
    table would be a multiple."""
    quantized = {"name_or_path": model, "quantize": True, "qtype": "int8"}
    step = work_of(item(side, references=0), model=quantized, train=FULL).step
    assert step.seconds(asked_card(card)) == pytest.approx(published, rel=0.25)
