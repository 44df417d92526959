import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.diffusers_reference import (
    REFERENCES,
    encode_photos,
    open_tiny,
    photo_item,
    relative,
)
from tests.golden_tables import FOLDER, drawn, golden
from tests.measured import at_most
from tests.unlike_family import FamilyOfV
from toolkit.contracts.data import BatchSpec, PromptEmbeds, Size
from toolkit.contracts.model import DynamicShift
from toolkit.data.batches.dataloader import BatchLoader, LatentBatch
from toolkit.errors import RunError
from toolkit.flow.loss import linear_path, trigonometric_path
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image.model import QwenImageModel
from toolkit.networks.lora import LoraNetwork
from toolkit.train import flow_step
from toolkit.train.flow_step import LOOKAHEAD_BATCHES, NETWORK, FlowMatchingStep

SIZE = Size(96, 64)


class FakeModel:
    """Predicts a fixed velocity and remembers what it was asked."""

    family = FAMILY
    dynamic_shift = DynamicShift()

    def __init__(self, velocity: float = 0.0) -> None:
        self.velocity = velocity

    def predict_velocity(
        self, x_t_BCHW: Tensor, t_B: Tensor, prompts, references
    ) -> Tensor:
        self.asked = (x_t_BCHW, t_B)
        return torch.full_like(x_t_BCHW, self.velocity)


def make_batch(
    latents_BCHW: Tensor,
    epoch: int = 0,
    positions: tuple[int, ...] | None = None,
    **changes,
) -> LatentBatch:
    count = len(latents_BCHW)
    spec = BatchSpec(
        epoch, items=tuple(range(count)), positions=positions or tuple(range(count))
    )
    batch = LatentBatch(
        latents_BCHW=latents_BCHW,
        prompts=PromptEmbeds(torch.zeros(count, 1, 1), (1,) * count),
        control_latents=((),) * count,
        spec=spec,
        names=("x.png",) * count,
        loss_weight_B=torch.ones(count),
    )
    return replace(batch, **changes)


