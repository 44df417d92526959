"""An autoencoder trained along with the flow model on its latents."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from extensions.from_scratch.autoencoders import load_autoencoder, measure_latents
from extensions.from_scratch.joint import JointLoader, JointStep
from tests.extensions.from_scratch.conftest import SMALL, load_pixels_of
from tests.toolkit.data.shard_server import write_shard
from toolkit.errors import UserError

ALONG = {
    "losses": {"kl": 1e-4, "kl_warmup_steps": 0},
    "discriminator": {"channels": 4, "layers": 1, "r1_interval": 2},
}
TRAIN = {"ema_config": {"use_ema": True}}


def weights(folder: Path, part: str = "vae") -> dict[str, torch.Tensor]:
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_both_learn_and_the_scale_of_the_latents_stays(
    start, flow_job, pictures: Path, vae: Path
) -> None:
    folder = start(
        flow_job(
            pictures,
            autoencoder=ALONG,
            train=TRAIN,
            save={"save_every": 2, "dtype": "float32"},
        )
    )
    averages = load_file(folder / "state" / "step_000000004" / "ema.safetensors")
    for step in ("job_000000002", "job"):
        before = load_file(vae / "diffusion_pytorch_model.safetensors")
        assert all(
            not torch.equal(t, before[n])
            for n, t in weights(folder / step).items()
            if n.endswith("conv_in.weight")
        )
    assert all(
        torch.equal(tensor, averages[f"vae/{name}"])
        for name, tensor in weights(folder / "job").items()
    )
    assert (folder / "job" / "vae" / "discriminator.safetensors").is_file()
    own, given = (
        json.loads((path / "config.json").read_text())
        for path in (folder / "job" / "vae", vae)
    )
    assert own["scaling_factor"] == given["scaling_factor"]
    diffusers.AutoencoderKL.from_pretrained(folder / "job" / "vae")
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert {
        "loss_flow",
        "loss_l1",
        "loss_kl",
        "loss_gen",
        "loss_disc",
        "loss/vae",
        "loss/flow",
    } <= line.keys()
    assert line["loss"] == line["loss/flow"], (
        "the loss of what the run is for, without those of the other roles"
    )


@pytest.mark.slow
def test_a_frozen_encoder_keeps_the_latents(
    start, flow_job, pictures: Path, vae: Path
) -> None:
    folder = start(
        flow_job(
            pictures,
            autoencoder={"train": "decoder"},
            save={"save_every": 0, "dtype": "float32"},
        )
    )
    before, after = (
        load_file(vae / "diffusion_pytorch_model.safetensors"),
        weights(folder / "job"),
    )
    changed = {
        name.split(".")[0]
        for name, tensor in after.items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"decoder", "post_quant_conv"}


@pytest.mark.slow
def test_no_gradient_of_the_flow_model_reaches_the_autoencoder(
    monkeypatch, start, flow_job, pictures: Path
) -> None:
    """The autoencoder ends with the bytes that it has where the flow model's loss
    counts a thousandth."""
    ends = []
    for lr in (1e-3, 1e-1):
        keys = {
            "autoencoder": {},
            "optimizers": {"vae": {"lr": 1e-3}},
            "save": {"save_every": 0, "dtype": "float32"},
        }
        folder = start(
            flow_job(pictures, train={"lr": lr}, **keys), name=f"job{len(ends)}"
        )
        ends.append(weights(folder / folder.name))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


@pytest.mark.slow
def test_halves_of_a_batch_have_the_losses_of_the_whole(
    monkeypatch, start, flow_job, pictures: Path
) -> None:
    """As where memory runs out: pixels and captions are halved alike."""
    seen = []
    load = JointLoader.load

    def halved(self: JointLoader, spec):
        batch = load(self, spec)
        seen.append((batch, [half.names for half in batch.halves()]))
        return batch

    monkeypatch.setattr(JointLoader, "load", halved)
    steps = []
    init = JointStep.__init__
    monkeypatch.setattr(
        JointStep, "__init__", lambda self, *a: (init(self, *a), steps.append(self))[0]
    )
    start(flow_job(pictures, autoencoder={"losses": {"kl": 0}}))
    batch, halves = next((batch, halves) for batch, halves in seen if len(batch) == 2)
    assert halves == [(batch.names[0],), (batch.names[1],)]
    whole = steps[-1](batch, 0).by_role
    parts = [steps[-1](half, 0).by_role for half in batch.halves()]
    for role, loss_B in whole.items():
        torch.testing.assert_close(
            loss_B, torch.cat([part[role] for part in parts]), rtol=1e-4, atol=1e-5
        )


# ------------------------------------------------------------ from nothing

NEW = {"class_name": "AutoencoderKL", "config": SMALL["AutoencoderKL"]}


def scale_of(folder: Path) -> tuple[float, float]:
    config = json.loads((folder / "vae" / "config.json").read_text())
    return config["scaling_factor"], config["shift_factor"]


def measured_scale(folder: Path, pictures: Path) -> tuple[float, float]:
    """Of the autoencoder in a model folder, by these images."""
    autoencoder = load_autoencoder(folder)
    images = map(load_pixels_of, sorted(pictures.glob("*.png")))
    with torch.no_grad():
        found = autoencoder.normalisation(*measure_latents(autoencoder.encode, images))
    return found["scaling_factor"], found["shift_factor"]


@pytest.mark.slow
def test_an_autoencoder_from_nothing_has_the_scale_of_its_latents_at_each_measurement(
    start, flow_job, make_pictures, tmp_path: Path
) -> None:
    """In `start/` that of the random weights; after steps 2 and 4 that of then, which
    step 3 still has."""
    along, pictures = (
        {**ALONG, "measure_every": 2},
        make_pictures(tmp_path / "data", *"abc", size=(32, 32)),
    )
    model, save = {"new_vae": NEW, "vae": ""}, {"save_every": 1, "dtype": "float32"}
    folder = start(
        flow_job(
            pictures,
            model=model,
            autoencoder=along,
            optimizers={"vae": {"lr": 1e-2}},
            save=save,
        )
    )
    saved = [
        folder / name
        for name in ("start", *(f"job_{step:09}" for step in (1, 2, 3)), "job")
    ]
    scales = [scale_of(path) for path in saved]
    own = [measured_scale(path, pictures) for path in saved]
    assert scales[0] == pytest.approx(own[0]) and scales[2] == pytest.approx(own[2])
    assert scales[4] == pytest.approx(own[4])
    assert scales[1] == pytest.approx(scales[0]) and scales[3] == scales[2]
    assert len({round(scale, 3) for scale, _ in (scales[0], scales[2], scales[4])}) == 3


@pytest.mark.slow
def test_both_from_nothing_go_on_to_the_same_bytes(
    start, flow_job, tmp_path: Path
) -> None:
    """Of which the scale is measured at steps that are not those of a state; on a
    stream."""
    for number in range(3):
        write_shard(
            tmp_path / "shards" / f"{number}.tar",
            4,
            size=((40, 32), (32, 40))[number % 2],
        )
    dataset: dict = {
        "url": f"{tmp_path}/shards/*.tar",
        "resolution": 32,
        "webdataset": {"window": 4},
    }

    def job(steps: int, **more: object) -> dict:
        along = {**ALONG, "spade": True, "measure_every": 3, "measured_images": 2}
        model, own = (
            {"new_vae": NEW, "vae": ""},
            {**dataset, **more, "caption_dropout_rate": 0.3},
        )
        keys = {"autoencoder": along, "datasets": [own], "save": {"save_every": 2}}
        return flow_job(Path(), model=model, train={**TRAIN, "steps": steps}, **keys)

    whole = start(job(6)).rename(tmp_path / "whole")
    start(job(4))
    again = start(job(6, num_workers=2))
    files = [
        f"state/step_000000006/{name}.safetensors"
        for name in ("weights", "ema", "optimizer")
    ]
    files += [
        "start/vae/config.json",
        *(f"job/vae/{file.name}" for file in (whole / "job" / "vae").iterdir()),
    ]
    assert {"job/vae/spade.safetensors", "job/vae/discriminator.safetensors"} <= set(
        files
    )
    assert [
        file
        for file in files
        if (whole / file).read_bytes() != (again / file).read_bytes()
    ] == []
    assert (
        scale_of(whole / "job_000000002")
        == scale_of(whole / "start")
        != scale_of(whole / "job")
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"model": {"new_vae": NEW, "vae": ""}},
            "model.new_vae: an autoencoder with random weights has to be trained. Add",
        ),
        (
            {"model": {"new_vae": NEW}, "autoencoder": {}},
            "model.new_vae: has no effect with 'model.vae'. Remove",
        ),
        (
            {"model": {"new_vae": NEW, "vae": ""}, "autoencoder": {"train": "decoder"}},
            "autoencoder.train: 'decoder' needs a trained encoder, but 'model.new_vae' has random weights",
        ),
        (
            {
                "model": {"new_vae": {"class_name": "AutoencoderTiny"}, "vae": ""},
                "autoencoder": {},
            },
            "autoencoder.losses: AutoencoderTiny has no distribution",
        ),
        (
            {
                "model": {
                    "new_vae": {**NEW, "config": {**NEW["config"], "chanels": 3}},
                    "vae": "",
                },
                "autoencoder": {},
            },
            "model.new_vae.config.*chanels",
        ),
        (
            {"autoencoder": {"discriminator": {"layers": 5}}},
            "autoencoder.discriminator.layers: 5 of them judge patches",
        ),
        (
            {"autoencoder": {}, "validation": {"fraction": 0.4}},
            "validation: needs fixed latents, but",
        ),
        (
            {"optimizers": {"vae": {"lr": 1e-4}}},
            "optimizers.vae: needs the section 'autoencoder'",
        ),
        (
            {"autoencoder": {}, "optimizers": {"discriminator": {"lr": 1e-4}}},
            r"optimizers.discriminator: needs the section 'autoencoder.discriminator'",
        ),
        (
            {"autoencoder": {"losses": {"adversarial": 0.5}}},
            "autoencoder.losses.adversarial: needs the section",
        ),
        (
            {"autoencoder": {}, "train": {"fused_backward_pass": True}},
            "flow and text_encoder and vae are trained",
        ),
    ],
)
def test_what_cannot_be_is_told_at_once(
    start, flow_job, pictures: Path, keys: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        start(flow_job(pictures, **keys))
