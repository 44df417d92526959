"""The `model` section of a trainer of autoencoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from extensions.compat.fluxflow import sized
from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from toolkit.config.reading.process import JobContext

JOB = JobContext("job")


def found(**keys: object) -> list[str]:
    return [
        f"{'.'.join(map(str, d.key))}: {d.message}"
        for d in AutoencoderConfig(**keys).check(JOB)
    ]


def write_config(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({}, 1),
        ({"config": {"block_out_channels": [8, 8, 8]}}, 4),
        ({"class_name": "AutoencoderKLQwenImage"}, 8),
        ({"class_name": "AutoencoderTiny"}, 8),
    ],
)
def test_each_level_but_the_first_halves_the_sides(keys: dict, scale: int) -> None:
    assert AutoencoderConfig(**keys).latent_scale() == scale


def test_a_folder_says_it_alone_or_within_that_of_a_pipeline(tmp_path: Path) -> None:
    write_config(
        tmp_path / "pipe" / "vae",
        _class_name="AutoencoderKL",
        block_out_channels=[8, 8],
    )
    for path in (tmp_path / "pipe", tmp_path / "pipe" / "vae"):
        section = AutoencoderConfig(name_or_path=str(path))
        assert (
            section.latent_scale() == 2
            and section.folder() == tmp_path / "pipe" / "vae"
        )
        assert found(name_or_path=str(path)) == []


def test_what_a_folder_is_not(tmp_path: Path) -> None:
    assert "not readable" in found(name_or_path=str(tmp_path / "none"))[0]
    other = write_config(tmp_path / "other", _class_name="AutoencoderDC")
    assert (
        "is a AutoencoderDC. What can be trained" in found(name_or_path=str(other))[0]
    )
    (tmp_path / "other" / "config.json").write_text("[]")
    assert "does not say of what class it is" in found(name_or_path=str(other))[0]


def test_keys_that_a_folder_makes_meaningless(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "vae", _class_name="AutoencoderKL")
    assert found(name_or_path=str(folder), class_name="AutoencoderTiny") == [
        "class_name: has no effect with 'name_or_path', whose files decide it. Remove one of them."
    ]


def test_a_folder_that_an_earlier_process_writes_is_yet_to_come(tmp_path: Path) -> None:
    section = AutoencoderConfig(name_or_path=str(tmp_path / "run" / "vae"))
    job = JobContext("job", frozenset({tmp_path / "run"}))
    assert section.is_yet_to_come(job) and list(section.check(job)) == []
    assert not section.is_yet_to_come(JOB)


@pytest.mark.parametrize(
    ("vae_dim", "widths", "latent_channels"),
    [
        (8, [8, 8, 8, 8], 4),
        (16, [8, 8, 16, 16], 4),
        (32, [8, 16, 32, 32], 4),
        (64, [16, 32, 64, 64], 8),
        (128, [32, 64, 128, 128], 16),
        (256, [64, 128, 256, 256], 16),
        (100, [24, 48, 96, 96], 12),
    ],
)
def test_a_width_becomes_arguments(
    vae_dim: int, widths: list[int], latent_channels: int
) -> None:
    arguments = sized(vae_dim)
    assert (
        arguments["block_out_channels"] == widths
        and arguments["latent_channels"] == latent_channels
    )
    assert AutoencoderConfig(config=arguments).latent_scale() == 8
    groups = arguments["norm_num_groups"]
    assert all(width % groups == 0 and width // groups >= 4 for width in widths)


def test_spade_is_as_the_folder_has_it_where_it_is_not_given(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "vae", _class_name="AutoencoderKL", _spade=True)
    uses = [
        AutoencoderConfig(name_or_path=str(folder), **keys).uses_spade()
        for keys in ({}, {"spade": False})
    ]
    assert (
        uses == [True, False]
        and not AutoencoderConfig().uses_spade()
        and AutoencoderConfig(spade=True).uses_spade()
    )


def test_an_autoencoder_without_norms_has_no_spade(tmp_path: Path) -> None:
    message = [
        "spade: AutoencoderTiny has no norms in its decoder that SPADE could modulate. Leave it out."
    ]
    folder = write_config(tmp_path / "vae", _class_name="AutoencoderTiny")
    assert (
        found(class_name="AutoencoderTiny", spade=True)
        == message
        == found(name_or_path=str(folder), spade=True)
    )
    assert found(class_name="AutoencoderTiny", spade=False) == []