LATENTS = torch.randn((3, 2, 4, 4), generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_mean_squared_distance_to_the_velocity() -> None:
    step = FlowMatchingStep(FakeModel(velocity=0.5), seed=1, timestep_type="sigmoid")
    batch = make_batch(LATENTS)
    noise_BCHW, t_B = step.sample_noise_and_t(batch.spec, LATENTS.shape[1:])
    result = step(batch)
    expected_B = ((0.5 - (noise_BCHW - LATENTS)) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(result.by_role[NETWORK], expected_B)
    assert torch.equal(result.per_sample["t"], t_B)
    x_t_BCHW, asked_t_B = step.model.asked
    assert torch.equal(
        x_t_BCHW, linear_path(LATENTS, noise_BCHW, t_B)[0]
    ) and torch.equal(asked_t_B, t_B)


def test_a_loss_of_an_extension_takes_its_place_and_has_one_number_per_sample() -> None:
    step = FlowMatchingStep(FakeModel(0.5), seed=1)
    batch = make_batch(LATENTS, loss_weight_B=torch.tensor([1.0, 2.0, 0.0]))
    weight = torch.ones((), requires_grad=True)
    step.loss = lambda predicted_BCHW, target_BCHW, t_B, mask_B1HW: weight * (t_B + 1)
    losses = step(batch)
    expected_B = (losses.per_sample["t"] + 1) * batch.loss_weight_B
    assert torch.equal(losses.by_role[NETWORK], expected_B)

    def backward(losses: dict[str, Tensor], final: bool) -> None:
        assert not final

    backward.step = 0
    for mine, told in (
        (torch.ones(()), r"'mine' has the shape \[\], .* \[3\]"),
        (None, "'mine' is None, and must be a tensor"),
        (torch.ones(3), "'mine' does not depend on what is trained"),
    ):
        step.extra_losses["mine"] = lambda batch, x_t_BCHW, t_B, mine=mine: mine
        with pytest.raises(RunError, match=told):
            step.backward(batch, backward)
    step.loss = lambda predicted_BCHW, target_BCHW, t_B, mask_B1HW: t_B
    with pytest.raises(RunError, match="'loss' does not depend"):
        step.backward(batch, backward)


def test_of_a_family_that_predicts_v_the_loss_is_that_of_v() -> None:
    model = FakeModel(velocity=0.5)
    model.family = FamilyOfV()
    step = FlowMatchingStep(
        model, seed=1, timestep_type="sigmoid", roles=("flow", "text_encoder")
    )
    batch = make_batch(LATENTS)
    noise_BCHW, t_B = step.sample_noise_and_t(batch.spec, LATENTS.shape[1:])
    by_role = step(batch).by_role
    x_t_BCHW, v_BCHW = trigonometric_path(LATENTS, noise_BCHW, t_B)
    torch.testing.assert_close(
        by_role["flow"], ((0.5 - v_BCHW) ** 2).mean(dim=(1, 2, 3))
    )
    assert by_role["text_encoder"] is by_role["flow"]
    assert torch.equal(model.asked[0], x_t_BCHW)


def test_draws_depend_on_epoch_and_position_only() -> None:
    step = FlowMatchingStep(FakeModel(), seed=1, timestep_type="sigmoid")
    shape = torch.Size((2, 4, 4))
    noise, t = step.sample_noise_and_t(
        BatchSpec(2, items=(9, 8, 7), positions=(4, 5, 6)), shape
    )
    torch.manual_seed(99)
    for row, position in enumerate((4, 5, 6)):
        alone_noise, alone_t = step.sample_noise_and_t(
            BatchSpec(2, items=(0,), positions=(position,)), shape
        )
        assert torch.equal(alone_noise[0], noise[row]) and torch.equal(
            alone_t[0], t[row]
        )
    for other in (BatchSpec(3, (9,), (4,)), BatchSpec(2, (9,), (5,))):
        other_noise, other_t = step.sample_noise_and_t(other, shape)
        assert not torch.equal(other_noise[0], noise[0]) and other_t[0] != t[0]
    of_other_seed = FlowMatchingStep(FakeModel(), seed=2, timestep_type="sigmoid")
    assert not torch.equal(
        of_other_seed.sample_noise_and_t(BatchSpec(2, (9,), (4,)), shape)[0][0],
        noise[0],
    )


def test_drawing_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    FlowMatchingStep(FakeModel(), seed=1, timestep_type="uniform")(make_batch(LATENTS))
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_and_masks_scale_the_loss() -> None:
    step = FlowMatchingStep(FakeModel(), seed=1, timestep_type="sigmoid")
    plain_B = step(make_batch(LATENTS)).by_role[NETWORK]
    weighted_B = step(
        make_batch(LATENTS, loss_weight_B=torch.tensor([0.0, 1.0, 2.0]))
    ).by_role[NETWORK]
    torch.testing.assert_close(weighted_B, plain_B * torch.tensor([0.0, 1.0, 2.0]))
    half = torch.full((3, 1, 4, 4), 0.5)
    torch.testing.assert_close(
        step(make_batch(LATENTS, loss_mask_B1HW=half)).by_role[NETWORK], plain_B / 2
    )


def test_a_mask_of_ones_changes_nothing_and_one_of_zeros_teaches_nothing() -> None:
    """The two masked halves of a sample, each by hand, and the gradient of the velocity
    that was predicted."""

    class Learner(FakeModel):
        def predict_velocity(
            self, x_t_BCHW: Tensor, t_B: Tensor, prompts, references
        ) -> Tensor:
            self.predicted = torch.full_like(x_t_BCHW, 0.5).requires_grad_()
            return self.predicted

    def losses(mask_B1HW: Tensor | None) -> tuple[Tensor, Tensor]:
        step = FlowMatchingStep(Learner(), seed=1, timestep_type="sigmoid")
        loss_B = step(make_batch(LATENTS, loss_mask_B1HW=mask_B1HW)).by_role[NETWORK]
        loss_B.sum().backward()
        return loss_B.detach(), step.model.predicted.grad

    plain_B, plain_grad_BCHW = losses(None)
    ones_B, ones_grad_BCHW = losses(torch.ones(3, 1, 4, 4))
    assert torch.equal(ones_B, plain_B) and torch.equal(ones_grad_BCHW, plain_grad_BCHW)

    mask_B1HW = torch.ones(3, 1, 4, 4)
    mask_B1HW[0] = 0
    mask_B1HW[1, ..., :2] = 0
    masked_B, masked_grad_BCHW = losses(mask_B1HW)
    assert (
        masked_B[0] == 0
        and masked_grad_BCHW[0].eq(0).all()
        and masked_B[2] == plain_B[2]
    )
    assert torch.equal(masked_grad_BCHW, plain_grad_BCHW * mask_B1HW)
    noise_BCHW, _ = FlowMatchingStep(FakeModel(), 1).sample_noise_and_t(
        make_batch(LATENTS).spec, LATENTS.shape[1:]
    )
    squares_CHW = (0.5 - (noise_BCHW - LATENTS)[1]) ** 2
    torch.testing.assert_close(
        masked_B[1], squares_CHW[..., 2:].sum() / squares_CHW.numel()
    )


def test_the_shift_goes_by_the_size_of_the_image() -> None:
    """At 1024x1024 the shift is exp(0.5 + 0.4 (4096 - 256) / (8192 - 256)) = 2.001, at
    16x16 exp(0.487)."""
    shifted, plain = (
        FlowMatchingStep(FakeModel(), 1, kind) for kind in ("model_shift", "sigmoid")
    )
    spec = BatchSpec(0, (0, 1), (0, 1))
    for side, shift in (
        (128, 2.00079),
        (2, math.exp(0.5 + 0.4 * (1 - 256) / (8192 - 256))),
    ):
        (_, t_B), (_, plain_B) = (
            step.sample_noise_and_t(spec, torch.Size((2, side, side)))
            for step in (shifted, plain)
        )
        torch.testing.assert_close(
            t_B, shift * plain_B / (1 + (shift - 1) * plain_B), rtol=0, atol=1e-5
        )


def test_the_shift_is_that_of_the_usual_number_of_steps() -> None:
    """Some models shift by the number of steps too, by a line that holds for as many as
    they are sampled with."""
    model = FakeModel()

    class ByStep(DynamicShift):
        def mu(self, tokens: int, steps: int) -> float:
            return steps / 10

    model.dynamic_shift = ByStep()
    shifted, plain = (
        FlowMatchingStep(model, 1, kind) for kind in ("model_shift", "sigmoid")
    )
    spec = BatchSpec(0, (0,), (0,))
    (_, t_B), (_, plain_B) = (
        step.sample_noise_and_t(spec, torch.Size((2, 4, 4)))
        for step in (shifted, plain)
    )
    shift = math.exp(model.family.sample_steps / 10)
    torch.testing.assert_close(t_B, shift * plain_B / (1 + (shift - 1) * plain_B))


def test_the_loss_and_its_weight_follow_the_settings() -> None:
    step = FlowMatchingStep(
        FakeModel(0.5), 1, "uniform", loss_type="mae", weighting_scheme="cosmap"
    )
    batch = make_batch(LATENTS)
    noise_BCHW, t_B = step.sample_noise_and_t(batch.spec, LATENTS.shape[1:])
    weight_B = 2 / (math.pi * (1 - 2 * t_B + 2 * t_B**2))
    expected_B = weight_B * (0.5 - (noise_BCHW - LATENTS)).abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(
        step(batch).by_role[NETWORK], expected_B, rtol=2e-3, atol=0
    )


# ---------------------------------------------------------------- strata


def epoch_of(step: FlowMatchingStep, epoch: int, samples: int) -> list[float]:
    """t of each position, in batches of one."""
    return [
        float(
            step.sample_noise_and_t(BatchSpec(epoch, (0,), (n,)), LATENTS.shape[1:])[1]
        )
        for n in range(samples)
    ]


@pytest.mark.parametrize("samples", [12, 13, 3])
def test_an_epoch_draws_equally_often_from_every_stratum(samples: int) -> None:
    step = FlowMatchingStep(
        FakeModel(), 1, "uniform", samples_per_epoch=samples, num_timestep_buckets=4
    )
    for epoch in range(3):
        counts = Counter(int(4 * t) for t in epoch_of(step, epoch, samples))
        assert set(counts) <= set(range(4)) and sum(counts.values()) == samples
        assert all(
            counts[stratum] in (samples // 4, -(-samples // 4)) for stratum in range(4)
        ), counts


def test_a_stratum_is_a_function_of_the_position_alone() -> None:
    def fresh() -> FlowMatchingStep:
        return FlowMatchingStep(
            FakeModel(), 1, "sigmoid", samples_per_epoch=20, num_timestep_buckets=5
        )

    straight = fresh()
    whole = [epoch_of(straight, epoch, 20) for epoch in (0, 1)]
    late = (
        fresh()
        .sample_noise_and_t(BatchSpec(1, (0, 0, 0), (13, 14, 15)), LATENTS.shape[1:])[1]
        .tolist()
    )
    assert late == whole[1][13:16]
    assert whole[0] != whole[1] and sorted(whole[0]) != sorted(whole[1])


# ---------------------------------------------------------------- against another
# program


@pytest.fixture(scope="module")
def drawn_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the transformer's weights by the rule in aitk_step.json, of
    unit gain."""
    rule = json.loads((FOLDER / "aitk_step.json").read_text(encoding="utf-8"))[
        "transformer"
    ]
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("drawn") / "model")
    shards = {
        file: load_file(file) for file in (folder / "transformer").glob("*.safetensors")
    }
    shapes = {
        name: tuple(tensor.shape)
        for shard in shards.values()
        for name, tensor in shard.items()
    }
    numbers = {
        name: torch.from_numpy(found).float()
        for name, found in drawn(shapes, rule["seed"]).items()
    }
    squares = sum(float(tensor.double().square().sum()) for tensor in numbers.values())
    assert math.isclose(math.sqrt(squares), rule["norm"], rel_tol=1e-9)
    for file, tensors in shards.items():
        save_file(
            {name: numbers[name] for name in tensors}, file, metadata={"format": "pt"}
        )
    return folder


class GivenDraws(FlowMatchingStep):
    """A step whose noise and t come from elsewhere."""

    def __init__(self, model: QwenImageModel, noise_BCHW: Tensor, t_B: Tensor) -> None:
        super().__init__(model, seed=0, timestep_type="weighted")
        self.given = noise_BCHW, t_B

    def sample_noise_and_t(
        self, spec: BatchSpec, shape_CHW: torch.Size, stacked: int = 1
    ) -> tuple[Tensor, Tensor]:
        return self.given


@pytest.mark.parametrize("case", golden("aitk_step"), ids=lambda case: case["case"])
def test_the_loss_of_step_1_is_that_of_ai_toolkit(
    drawn_model: Path, case: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given its latents, references, embeddings, noise and t."""
    tensors = load_file(FOLDER / "aitk_step_inputs.safetensors")
    theirs = {
        key.partition(".")[2]: value
        for key, value in tensors.items()
        if key.startswith(case["case"] + ".")
    }
    batch = make_batch(
        theirs["latents"],
        prompts=PromptEmbeds(theirs["embeds"], tuple(case["embeds_lengths"])),
        control_latents=tuple(
            tuple(tensors[name] for name in names) for names in case["references"]
        ),
    )
    model = open_tiny(drawn_model)
    ours, predict, measure = {}, model.predict_velocity, flow_step.loss_per_sample

    def seen_predict(x_t_BCHW: Tensor, *rest) -> Tensor:
        ours["x_t"] = x_t_BCHW
        ours["prediction"] = predict(x_t_BCHW, *rest)
        return ours["prediction"]

    def seen_measure(predicted_BCHW: Tensor, target_BCHW: Tensor, *rest) -> Tensor:
        ours["target"] = target_BCHW
        return measure(predicted_BCHW, target_BCHW, *rest)

    monkeypatch.setattr(model, "predict_velocity", seen_predict)
    monkeypatch.setattr(flow_step, "loss_per_sample", seen_measure)
    step = GivenDraws(model, theirs["noise"], torch.tensor(case["timesteps"]) / 1000)
    with torch.no_grad():
        loss = float(step(batch).by_role[NETWORK].mean())

    for name, limit in {"x_t": 1e-6, "target": 1e-6}.items():
        at_most(
            f"{case['case']}, {name}",
            float((ours[name] - theirs[name]).abs().max()),
            limit,
        )
    at_most(
        f"{case['case']}, prediction",
        relative(ours["prediction"], theirs["prediction"]),
        2e-6,
    )
    weights_B = torch.tensor(case["loss_weights"])
    at_most(
        f"{case['case']}, loss weights",
        relative(step.weighting(step.given[1]), weights_B),
        1e-6,
    )
    at_most(f"{case['case']}, loss", abs(loss / case["loss"] - 1), 1e-6)


# ---------------------------------------------------------------- accumulation


@pytest.fixture(scope="module")
def six_items(tiny_model: Path) -> BatchLoader:
    """Items with 0 to 3 references of several sizes, and texts of several lengths."""
    wide, tall, square = REFERENCES
    controls = [(), (wide,), (tall, square), (square,), (), (square, tall, wide)]
    items = [
        photo_item(SIZE, refs, f"picture {'very ' * n}new")
        for n, refs in enumerate(controls)
    ]
    return BatchLoader(
        encode_photos(open_tiny(tiny_model, reference_area=0), *items), seed=3
    )


def gradients(
    tiny_model: Path,
    loader: BatchLoader,
    dtype: torch.dtype,
    micro_batches: list[tuple[int, ...]],
) -> Tensor:
    """All LoRA gradients of one optimizer step over the six items, in these
    micro-batches."""
    model = open_tiny(tiny_model, dtype)
    network = LoraNetwork(model.lora_targets(), rank=4, alpha=4.0, dropout=0.0, seed=3)
    network.attach(model.network_module)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.parameters().items():
        # zero at the start, where half of the gradients would be zero
        if "lora_B" in name:
            parameter.data.copy_(
                0.1 * torch.randn(parameter.shape, generator=generator)
            )
    step = FlowMatchingStep(model, seed=3, timestep_type="sigmoid")
    for rows in micro_batches:
        batch = loader.load(BatchSpec(epoch=0, items=rows, positions=rows))
        batch = replace(batch, latents_BCHW=batch.latents_BCHW.to(dtype))
        (step(batch).by_role[NETWORK].sum() / 6).backward()
    # Some layers of the last block cannot influence the image: they have no gradient.
    return torch.cat(
        [
            p.grad.flatten().double()
            for p in network.parameters().values()
            if p.grad is not None
        ]
    )


@pytest.mark.slow
def test_micro_batches_add_up_to_one_batch(
    tiny_model: Path, six_items: BatchLoader
) -> None:
    whole = gradients(tiny_model, six_items, torch.float64, [(0, 1, 2, 3, 4, 5)])
    assert whole.norm() > 1e-3
    for name, parts in {
        "6 of 1": [(n,) for n in range(6)],
        "4 and 2": [(0, 1, 2, 3), (4, 5)],
    }.items():
        difference = relative(
            gradients(tiny_model, six_items, torch.float64, parts), whole
        )
        at_most(f"accumulation, {name}", difference, 1e-10)


@pytest.mark.slow
def test_a_step_and_a_sample_never_mix_devices(tiny_model: Path) -> None:
    """Batches, noise and t come from the CPU, the model may be anywhere: the meta
    device stands in for a GPU."""
    meta = torch.device("meta")
    model = FAMILY.open(ModelLoadOptions(tiny_model, meta, torch.bfloat16))
    network = LoraNetwork(model.lora_targets(), 4, 4.0, dropout=0.1, seed=1)
    network.attach(model.network_module)
    reference_CHW = torch.randn(16, 8, 12)
    batch = LatentBatch(
        latents_BCHW=torch.randn(2, 16, 8, 8),
        prompts=PromptEmbeds.stack([torch.randn(5, 64), torch.randn(7, 64)]),
        control_latents=((reference_CHW,), ()),
        spec=BatchSpec(0, (0, 1), (0, 1)),
        names=("a", "b"),
        loss_weight_B=torch.ones(2),
        loss_mask_B1HW=torch.rand(2, 1, 8, 8),
    )
    for loss_type in ("mse", "huber"):
        loss_B = FlowMatchingStep(model, 1, "weighted", loss_type=loss_type)(
            batch
        ).by_role[NETWORK]
        loss_B.sum().backward()
        assert loss_B.device == meta
    assert {
        p.grad.device for p in network.parameters().values() if p.grad is not None
    } == {meta}
    assert model.encode_images(torch.rand(1, 3, 64, 64)).device == meta
    assert model.decode_latents(torch.rand(1, 16, 8, 8)).device == meta


# ------------------------------------------------------------ levels that are known
# ahead


class Announced:
    """As much of an adapter as looking ahead needs."""

    family = FAMILY
    dynamic_shift = DynamicShift()

    def __init__(self) -> None:
        self.heard: list[list[float]] = []

    def prefetch_timesteps(self, levels: list[float]) -> None:
        self.heard.append(levels)


@pytest.mark.parametrize(
    "settings", [{}, {"timestep_type": "model_shift"}, {"num_timestep_buckets": 5}]
)
def test_the_levels_of_coming_batches_are_announced_before_they_are_drawn(
    settings: dict,
) -> None:
    adapter = Announced()
    step = FlowMatchingStep(adapter, seed=3, samples_per_epoch=200, **settings)
    specs = [
        BatchSpec(1, (0, 1), (2 * place, 2 * place + 1))
        for place in range(LOOKAHEAD_BATCHES + 3)
    ]
    passing = step.announce_timesteps(iter(specs), lambda spec: Size(24, 16))
    assert next(passing) is specs[0]
    assert [len(levels) for levels in adapter.heard] == [2 * LOOKAHEAD_BATCHES]
    assert [specs[0], *passing] == specs
    drawn = [
        step.sample_noise_and_t(spec, torch.Size((16, 16, 24)))[1] for spec in specs
    ]
    assert torch.equal(
        torch.tensor([level for levels in adapter.heard for level in levels]),
        torch.cat(drawn),
    )
