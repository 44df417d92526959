"""The table of keys, and flags taken out of a command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest

from extensions.compat.fluxflow_keys import (
    SECTIONS,
    STEPS,
    Kind,
    guide_flags,
    keys,
    names_in,
    split_flags,
    tables,
)
from tests.conftest import ROOT
from toolkit.errors import UserError

OWN = [
    "-r",
    "--recover",
    "-n",
    "--name",
    "--dry-run",
    "--json",
    "--config",
    "--restart",
    "--log",
]

OF_THE_GUIDE = """
data_path captions_file fixed_prompt_prefix use_webdataset webdataset_token webdataset_url webdataset_image_key
webdataset_label_key webdataset_caption_key use_tt2m tt2m_token model_checkpoint vae_dim text_embedding_dim
feature_maps_dim feature_maps_dim_disc pretrained_bert_model n_epochs batch_size workers lr lr_min preserve_lr
optim_sched_config training_steps use_fp16 initial_clipping_norm output_path train_vae train_spade gan_training
train_diff train_diff_full use_lpips lambda_adv kl_beta kl_warmup_steps img_size checkpoint_save_interval
samples_per_checkpoint sample_captions log_interval tokenizer_name generate_diagrams
"""


def test_every_flag_of_the_guide_is_known() -> None:
    assert set(OF_THE_GUIDE.split()) <= guide_flags().keys()


def test_every_key_has_a_place_and_every_place_keys() -> None:
    for name, key in keys().items():
        assert key.places and set(key.places) <= {*SECTIONS, STEPS}, name
        assert key.kind in get_args(Kind), name
    columns = {column for row in tables()["keys"].values() for column in row}
    assert columns == {"kind", "in", "least", "most", "left_out", "here"}
    assert all(names_in(place) for place in (*SECTIONS, STEPS))


def test_defaults_are_the_guides() -> None:
    guides = {
        "batch_size": 2, "feature_maps_dim": 128, "feature_maps_dim_disc": 8, "initial_clipping_norm": 1.0, "lr": 5e-7,
        "lr_min": 0.1, "n_epochs": 1, "text_embedding_dim": 1024, "training_steps": 1, "vae_dim": 128, "workers": 1,
        "webdataset_caption_key": "prompt", "webdataset_label_key": "json",
    }  # fmt: skip
    assert {name: keys()[name].default for name in guides} == guides


def page_rows() -> Iterator[str]:
    """The rows of the table in docs/coming_from_fluxflow.md."""
    for name, key in keys().items():
        default = "" if key.default is None else str(key.default)
        if key.kind == "switch":
            default = default.lower()
        yield f"| `{name}` | {default} | {key.here} |"


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs" / "coming_from_fluxflow.md").read_text(encoding="utf-8")
    assert [row for row in page_rows() if row not in page] == []


def test_flags_and_other_arguments_are_told_apart() -> None:
    argv = [
        "a.yaml",
        "--lr",
        "1e-5",
        "--dry-run",
        "--train_vae",
        "--sample_captions",
        "x y",
        "z",
        "--json",
        "-n",
        "b",
    ]
    flags, rest = split_flags(argv, OWN)
    assert flags == {"lr": ["1e-5"], "train_vae": [], "sample_captions": ["x y", "z"]}
    assert rest == ["a.yaml", "--dry-run", "--json", "-n", "b"]


def test_a_switch_takes_true_and_false_and_leaves_a_file_alone() -> None:
    assert split_flags(["--use_lpips", "False", "c.yaml"], OWN) == (
        {"use_lpips": ["False"]},
        ["c.yaml"],
    )
    assert split_flags(["--train_vae", "c.yaml"], OWN) == (
        {"train_vae": []},
        ["c.yaml"],
    )
    assert split_flags(["--lr=1e-5"], OWN) == ({"lr": ["1e-5"]}, [])


def test_the_programs_own_options_may_be_shortened_as_ever() -> None:
    assert split_flags(["--dry", "--rest", "--", "--lr"], OWN) == (
        {},
        ["--dry", "--rest", "--", "--lr"],
    )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--dat_path", "x"], "--dat_path: unknown flag. Did you mean '--data_path'?"),
        (["--dryrun"], "--dryrun: unknown flag. Did you mean '--dry-run'?"),
        (["--lr", "1", "--lr", "2"], "--lr: is given twice. Remove one of them."),
        (["--lr"], "--lr: needs a value."),
        (["--data_path", "--train_vae"], "--data_path: needs a value."),
        (["--xyzzy"], "--xyzzy: unknown flag. run.py --help lists"),
    ],
)
def test_mistakes_name_the_flag_and_the_nearest(argv: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        split_flags(argv, OWN)
    assert str(caught.value).startswith(expected)
