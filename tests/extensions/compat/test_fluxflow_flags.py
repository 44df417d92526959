"""Flags as nodes in their places of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions.compat.fluxflow import GUIDE
from extensions.compat.fluxflow_flags import with_flags
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.config.reading.yaml_reader import read_yaml
from toolkit.errors import ConfigErrors

FILE = """
data: {data_path: a}
training:
  batch_size: 4
  pipeline:
    defaults: {lr: 1e-3}
    steps:
      - {name: one, train_vae: true, lr: 1e-4}
"""


@pytest.fixture
def diagnostics() -> Diagnostics:
    return Diagnostics("c.yaml")


def put(diagnostics: Diagnostics, text: str | None, **flags: list[str]) -> ConfigNode:
    root = with_flags(
        read_yaml(text, diagnostics) if text else None, flags, diagnostics
    )
    diagnostics.raise_errors()
    return root


def test_flags_alone_are_a_file(diagnostics: Diagnostics) -> None:
    root = put(
        diagnostics, None,
        data_path=["x"], train_vae=[], lr=["1e-5"], vae_dim=["64"], sample_captions=["a b", "c"], use_lpips=["false"],
    )  # fmt: skip
    assert root.data() == {
        "training": {
            "train_vae": True,
            "lr": 1e-5,
            "sample_captions": ["a b", "c"],
            "use_lpips": False,
        },
        "data": {"data_path": "x"},
        "model": {"vae_dim": 64},
    }


def test_a_flag_replaces_its_key_wherever_the_file_has_it_and_says_so_once(
    diagnostics: Diagnostics,
) -> None:
    root = put(diagnostics, FILE, lr=["1e-6"])
    assert root.data()["training"] == {
        "batch_size": 4,
        "pipeline": {"defaults": {}, "steps": [{"name": "one", "train_vae": True}]},
        "lr": 1e-6,
    }
    where = "training.pipeline.defaults.lr and training.pipeline.steps[0].lr"
    assert diagnostics.warnings == (
        f"command line: --lr: replaces {where} of the file.",
    )


def test_a_flag_that_the_file_lacks_is_added_in_silence(
    diagnostics: Diagnostics,
) -> None:
    assert put(diagnostics, FILE, vae_dim=["32"]).data()["model"] == {"vae_dim": 32}
    assert not diagnostics.warnings


@pytest.mark.parametrize(
    "flag", ["train_vae", "gan_training", "train_diff_full", "freeze_vae"]
)
def test_what_is_trained_is_said_by_the_steps_of_a_pipeline(
    diagnostics: Diagnostics, flag: str
) -> None:
    with pytest.raises(
        ConfigErrors,
        match=f"command line: --{flag}: cannot be combined with a pipeline",
    ):
        put(diagnostics, FILE, **{flag: []})


def test_training_steps_is_no_switch(diagnostics: Diagnostics) -> None:
    assert (
        put(diagnostics, FILE, training_steps=["4"]).data()["training"][
            "training_steps"
        ]
        == 4
    )


def test_a_wrong_value_names_the_flag(diagnostics: Diagnostics) -> None:
    root = put(diagnostics, None, data_path=["x"], train_vae=["yes"], lr=["fast"])
    with pytest.raises(ConfigErrors) as caught:
        GUIDE.as_job(root, Path("."), None, diagnostics)
        diagnostics.raise_errors()
    assert str(caught.value).splitlines() == [
        "command line: --lr: 'fast' is not a number.",
        "command line: --train_vae: 'yes' is neither true nor false. Write true or false.",
    ]
