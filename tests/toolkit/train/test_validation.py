"""The loss on held-out images: the same for the same weights, whatever happened
before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch import Tensor

from tests.diffusers_reference import REFERENCES, encode_photos, open_tiny, photo_item
from tests.measured import at_most
from tests.unlike_family import FamilyOfV
from toolkit.contracts.data import CaptionRules, PromptEmbeds, Size
from toolkit.data.batches.latent_cache import EncodedDataset
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image.model import QwenImageModel
from toolkit.networks.lora import LoraNetwork
from toolkit.train.validation import Validator, high_energy, noise_levels

SIZE = Size(96, 64)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path) -> QwenImageModel:
    return open_tiny(tiny_model, reference_area=0)


@pytest.fixture(scope="module")
def photos(adapter: QwenImageModel) -> EncodedDataset:
    """One item without a reference, one with two."""
    return encode_photos(
        adapter,
        photo_item(SIZE),
        photo_item(Size(64, 64), REFERENCES[:2], "a cup in the garden"),
    )


class Recording:
    """An adapter that predicts zero and remembers what it was asked."""

    family = FAMILY

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, float, PromptEmbeds, int]] = []
        self.announced: list[float] = []

    def prefetch_timesteps(self, levels) -> None:
        self.announced.extend(levels)

    def predict_velocity(
        self, x_t_BCHW: Tensor, t_B: Tensor, prompts: PromptEmbeds, references
    ) -> Tensor:
        self.asked.append((x_t_BCHW, t_B.item(), prompts, len(references[0])))
        return torch.zeros_like(x_t_BCHW)


def test_the_noise_levels_are_the_middles_of_equal_parts() -> None:
    assert noise_levels(4) == (0.125, 0.375, 0.625, 0.875)
    assert noise_levels(1) == (0.5,)


def test_each_image_is_asked_at_each_level_alone_with_its_references_and_one_noise(
    photos: EncodedDataset,
) -> None:
    recording = Recording()
    Validator(recording, photos, timesteps=2).losses()
    assert [(level, references) for _, level, _, references in recording.asked] == [
        (0.25, 0), (0.75, 0), (0.25, 2), (0.75, 2)
    ]  # fmt: skip
    for entries, first, second in zip(
        photos.entries, recording.asked[::2], recording.asked[1::2], strict=True
    ):
        latents_BCHW = entries.latents.read()[None]
        noise_BCHW = (first[0] - 0.75 * latents_BCHW) / 0.25
        expected_BCHW = 0.25 * latents_BCHW + 0.75 * noise_BCHW
        at_most(
            "second level of the same noise",
            (second[0] - expected_BCHW).abs().max().item(),
            1e-5,
        )
        assert 0.8 < noise_BCHW.std().item() < 1.2


def test_the_losses_are_the_plain_means_of_the_squared_velocity(
    photos: EncodedDataset,
) -> None:
    recording = Recording()
    losses = Validator(recording, photos, timesteps=2).losses()
    by_level: dict[float, list[float]] = {}
    for index, (x_t_BCHW, level, _, _) in enumerate(recording.asked):
        latents_BCHW = photos.entries[index // 2].latents.read()[None]
        # noise - image, and the prediction is zero
        velocity_BCHW = (x_t_BCHW - latents_BCHW) / level
        by_level.setdefault(level, []).append(velocity_BCHW.square().mean().item())
    assert recording.announced == [0.25, 0.75]
    assert losses["validation/loss_t0.25"] == pytest.approx(
        fmean(by_level[0.25]), rel=1e-5
    )
    assert losses["validation/loss_t0.75"] == pytest.approx(
        fmean(by_level[0.75]), rel=1e-5
    )
    assert losses["validation/loss"] == pytest.approx(
        fmean([*by_level[0.25], *by_level[0.75]]), rel=1e-5
    )
    assert next(iter(losses)) == "validation/loss"


def test_of_a_family_that_predicts_v_the_loss_is_that_of_v(
    photos: EncodedDataset,
) -> None:
    recording = Recording()
    recording.family = FamilyOfV()
    losses = Validator(recording, photos, timesteps=1).losses()
    expected = []
    for entries, (x_t_BCHW, *_) in zip(photos.entries, recording.asked, strict=True):
        latents_BCHW = entries.latents.read()[None]
        # at t = 1/2 both have the weight 1 / sqrt(2)
        noise_BCHW = 2**0.5 * x_t_BCHW - latents_BCHW
        expected.append(((noise_BCHW - latents_BCHW) / 2**0.5).square().mean().item())
    assert losses["validation/loss"] == pytest.approx(fmean(expected), rel=1e-4)


@pytest.mark.parametrize("prediction", ["flow", "v"])
def test_texture_is_that_of_the_predicted_image_over_that_of_the_image(
    photos: EncodedDataset, prediction: str
) -> None:
    """Of a prediction of zero the image is x_t, or cos(pi t / 2) x_t."""
    recording = Recording()
    recording.family = FamilyOfV() if prediction == "v" else FAMILY
    found = Validator(recording, photos, timesteps=1).losses()["validation/texture"]
    scale, pairs = (
        (1, 0.5**0.5)[prediction == "v"],
        zip(photos.entries, recording.asked, strict=True),
    )
    shares = [
        high_energy(scale * x_t) / high_energy(one.latents.read()[None])
        for one, (x_t, *_) in pairs
    ]
    assert found == pytest.approx(fmean(shares), rel=1e-4)


def test_high_energy_begins_at_a_quarter_of_the_nyquist_frequency() -> None:
    x_W = torch.arange(32.0)
    for waves, is_high in ((2, False), (4, False), (5, True), (16, True)):
        wave_BCHW = torch.cos(2 * torch.pi * waves * x_W / 32).expand(1, 1, 32, 32)
        whole = float(wave_BCHW.square().mean())
        assert high_energy(wave_BCHW) == pytest.approx(
            whole if is_high else 0, abs=1e-5
        )


def test_the_same_weights_give_the_same_bits_and_nothing_is_drawn(
    adapter, photos: EncodedDataset
) -> None:
    validator = Validator(adapter, photos, timesteps=2)
    first = validator.losses()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert validator.losses() == first
    assert torch.equal(torch.get_rng_state(), before)
    other_order = replace(
        photos, items=photos.items[::-1], entries=photos.entries[::-1]
    )
    assert Validator(adapter, other_order, 2).losses() == pytest.approx(
        first, rel=1e-12
    )


def test_trained_weights_and_nothing_of_dropout_are_seen(tiny_model: Path) -> None:
    model = open_tiny(tiny_model)
    photos = encode_photos(model, photo_item(Size(64, 64)))
    validator = Validator(model, photos, timesteps=1)
    before = validator.losses()
    network = LoraNetwork(model.lora_targets(), 4, 4, seed=0, dropout=0.5)
    network.attach(model.network_module)
    with network.inference():
        assert validator.losses() == pytest.approx(before, rel=1e-5)
        with torch.no_grad():
            for parameter in network.parameters().values():
                parameter.add_(0.1)
        assert validator.losses() != pytest.approx(before, rel=1e-4)
        assert validator.losses() == validator.losses()
    assert all(parameter.grad is None for parameter in network.parameters().values())


def test_a_stop_breaks_it_off(photos: EncodedDataset) -> None:
    recording = Recording()
    assert (
        Validator(recording, photos, 2).losses(lambda: len(recording.asked) == 3)
        is None
    )
    assert len(recording.asked) == 3


def test_what_it_measures_has_a_name(adapter, photos: EncodedDataset) -> None:
    same, other_levels = (Validator(adapter, photos, count) for count in (2, 3))
    fewer = Validator(
        adapter,
        replace(photos, items=photos.items[:1], entries=photos.entries[:1]),
        2,
    )
    assert same.identity == Validator(adapter, photos, 2).identity
    assert len({v.identity for v in (same, other_levels, fewer)}) == 3


def test_the_mask_of_an_image_counts(photos: EncodedDataset) -> None:
    class Masked:
        def __init__(self, loader) -> None:
            self.loader = loader

        def load(self, spec):
            batch = self.loader.load(spec)
            return replace(
                batch,
                loss_mask_B1HW=torch.full((1, 1, *batch.latents_BCHW.shape[2:]), 0.5),
            )

    plain, masked = (Validator(Recording(), photos, 1) for _ in range(2))
    masked._loader = Masked(masked._loader)
    assert masked.losses()["validation/loss"] == pytest.approx(
        plain.losses()["validation/loss"] / 2, rel=1e-6
    )


def test_captions_are_those_of_the_items(adapter, photos: EncodedDataset) -> None:
    assert all(item.sample.rules == CaptionRules() for item in photos.items)
    recording = Recording()
    Validator(recording, photos, 1).losses()
    for (_, _, prompts, _), entries in zip(
        recording.asked, photos.entries, strict=True
    ):
        assert torch.equal(
            prompts.embeds_BLD[0], next(iter(entries.captions.values())).read()
        )
