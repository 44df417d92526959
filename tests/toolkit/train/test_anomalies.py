"""The detectors of anomalies: every planted fault is found, with its cause, once; 20
sound runs give no line."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from toolkit.errors import Diagnostic
from toolkit.system.readings import Reading
from toolkit.train.anomalies import (
    RisingTexture,
    RunawayLoss,
    SampleLoss,
    SampleSets,
    SilentLayers,
    SlowSteps,
    costs_per_sample,
    features_of,
    steps_to_wait,
    texture_of,
)

SOUND_RUNS = range(20)

# ------------------------------------------------------------ step time

COST = {"large": 2.0, "small": 0.5, "small, 2 control images": 1.1}


def steps_of(
    seed: int,
    steps: int,
    pooled: int = 1,
    slow_from: float = math.inf,
    slow_to: float = math.inf,
    factor: float = 2.0,
    data: float = 0.0,
    reading: Callable[[int, bool], Reading] = lambda step, slow: Reading(),
) -> Iterator[Diagnostic]:
    """What is found in a run with jitter of 10 %, a cold start, and a pause of the
    system now and then; its steps are of three shapes, and those of `pooled` steps are
    known as one mean. From one step to another they take longer."""
    random, slow_steps, group = np.random.default_rng(seed), SlowSteps(), []
    for step in range(1, steps + 1):
        shape = random.choice(list(COST))
        is_slow = slow_from <= step < slow_to
        seconds = COST[shape] * random.lognormal(0, 0.1) * (
            factor if is_slow else 1
        ) + 5 * (random.random() < 0.01)
        group.append(
            (
                shape,
                seconds * (10 if step < 4 else 1),
                data * seconds if is_slow else 0.0,
            )
        )
        if len(group) == pooled:
            shapes, took, waited = zip(*group, strict=True)
            samples = Counter(
                {shape: 4 * count for shape, count in Counter(shapes).items()}
            )
            group = []
            found = slow_steps.add(
                samples,
                pooled,
                sum(took) / pooled,
                sum(waited) / pooled,
                reading(step, is_slow),
            )
            if found:
                yield found


@pytest.mark.parametrize("pooled", [pytest.param(1, marks=pytest.mark.slow), 10])
def test_steps_of_sound_runs_are_not_slow(pooled: int) -> None:
    assert [found for seed in SOUND_RUNS for found in steps_of(seed, 600, pooled)] == []


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_that_compile_are_not_slow(compiled: bool) -> None:
    watch = SlowSteps()
    for _ in range(60):
        assert watch.add(Counter(a=1), 1, 1.0, 0.0, Reading()) is None
    found = [
        watch.add(Counter(a=1), 1, 5.0, 0.0, Reading(), compiled) for _ in range(60)
    ]
    assert any(found) is not compiled


@pytest.mark.parametrize("pooled", [1, 10])
def test_steps_that_take_twice_as_long_are_reported_once_per_episode(
    pooled: int,
) -> None:
    for seed in range(3):
        (found,) = steps_of(seed, 900, pooled, slow_from=600)
        assert (
            found.check == "step_time"
            and found.cause == "not known"
            and "times as long" in found.message
        )
    again = SlowSteps()
    times = [1.0] * 60 + [2.0] * 60 + [1.0] * 60 + [2.0] * 60
    assert (
        sum(
            again.add(Counter(a=1), 1, seconds, 0.0, Reading()) is not None
            for seconds in times
        )
        == 2
    )


def since(begin: int, **rates: float) -> Callable[[int, bool], Reading]:
    """Counters that rise by so much in each slow step, and states that hold while steps
    are slow."""
    counters = {"faults", "cpu_s", "cpu_wait_s", "alloc_retries"}

    def read(step: int, slow: bool) -> Reading:
        passed = max(0, step - begin + 1)
        values = {
            name: rate * passed if name in counters else rate
            for name, rate in rates.items()
        }
        return (
            replace(Reading(clock_mhz=1800), **values)
            if slow
            else Reading(clock_mhz=1800)
        )

    return read


@pytest.mark.parametrize(
    ("rates", "data", "cause"),
    [
        ({}, 0.6, "waiting for data"),
        ({"faults": 400, "swapped": 3_000_000_000}, 0.0, "memory is swapped: 3.00 GB"),
        ({"faults": 400}, 0.6, "memory from the disk again"),
        ({"alloc_retries": 1}, 0.0, "PyTorch had to free its cached memory"),
        (
            {"gpu_shares": True, "gpu_free": 0.01},
            0.0,
            "the driver moves it into the system's memory",
        ),
        (
            {"clock_mhz": 900, "throttled": ("temperature",)},
            0.0,
            "clock is 900 MHz and was 1800 MHz (temperature)",
        ),
        ({"cpu_wait_s": 1.5}, 0.0, "other programs use the CPU"),
        ({"cpu_s": 1.5}, 0.0, "the CPU is slower, or shared"),
    ],
)
def test_slow_steps_name_their_cause(rates, data: float, cause: str) -> None:
    (found,) = steps_of(
        3, 600, 1, slow_from=350, factor=2.5, data=data, reading=since(350, **rates)
    )
    assert cause in found.cause


@pytest.mark.parametrize(("slow_steps", "lines"), [(40, 0), (90, 1)])
def test_a_busy_cpu_is_reported_only_when_it_lasts(slow_steps: int, lines: int) -> None:
    watch, waited_s, found = SlowSteps(), 0.0, []
    for seconds in [1.0] * 60 + [4.0] * slow_steps + [1.0] * 40:
        waited_s += seconds - 1
        found.append(
            watch.add(Counter(a=1), 1, seconds, 0.0, Reading(cpu_wait_s=waited_s))
        )
    assert sum(each is not None for each in found) == lines


def test_a_busy_cpu_is_told_where_the_steps_before_were_of_larger_images() -> None:
    """They took more of it each, slow as the later ones are."""
    watch, cpu_s, found = SlowSteps(), 0.0, []
    for shape, seconds in (
        [("large", 4.0)] * 40 + [("small", 1.0)] * 40 + [("small", 2.2)] * 200
    ):
        cpu_s += seconds
        found.append(
            watch.add(Counter({shape: 1}), 1, seconds, 0.0, Reading(cpu_s=cpu_s))
        )
    (line,) = filter(None, found)
    assert "the CPU is slower, or shared" in line.cause


def test_fast_steps_of_a_tiny_model_are_not_watched_closer_than_seconds() -> None:
    slow_steps = SlowSteps()
    times = [0.01] * 60 + [0.03] * 40
    assert not any(
        slow_steps.add(Counter(a=1), 1, seconds, 0.0, Reading()) for seconds in times
    )


def test_costs_of_shapes_that_only_come_together_are_told_apart() -> None:
    random = np.random.default_rng(0)
    true = {"a": 0.1, "b": 0.4, "c": 0.2}
    groups = []
    for _ in range(30):
        samples = Counter(random.choice(list(true), 10).tolist())
        groups.append(
            (samples, sum(true[shape] * count for shape, count in samples.items()))
        )
    groups[4] = (groups[4][0], 20 * groups[4][1])  # a pause
    assert costs_per_sample(groups) == pytest.approx(true, rel=0.15)


# ------------------------------------------------------------ loss


def losses_of(
    seed: int,
    steps: int = 400,
    runaway: str = "",
    factor: float = 6.0,
    begin: int = 250,
) -> list[Diagnostic]:
    """What is found in the losses of a run: they fall by half, depend on t by a factor
    of 30 and on the image by 3, and scatter. Dataset a has 70 % of the samples; the
    buckets wide and high mix both. `runaway` grows within 40 steps."""
    random, losses, found = np.random.default_rng(seed), RunawayLoss(), []
    image_scale = random.lognormal(0, 0.5, 30)
    for step in range(steps):
        samples = []
        for _ in range(4):
            image = int(random.integers(30))
            parts = {
                "dataset": "a" if image < 21 else "b",
                "bucket": "wide" if image % 2 else "high",
            }
            t = float(random.random())
            loss = (
                (1 - 0.5 * step / steps)
                * (0.05 + 1.5 * (1 - t) ** 2)
                * image_scale[image]
                * random.lognormal(0, 0.3)
            )
            grown = min(1.0, max(0, step - begin) / 40)
            loss *= factor**grown if runaway in parts.values() else 1
            samples.append(SampleLoss(parts, loss, t))
        found += losses.add(samples)
    return found


def test_losses_of_sound_runs_do_not_run_away() -> None:
    assert [found for seed in SOUND_RUNS for found in losses_of(seed, steps=200)] == []


@pytest.mark.parametrize("runaway", ["a", "b", "wide"])
def test_a_loss_that_runs_away_is_reported_with_its_part(runaway: str) -> None:
    for seed in range(3):
        (found,) = losses_of(seed, runaway=runaway)
        kind = "bucket" if runaway == "wide" else "dataset"
        assert (
            f"the loss of {kind} {runaway} is" in found.message
            and found.check == "loss"
        )


def test_a_loss_of_all_images_that_rises_is_no_part_of_them() -> None:
    losses, random = RunawayLoss(), np.random.default_rng(0)
    for step in range(300):
        samples = [
            SampleLoss(
                {"dataset": name},
                (8 if step > 200 else 1) * random.lognormal(0, 0.3),
                0.5,
            )
            for name in "ab"
        ]
        assert not losses.add(samples)


def test_a_dataset_that_is_learned_by_heart_accuses_no_other() -> None:
    """The loss of four images, most of the samples, falls to a fifth; that of the
    others stays as it is."""
    for seed in range(4):
        random, losses, found = np.random.default_rng(seed), RunawayLoss(), []
        scale = random.lognormal(0, 0.4, 60)
        for step in range(400):
            samples = []
            for image in random.choice(60, 2, p=[0.125] * 4 + [0.5 / 56] * 56):
                t, learned = (
                    float(random.random()),
                    0.2 + 0.8 * np.exp(-step / 60) if image < 4 else 1.0,
                )
                loss = (
                    learned
                    * np.exp(-1.8 * t)
                    * scale[image]
                    * random.lognormal(0, 0.35)
                )
                samples.append(
                    SampleLoss(
                        {"dataset": "few" if image < 4 else "many"}, float(loss), t
                    )
                )
            found += losses.add(samples)
        assert found == []


def test_losses_that_are_not_numbers_do_not_count() -> None:
    assert not RunawayLoss().add(
        [
            SampleLoss({"dataset": "a"}, loss, 0.5)
            for loss in (math.nan, math.inf, 0.0, -1.0)
        ]
    )


# ------------------------------------------------------------ gradients

LAYERS = [
    f"transformer_blocks.{block}.{name}"
    for block in (0, 1)
    for name in ("attn.to_q", "attn.to_add_out", "img_mlp")
]
PARAMETERS = [f"{layer}.lora_{side}.weight" for layer in LAYERS for side in "AB"]


def silent(steps: int, *silent_layers: str) -> dict[str, int]:
    """Steps without a gradient: of these layers all, of the others none."""
    return {
        name: steps if name.startswith(tuple(silent_layers) or ("-",)) else 0
        for name in PARAMETERS
    }


def test_a_layer_without_a_gradient_is_reported_once() -> None:
    layers, dead = SilentLayers(PARAMETERS), "transformer_blocks.0.attn.to_q"
    assert (
        layers.add(silent(0), []) is None and layers.add(silent(19, dead), []) is None
    )
    found = layers.add(silent(20, dead), [])
    assert (
        found
        and dead in found.message
        and "1 of 6" in found.message
        and "exactly zero" in found.cause
    )
    assert layers.add(silent(40, dead), []) is None
    assert layers.add(silent(0), []) is None
    absent = [name for name in PARAMETERS if name.startswith(dead)]
    assert (
        "does not depend" in (again := layers.add(silent(20, dead), absent)).cause
        and again
    )


def test_matrices_whose_partner_learns_are_no_layer_without_gradient() -> None:
    """A of a LoRA has no gradient as long as B is zero."""
    steps = {name: 0 if "lora_B" in name else 30 for name in PARAMETERS}
    assert SilentLayers(PARAMETERS).add(steps, []) is None


def test_the_end_of_the_text_side_has_no_gradient_in_a_sound_run() -> None:
    layers, end = SilentLayers(PARAMETERS), "transformer_blocks.1.attn.to_add_out"
    assert layers.add(silent(50, end), []) is None
    assert layers.add(silent(50, "transformer_blocks.0.attn.to_add_out"), []), (
        "of another block it is a fault"
    )
    assert SilentLayers(PARAMETERS).add(
        silent(50, "transformer_blocks.1.img_mlp"), []
    ), "so is the image's side"
    learned = SilentLayers(PARAMETERS)
    learned.add(silent(0), [])
    assert learned.add(silent(50, end), []), "and a layer that has had one"


def test_all_layers_without_a_gradient_are_one_line() -> None:
    found = SilentLayers(PARAMETERS).add(silent(20, "transformer_blocks"), PARAMETERS)
    assert found and found.message.startswith("all 6 layers")


@pytest.mark.parametrize(
    ("dropouts", "steps"),
    [((0, 0, 16), 20), ((0.1, 0, 16), 20), ((0.8, 0, 16), 124), ((0, 0.5, 1), 40)],
)
def test_layers_that_are_dropped_by_chance_are_waited_for(dropouts, steps: int) -> None:
    assert steps_to_wait(*dropouts) == steps


# ------------------------------------------------------------ samples


def image_of(seed: int, kind: str = "image", size: int = 128) -> Image.Image:
    """A gradient with a disc, white noise, or noise of 8 pixels a grain as a decoder
    makes it of random latents."""
    random = np.random.default_rng(seed)
    if kind == "noise":
        return Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8))
    if kind == "latent noise":
        grains = Image.fromarray(
            random.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
        )
        return grains.resize((size, size), Image.Resampling.BICUBIC)
    y, x = np.mgrid[:size, :size] / size
    colours = random.integers(0, 256, (3, 3))
    weights = np.stack(
        [
            x,
            y,
            ((x - random.random()) ** 2 + (y - random.random()) ** 2 < 0.06).astype(
                float
            ),
        ],
        -1,
    )
    return Image.fromarray(np.clip(weights @ colours / 2, 0, 255).astype(np.uint8))


def a_set(*images: Image.Image) -> list[tuple[str, object]]:
    return [
        (f"prompt {index}", features_of(image)) for index, image in enumerate(images)
    ]


def test_sample_images_of_sound_runs_give_no_line() -> None:
    for seed in SOUND_RUNS:
        sets = SampleSets()
        for step in range(3):
            assert not sets.add(
                a_set(*(image_of(10 * seed + 3 * step + index) for index in range(2)))
            )


@pytest.mark.parametrize("kind", ["noise", "latent noise"])
def test_noise_after_images_is_reported_once(kind: str) -> None:
    sets, noise = SampleSets(), a_set(*(image_of(index, kind) for index in range(3)))
    assert not sets.add(a_set(*map(image_of, range(3))))
    (found,) = sets.add(noise)
    assert "are noise" in found.message
    assert (
        not sets.add(noise)
        and not sets.add(a_set(*map(image_of, range(3))))
        and sets.add(noise)
    )


def test_an_untrained_model_that_makes_noise_or_the_same_of_every_prompt_is_sound() -> (
    None
):
    sets = SampleSets()
    assert not sets.add(a_set(image_of(1, "noise"), image_of(1, "noise")))
    assert not sets.add(a_set(image_of(2, "noise"), image_of(3, "noise")))


@pytest.mark.parametrize(
    "image", [image_of(7), Image.new("RGB", (128, 128))], ids=["one image", "black"]
)
def test_images_that_become_all_alike_are_reported(image: Image.Image) -> None:
    sets = SampleSets()
    assert not sets.add(a_set(*map(image_of, range(3))))
    (found,) = sets.add(a_set(image, image, image))
    assert "all alike" in found.message and not sets.add(a_set(image, image, image))


def test_the_same_prompt_may_give_the_same_image() -> None:
    sets = SampleSets()
    sets.add(a_set(*map(image_of, range(3))))
    assert not sets.add([("one prompt", features_of(image_of(1)))] * 3)


# ------------------------------------------------------------ texture


def woven(image: Image.Image, period: int = 4, amplitude: int = 12) -> Image.Image:
    """The image with a pattern everywhere."""
    y, x = np.mgrid[: image.height, : image.width]
    pattern = amplitude * np.sign(
        np.sin(2 * np.pi * x / period + 0.1) * np.sin(2 * np.pi * y / period + 0.1)
    )
    return Image.fromarray(
        np.clip(np.asarray(image, float) + pattern[..., None], 0, 255).astype(np.uint8)
    )


def test_texture_is_the_energy_of_high_frequencies_in_flat_areas() -> None:
    """A disc, a gradient, rounding and JPEG have none; a pattern has, whatever else is
    in the image."""
    image, half = image_of(3), image_of(3)
    # fine detail in one half, as of leaves
    half.paste(image_of(0, "noise").crop((0, 0, 64, 128)), (0, 0))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    for sound in (
        image,
        half,
        Image.open(file),
        Image.new("RGB", (128, 128), "red"),
        Image.new("L", (9, 9)),
    ):
        assert texture_of(sound) < 0.1
    assert texture_of(woven(image)) > 0.9 and texture_of(woven(half)) > 0.9
    assert texture_of(woven(image, period=32)) < 0.3  # shapes are not texture


def test_rising_texture_is_reported_once_and_not_while_the_loss_rises() -> None:
    texture = RisingTexture("images", rise=0.1)
    assert texture.add([0.2, 0.05], False) is None
    assert texture.add([0.25, 0.29, 0.9], False) is None  # the median is within
    assert texture.add([0.35, 0.35, 0.1], True) is None
    found = texture.add([0.35, 0.35, 0.1], False)
    assert (
        found
        and found.check == "texture"
        and "high frequencies 0.35, at first at most 0.20" in found.message
    )
    assert texture.add([0.5], False) is None and texture.add([0.1], False) is None
    assert texture.add([0.5], False)


def test_samples_that_turn_into_texture_are_reported_and_noise_is_reported_as_noise() -> (
    None
):
    images = [image_of(index) for index in range(3)]
    sets = SampleSets()
    assert not sets.add(a_set(*images), False) and not sets.add(
        a_set(*map(woven, images)), True
    )
    (found,) = sets.add(a_set(*map(woven, images)), False)
    assert found.message.startswith("the sample images turn into texture")
    (found,) = sets.add(a_set(*(image_of(index, "noise") for index in range(3))), False)
    assert "are noise" in found.message


@pytest.mark.parametrize(("trend", "rises"), [(0.99, False), (1.01, True)])
def test_whether_the_loss_rises_is_told_by_losses_of_the_same_noise_levels(
    trend: float, rises: bool
) -> None:
    """Losses differ by more over the noise level than over the run."""
    random, losses = np.random.default_rng(0), RunawayLoss()
    for step in range(200):
        t = float(random.random())
        losses.add([SampleLoss({"dataset": "a"}, (0.1 + t) * trend**step, t)])
    assert losses.rises() == rises and RunawayLoss().rises()
