"""Whole jobs: what they leave, and that they learn. That they are continued to the same
bytes: tests/faults/test_autoencoders.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from extensions.from_scratch.vae_process import psnr, ssim
from tests.extensions.from_scratch.conftest import SMALL, Planned
from tests.running import lines
from toolkit.errors import UserError
from toolkit.train.anomalies import RunawayLoss, SlowSteps

GAN = {"discriminator": {"channels": 4, "layers": 1, "r1_interval": 2, "start_step": 1}}


@pytest.fixture
def pictures(make_pictures, tmp_path: Path) -> Path:
    return make_pictures(
        tmp_path / "data", "a", "b", "c", "d", "e", size=(40, 32), captions=False
    )


@pytest.mark.slow
def test_what_a_run_leaves(
    start, vae_job, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = start(
        vae_job(
            pictures,
            "AutoencoderKLQwenImage",
            **GAN,
            save={"save_every": 1, "max_step_saves_to_keep": 2},
            sample={"sample_every": 2, "count": 2, "format": "png"},
            validation={"fraction": 0.4, "every": 2},
            train={"ema_config": {"use_ema": True}},
        )
    )
    final, said = folder / "job", capsys.readouterr().out
    kept = {"job_000000003", "job_000000004", "job_best"}
    assert {path.name for path in folder.glob("job_*")} == kept
    loaded = diffusers.AutoencoderKLQwenImage.from_pretrained(final)
    averages = load_file(folder / "state" / "step_000000004" / "ema.safetensors")
    assert all(
        torch.equal(p, averages[f"vae/{name}"]) for name, p in loaded.named_parameters()
    )
    assert (final / "discriminator.safetensors").is_file()
    assert (
        loaded.config.latents_std != [1.0] * 4 and len(loaded.config.latents_mean) == 4
    )
    metrics = lines(folder / "metrics.jsonl")
    assert "loss_gen" not in metrics[0] and "loss_r1" not in metrics[1]
    assert {
        "loss_l1",
        "loss_kl",
        "loss_disc",
        "loss_r1",
        "grad_norm/discriminator",
    } <= set(metrics[2])
    assert {"validation/loss", "validation/psnr", "validation/ssim"} <= set(
        lines(folder / "validation.jsonl")[0]
    )
    pairs = sorted((folder / "samples").glob("*.png"))
    assert len(pairs) == 6 and {Image.open(pair).size for pair in pairs} == {
        (2 * 34, 30)
    }
    assert "PSNR" in said and "validation: 2 images held out" in said


def test_a_strangers_folder_of_the_name_is_refused_before_the_first_step(
    start, vae_job, pictures: Path
) -> None:
    job = vae_job(pictures)
    mine = Path(job["training_folder"]) / "job" / "job" / "photo.jpg"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(UserError, match="job' was not made by this program"):
        start(job)
    assert mine.is_file() and not (mine.parents[1] / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_further_run_starts_from_the_folder_with_its_discriminator(
    start, vae_job, pictures: Path, tmp_path: Path, said: list[str]
) -> None:
    """Two processes of one job: the second has the weights of the first, and none of
    its moments."""
    first = vae_job(pictures, **GAN, name="one")
    folder = tmp_path / "output" / "job" / "one" / "one"
    model = {"name_or_path": str(folder), "train": "decoder"}
    second = vae_job(
        pictures, **GAN, name="two", model=model, train={"steps": 1, "lr": 0}
    )
    start(first, second)
    assert (
        f"discriminator: continued from {folder / 'discriminator.safetensors'}" in said
    )
    before, after = (
        diffusers.AutoencoderKL.from_pretrained(
            tmp_path / "output" / "job" / name / name
        )
        for name in ("one", "two")
    )
    assert all(
        torch.equal(after.state_dict()[name], tensor)
        for name, tensor in before.state_dict().items()
    )
    wide = {**second, "name": "three", "discriminator": {"channels": 8, "layers": 1}}
    with pytest.raises(UserError, match=r"discriminator of another size\. Restore"):
        start(wide, name="other")
    (folder / "discriminator.safetensors").write_bytes(
        (folder / "discriminator.safetensors").read_bytes()[:-1]
    )
    with pytest.raises(
        UserError,
        match=r"discriminator\.safetensors: damaged discriminator .*Copy it again",
    ):
        start({**second, "name": "four"}, name="another")


@pytest.mark.slow
def test_spade_is_trained_saved_continued_and_dropped(
    start, vae_job, pictures: Path, tmp_path: Path
) -> None:
    """Four processes: without it, with it from there, on from that one, and without it
    again."""

    def after(name: str, **model: object) -> dict:
        return {"name_or_path": str(tmp_path / "output" / "job" / name / name), **model}

    still = {"steps": 1, "lr": 0}
    start(
        vae_job(pictures, name="off"),
        vae_job(
            pictures,
            name="on",
            model=after("off", spade=True),
            train={"ema_config": {"use_ema": True}},
        ),
        vae_job(pictures, name="further", model=after("on"), train=still),
        vae_job(pictures, name="dropped", model=after("on", spade=False), train=still),
    )
    output = tmp_path / "output" / "job"
    weights = {
        name: load_file(file)
        for name in ("off", "on", "further", "dropped")
        if (file := output / name / name / "spade.safetensors").is_file()
    }
    assert weights.keys() == {"on", "further"}
    assert any(
        tensor.abs().sum() > 0
        for name, tensor in weights["on"].items()
        if ".gamma." in name
    )
    assert all(
        torch.equal(weights["further"][name], tensor)
        for name, tensor in weights["on"].items()
    )
    averages = load_file(output / "on" / "state" / "step_000000004" / "ema.safetensors")
    assert all(
        torch.equal(averages[f"vae/spade.{name}"], tensor)
        for name, tensor in weights["on"].items()
    )
    for name, told in (
        ("on", "; SPADE in the decoder; trained: all of it"),
        ("further", "; SPADE in the decoder; trained: all of it"),
        ("dropped", "the decoder goes on without the SPADE of that folder"),
    ):
        assert told in (output / name / "log.txt").read_text(encoding="utf-8")


def test_a_dry_run_says_what_is_made_and_trained(planned: Planned) -> None:
    for line in (
        "AutoencoderKL with random weights, 2 x 2 pixels per latent pixel; trained: all of it",
        "discriminator: adamw, learning rate 0.001, constant",
        "starts from output/vae/one/one, which an earlier process of the job writes",
    ):
        assert line in planned.printed, line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizers": {"vae": {"optimizer_params": {"capturable": True}}}},
            "optimizers.vae.optimizer: adamw with these arguments cannot step a weight on cpu",
        ),
        (
            {"discriminator": {"layers": 5}},
            "discriminator.layers: 5 of them judge patches of at least 96 pixels",
        ),
        ({"sample": {"images": ["data/a.txt"]}}, "sample.images: data/a.txt"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    start, vae_job, pictures: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    (pictures / "a.txt").write_text("a")
    with pytest.raises(UserError) as caught:
        start(vae_job(pictures, **changes))
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "output" / "job" / "run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_it_learns(start, vae_job, pictures: Path, kind: str) -> None:
    train = {
        "steps": 60 if kind == "AutoencoderKL" else 150,
        "batch_size": 5,
        "lr": 5e-3,
    }
    folder = start(
        vae_job(pictures, kind, train=train, validation={"folder_path": str(pictures)})
    )
    before, after = (
        line["validation/psnr"] for line in lines(folder / "validation.jsonl")
    )
    assert after > before + 3


# ------------------------------------------------------------ quality of a
# reconstruction


def test_psnr_of_a_known_difference() -> None:
    target = torch.zeros(1, 3, 16, 16)
    # 10 log10(2^2 / 0.2^2)
    assert psnr(target + 0.2, target) == pytest.approx(20.0, abs=1e-4)
    assert psnr(target, target) == float("inf")


def test_ssim_is_1_for_equal_images_and_falls_with_noise() -> None:
    target = (
        torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    found = [ssim(target + std * noise, target) for std in (0.0, 0.1, 0.5)]
    assert found[0] == pytest.approx(1.0) and 1 > found[1] > 0.8 > found[2] > 0


def test_ssim_of_flat_images_is_their_luminance_term() -> None:
    x, y = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.25)
    c1 = 0.02**2
    assert ssim(x, y) == pytest.approx((2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1))
    assert ssim(x[..., :4], x[..., :4]) == pytest.approx(1.0)  # smaller than the window


# ------------------------------------------------------------ sound runs of both
# trainers


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["vae", "flow"])
def test_a_sound_run_says_nothing(
    start,
    vae_job,
    flow_job,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    trainer: str,
) -> None:
    seen = {SlowSteps: 0, RunawayLoss: 0}

    def counting(kind: type) -> Callable:
        add = kind.add

        def counted(self, samples, *rest):
            samples = samples if rest else list(samples)
            seen[kind] += len(samples)
            return add(self, samples, *rest)

        return counted

    for kind in seen:
        monkeypatch.setattr(kind, "add", counting(kind))
    train = {"steps": 40}
    if trainer == "vae":
        discriminator = {"channels": 4, "layers": 1, "start_step": 20}
        job = vae_job(
            pictures,
            train=train,
            discriminator=discriminator,
            sample={"sample_every": 20, "count": 1},
        )
    else:
        sample = {"sample_every": 20, "width": 64, "height": 64, "sample_steps": 2}
        job = flow_job(
            pictures,
            train=train,
            sample=sample | {"prompts": ["a red square", "a blue circle"]},
        )
    folder = start(job)
    events = [
        json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()
    ]
    assert [event for event in events if event["event"] == "warning"] == []
    assert all(seen.values())
