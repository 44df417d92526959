"""An autoencoder trained along with the flow model on its latents."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from extensions.flow_trainer.joint import JointLoader, JointStep
from toolkit.errors import UserError

ALONG = {
    "losses": {"kl": 1e-4, "kl_warmup_steps": 0},
    "discriminator": {"channels": 4, "layers": 1, "r1_interval": 2},
}
TRAIN = {"ema_config": {"use_ema": True}}


def weights(folder: Path, part: str = "vae") -> dict[str, torch.Tensor]:
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


def test_both_learn_and_the_scale_of_the_latents_stays(start, flow_job, pictures: Path, vae: Path) -> None:
    folder = start(flow_job(pictures, autoencoder=ALONG, train=TRAIN, save={"save_every": 2, "dtype": "float32"}))
    averages = load_file(folder / "state" / "step_000000004" / "ema.safetensors")
    for step in ("job_000000002", "job"):
        before = load_file(vae / "diffusion_pytorch_model.safetensors")
        assert all(
            not torch.equal(t, before[n]) for n, t in weights(folder / step).items() if n.endswith("conv_in.weight")
        )
    assert all(torch.equal(tensor, averages[f"vae/{name}"]) for name, tensor in weights(folder / "job").items())
    assert (folder / "job" / "vae" / "discriminator.safetensors").is_file()
    own, given = (json.loads((path / "config.json").read_text()) for path in (folder / "job" / "vae", vae))
    assert own["scaling_factor"] == given["scaling_factor"]
    diffusers.AutoencoderKL.from_pretrained(folder / "job" / "vae")
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss_flow", "loss_recon", "loss_kl", "loss_gen", "loss_disc", "loss/vae", "loss/flow"} <= line.keys()


def test_a_run_goes_on_to_the_same_bytes(start, flow_job, pictures: Path, tmp_path: Path) -> None:
    keys = {"autoencoder": {**ALONG, "spade": True}, "save": {"save_every": 2}}
    whole = start(flow_job(pictures, train={**TRAIN, "steps": 4}, **keys)).rename(tmp_path / "whole")
    start(flow_job(pictures, train={**TRAIN, "steps": 2}, **keys))
    again = start(flow_job(pictures, train={**TRAIN, "steps": 4}, **keys))
    files = [f"state/step_000000004/{name}.safetensors" for name in ("weights", "ema", "optimizer")]
    files += [f"job/vae/{file.name}" for file in (whole / "job" / "vae").iterdir()]
    assert "job/vae/spade.safetensors" in files and "job/vae/discriminator.safetensors" in files
    assert [file for file in files if (whole / file).read_bytes() != (again / file).read_bytes()] == []


def test_a_frozen_encoder_keeps_the_latents(start, flow_job, pictures: Path, vae: Path) -> None:
    folder = start(flow_job(pictures, autoencoder={"train": "decoder"}, save={"save_every": 0, "dtype": "float32"}))
    before, after = load_file(vae / "diffusion_pytorch_model.safetensors"), weights(folder / "job")
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_no_gradient_of_the_flow_model_reaches_the_autoencoder(monkeypatch, start, flow_job, pictures: Path) -> None:
    """The autoencoder ends with the bytes that it has where the flow model's loss counts a thousandth."""
    ends = []
    for lr in (1e-3, 1e-1):
        keys = {"autoencoder": {}, "optimizers": {"vae": {"lr": 1e-3}}, "save": {"save_every": 0, "dtype": "float32"}}
        folder = start(flow_job(pictures, train={"lr": lr}, **keys), name=f"job{len(ends)}")
        ends.append(weights(folder / folder.name))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_halves_of_a_batch_have_the_losses_of_the_whole(monkeypatch, start, flow_job, pictures: Path) -> None:
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
    monkeypatch.setattr(JointStep, "__init__", lambda self, *a: (init(self, *a), steps.append(self))[0])
    start(flow_job(pictures, autoencoder={"losses": {"kl": 0}}))
    batch, halves = next((batch, halves) for batch, halves in seen if len(batch) == 2)
    assert halves == [(batch.names[0],), (batch.names[1],)]
    whole = steps[0](batch, 0).by_role
    parts = [steps[0](half, 0).by_role for half in batch.halves()]
    for role, loss_B in whole.items():
        torch.testing.assert_close(loss_B, torch.cat([part[role] for part in parts]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"autoencoder": {}, "validation": {"fraction": 0.4}}, "validation: measures on the latents as they were"),
        ({"optimizers": {"vae": {"lr": 1e-4}}}, "optimizers.vae: needs the section 'autoencoder'"),
        (
            {"autoencoder": {}, "optimizers": {"discriminator": {"lr": 1e-4}}},
            r"optimizers.discriminator: needs the section 'autoencoder.discriminator'",
        ),
        ({"autoencoder": {"losses": {"adversarial": 0.5}}}, "autoencoder.losses.adversarial: needs the section"),
        ({"autoencoder": {}, "train": {"fused_backward_pass": True}}, "flow and text_encoder and vae are trained"),
    ],
)
def test_what_cannot_be_is_told_at_once(start, flow_job, pictures: Path, keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start(flow_job(pictures, **keys))
