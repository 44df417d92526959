"""The section: which combinations make sense, and what each role is trained with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from extensions.from_scratch.losses_config import DISCRIMINATOR, VAE
from extensions.from_scratch.vae_config import VaeTrainerConfig
from toolkit.config import load_job
from toolkit.errors import ConfigErrors
from toolkit.extension import discover

Load = Callable[..., VaeTrainerConfig]


@pytest.fixture
def load(vae_job, make_pictures, write_job, tmp_path: Path) -> Load:
    folder = make_pictures(tmp_path / "data", "a")

    def section(**changes: object) -> VaeTrainerConfig:
        config = load_job(write_job(vae_job(folder, **changes)), discover().find_config)
        found = config.processes[0].section
        assert isinstance(found, VaeTrainerConfig)
        return found

    return section


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"losses": {"adversarial": 0.5}},
            "losses.adversarial: needs the section 'discriminator'.",
        ),
        (
            {"losses": {"l1": 0, "kl": 0}},
            "losses: all weights are 0: nothing would be learned.",
        ),
        (
            {"losses": {"latent_noise": 0.1}},
            "losses.latent_noise: needs latents of a known scale. Set 'model.name_or_path', or remove it.",
        ),
        (
            {"losses": {"lpips": 0.1}},
            "losses.lpips_backbone: is not given. LPIPS needs VGG16: download https://",
        ),
        (
            {"losses": {"lpips": 0.1, "lpips_backbone": "no.pth"}},
            "losses.lpips_backbone: 'no.pth' does not exist.",
        ),
        (
            {"kind": "AutoencoderTiny", "losses": {"kl": 0.1}},
            "losses.kl: AutoencoderTiny has no distribution over its",
        ),
        ({"train": {"timestep_type": "sigmoid"}}, "train.timestep_type: unknown key."),
        (
            {
                "optimizers": {
                    "vae": {"optimizer": "lion", "optimizer_params": {"nesterov": True}}
                }
            },
            "optimizers.vae.optimizer_params: lion has no 'nesterov'.",
        ),
        (
            {"optimizers": {"vea": {}}},
            "optimizers.vea: unknown key. Did you mean 'vae'?",
        ),
        ({"model": {"class_name": "AutoencoderDC"}}, "model.class_name: "),
        (
            {"model": {"config": {"latent_chanels": 8}}},
            "model.config.latent_chanels: AutoencoderKL has no such argument. Did you mean 'latent_channels'?",
        ),
        (
            {"model": {"config": {"block_out_channels": [32, "x"]}}},
            "model.config.block_out_channels[1]: 'x' is not a",
        ),
        (
            {"losses": {"kl_warmup_steps": 10**40}},
            "losses.kl_warmup_steps: 1" + 40 * "0" + " is out of range",
        ),
        (
            {"train": {"optimizer_params": {"maximize": True}}},
            "train.optimizer_params: maximize: true would make",
        ),
        ({"discriminator": {"layers": 0}}, "discriminator.layers: 0 is out of range"),
        ({"stop_when": {"metric": "loss_flow", "below": 1}}, "stop_when.metric: "),
    ],
)
def test_what_makes_no_sense_is_an_error_at_its_key(
    load: Load, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(**changes)
    assert f"process[0].{message}" in str(caught.value)


def test_references_are_refused(load: Load, tmp_path: Path) -> None:
    dataset = {
        "folder_path": str(tmp_path / "data"),
        "control_path": str(tmp_path / "data"),
        "resolution": 32,
    }
    with pytest.raises(
        ConfigErrors, match=r"control_path: an autoencoder has no control images"
    ):
        load(datasets=[dataset])


def test_a_role_has_what_its_entry_says_and_else_what_train_says(load: Load) -> None:
    section = load(
        train={
            "lr": 0.5,
            "optimizer": "adamw",
            "optimizer_params": {"weight_decay": 0.1},
            "lr_scheduler": "cosine",
        },
        optimizers={"discriminator": {"lr": 0.25, "every": 2}},
        discriminator={},
    )
    vae, discriminator = (section.role_optimizer(role) for role in (VAE, DISCRIMINATOR))
    assert (vae.lr, vae.optimizer_params, vae.every) == (0.5, {"weight_decay": 0.1}, 1)
    assert (discriminator.lr, discriminator.lr_scheduler, discriminator.every) == (
        0.25,
        "cosine",
        2,
    )
    assert discriminator.optimizer_params == {"betas": [0.0, 0.9], "amsgrad": True}


@pytest.mark.parametrize(
    ("own", "expected"),
    [({"optimizer": "sgd"}, {}), ({"optimizer_params": {"eps": 1e-6}}, {"eps": 1e-6})],
)
def test_the_discriminators_own_defaults_are_those_of_an_adamw_without_arguments(
    load: Load, own: dict, expected: dict
) -> None:
    section = load(optimizers={"discriminator": own}, discriminator={})
    assert section.role_optimizer(DISCRIMINATOR).optimizer_params == expected


def test_a_run_may_end_by_any_number_that_it_logs(load: Load) -> None:
    assert load(stop_when={"metric": "loss_l1", "below": 0.02}).stop_when is not None
    stop = {"metric": "validation/loss"}
    assert load(stop_when=stop, validation={"fraction": 0.5, "every": 2}).stop_when
    with pytest.raises(ConfigErrors, match="needs the section 'validation'"):
        load(stop_when=stop)
    logged = set(
        load(
            discriminator={}, losses={"reconstruction": 1, "contrast": 0.1}
        ).logged_numbers()
    )
    names = (
        "loss_l1 loss_recon loss_kl loss_gen loss_disc contrast_loss adversarial_weight"
    )
    assert set(names.split()) <= logged
    assert "loss_kl" not in load(losses={"kl": 0}).logged_numbers()


def test_each_optimizer_comes_with_the_key_of_its_settings(load: Load) -> None:
    """A role without an entry is trained as `train` says."""
    section = load(
        train={"lr": 0.5}, optimizers={"discriminator": {"lr": 0.25}}, discriminator={}
    )
    used = [(key, optimizer.lr) for key, optimizer in section.optimizers_used()]
    assert used == [("train", 0.5), ("optimizers.discriminator", 0.25)]
