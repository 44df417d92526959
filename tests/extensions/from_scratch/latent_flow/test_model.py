"""`LatentFlowModel`: what is trained along is used at each moment, and what a folder
says decides."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch

from extensions.from_scratch.latent_flow.family import TRANSFORMERS
from extensions.from_scratch.latent_flow.model import LatentFlowModel
from tests.extensions.from_scratch.flow_models import write_flow_model
from toolkit.contracts.data import PromptEmbeds, Size
from toolkit.flow.loss import INTERPOLANTS
from toolkit.models.families import ModelLoadOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_flow_model(tmp_path / "model")


def opened(folder: Path, **options: bool) -> LatentFlowModel:
    return LatentFlowModel(
        ModelLoadOptions(
            folder=folder, device=torch.device("cpu"), dtype=torch.float32, **options
        )
    )


def encoded(model: LatentFlowModel, *prompts: str) -> PromptEmbeds:
    return PromptEmbeds.stack([model.encode_prompt(prompt, ()) for prompt in prompts])


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("trained", [False, True])
def test_with_low_vram_encoders_that_are_not_trained_leave_the_device(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    model, moved = opened(folder, low_vram=True), []
    if trained:
        model.train_autoencoder(None, 0)
    prompts = encoded(model, "a cat")
    monkeypatch.setattr(
        model.autoencoder,
        "to",
        lambda device: moved.append(str(device)) or model.part("vae"),
    )
    model.encode_prompt("a dog", ())
    assert moved == ["cpu"] * (not trained)
    with torch.no_grad():
        predicted = model.predict_velocity(noise(1), torch.tensor([0.5]), prompts, [()])
    assert moved == ["cpu", "cpu"] * (not trained)
    with torch.no_grad():
        assert torch.equal(
            predicted,
            opened(folder).predict_velocity(
                noise(1), torch.tensor([0.5]), prompts, [()]
            ),
        )


def test_captions_change_the_prediction(folder: Path) -> None:
    model = opened(folder)
    with torch.no_grad():
        one, other = model.predict_velocity(
            noise(1).repeat(2, 1, 1, 1),
            torch.tensor([0.5, 0.5]),
            encoded(model, "a cat", "a dog"),
            [()] * 2,
        )
    assert (one - other).abs().max() > 1e-4


def test_a_trained_text_encoder_gives_token_ids_and_the_same_prediction_with_gradients(
    folder: Path,
) -> None:
    frozen, trained = opened(folder), opened(folder)
    trained.train_text_encoder()
    trained.text_encoder.requires_grad_(True)
    prompts = ("a cat", "a photo of a dog", "")
    x_BCHW, t_B = noise(3), torch.tensor([0.2, 0.5, 0.9])
    ids = encoded(trained, *prompts)
    assert ids.embeds_BLD.dtype == torch.int64 and ids.embeds_BLD.ndim == 2
    with torch.no_grad():
        before = frozen.predict_velocity(
            x_BCHW, t_B, encoded(frozen, *prompts), [()] * 3
        )
    after = trained.predict_velocity(x_BCHW, t_B, ids, [()] * 3)
    torch.testing.assert_close(after, before)
    after.square().mean().backward()
    reached = [
        name
        for name, p in trained.text_encoder.named_parameters()
        if p.grad is not None and p.grad.any()
    ]
    assert len(reached) > 0.8 * len(list(trained.text_encoder.named_parameters()))
    with torch.no_grad():
        trained.text_encoder.encoder.embeddings.word_embeddings.weight.mul_(2)
        assert not torch.equal(
            trained.predict_velocity(x_BCHW, t_B, ids, [()] * 3), before
        )


def test_the_keys_of_the_cache_follow_what_decides(folder: Path) -> None:
    plain, trained = opened(folder), opened(folder)
    trained.train_text_encoder()
    keys = {plain.cache_key("text_encoder"), trained.cache_key("text_encoder")}
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "max_tokens": 3}))
    shorter = opened(folder)
    assert len(shorter.encode_prompt("a photo of a dog", ())) == 3
    assert shorter.count_cut(["a photo of a dog", "a cat", ""]) == 2
    assert len(keys | {shorter.cache_key("text_encoder")}) == 3
    before, weights = (
        shorter.cache_key("text_encoder"),
        folder / "text_encoder" / "model.safetensors",
    )
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert opened(folder).cache_key("text_encoder") != before
    assert opened(folder).cache_key("vae") == plain.cache_key("vae")


def test_the_folder_says_sizes_channels_and_prediction(tmp_path: Path) -> None:
    family = opened(
        write_flow_model(tmp_path / "v", "QwenImageTransformer2DModel", "v")
    ).family
    assert (
        family.latent_channels,
        family.latent_scale,
        family.size_multiple,
        family.prediction,
    ) == (4, 2, 4, "v")
    assert family.latent_size(Size(64, 32)) == Size(32, 16)
    assert INTERPOLANTS[family.prediction].speed == pytest.approx(torch.pi / 2)


def test_latents_are_normalised_as_the_autoencoder_says(folder: Path) -> None:
    model = opened(folder)
    pixels = (
        torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    module = model.autoencoder.module
    with torch.no_grad():
        raw = module.encode(pixels).latent_dist.mean
    torch.testing.assert_close(model.encode_images(pixels), (raw - 0.25) * 1.5)


@torch.no_grad()
def test_rows_with_unlike_references_are_predicted_as_alone(tmp_path: Path) -> None:
    """From none to three, of several sizes; their order counts."""
    model = opened(write_flow_model(tmp_path / "model", "QwenImageTransformer2DModel"))
    random = torch.Generator().manual_seed(3)
    wide, tall, small = (
        torch.randn(4, *size, generator=random) for size in ((4, 8), (8, 4), (2, 2))
    )
    given = [(wide, tall), (), (tall, wide), (wide, tall, small), (small,)]
    prompts, levels = encoded(model, *["a cat"] * 5), torch.full((5,), 0.5)
    x_BCHW = noise(1).repeat(5, 1, 1, 1)
    together = model.predict_velocity(x_BCHW, levels, prompts, given)
    for row, references in enumerate(given):
        alone = model.predict_velocity(
            x_BCHW[:1], levels[:1], prompts.select([row]), [references]
        )
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)
    adapter, one = (
        TRANSFORMERS.load("QwenImageTransformer2DModel"),
        prompts.select([3]).embeds_BLD,
    )
    slots = [wide[None], tall[None], small[None]]
    direct = adapter.forward(
        model.network_module, adapter.compose(()), x_BCHW[:1], levels[:1], one, slots
    )
    torch.testing.assert_close(together[3], direct[0], rtol=1e-4, atol=1e-5)
    unlike = [(one - other).abs().max() for one, other in combinations(together, 2)]
    assert min(unlike) > 1e-4
    text = sum(prompts.lengths)
    assert (
        model.num_tokens(x_BCHW, prompts, given) == text + 5 * 16 + 3 * (8 + 8) + 2 * 1
    )
    assert model.reference_size(Size(100, 50), Size(40, 72)) == Size(76, 36)
    assert model.family.max_references == 3
    with pytest.raises(
        ValueError, match="4 control images, and this model takes at most 3"
    ):
        model.predict_velocity(
            x_BCHW[:1], levels[:1], prompts.select([0]), [(small,) * 4]
        )


@pytest.mark.parametrize(
    ("config", "mu"), [({"shift": 1.0}, 0.0), ({"shift": 3.0}, 1.0986123)]
)
def test_the_time_shift_is_that_of_the_scheduler(
    folder: Path, config: dict, mu: float
) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    assert opened(folder).dynamic_shift.mu(64, 20) == pytest.approx(mu)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "model_index.json",
            {"prediction": "x0"},
            "prediction: 'x0' is none of flow, v",
        ),
        (
            "model_index.json",
            {"max_tokens": 0},
            "max_tokens: 0 is not a whole number above 0",
        ),
        (
            "transformer/config.json",
            {"_class_name": "FluxTransformer2DModel"},
            "is not a transformer of this family",
        ),
        (
            "vae/config.json",
            {"latent_channels": 3},
            "the transformer has 4 channels, and the latents of vae have 3",
        ),
        (
            "text_encoder/config.json",
            {"model_type": "gpt2"},
            "model_type 'gpt2' cannot be used",
        ),
    ],
)
def test_what_a_folder_says_wrongly_is_told(
    folder: Path, file: str, change: dict, message: str
) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in opened_family(folder)


def opened_family(folder: Path) -> str:
    from extensions.from_scratch.latent_flow.family import FAMILY

    return FAMILY.config_error(folder)
