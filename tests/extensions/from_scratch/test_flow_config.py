"""The section: which combinations make sense, and what each role is trained with."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from extensions.from_scratch.flow_config import FLOW, TEXT_ENCODER, FlowTrainerConfig
from tests.extensions.from_scratch.flow_models import write_flow_model
from tests.findings import warnings
from toolkit.config import load_job
from toolkit.config.reading.process import JobContext
from toolkit.errors import ConfigErrors, DataErrors
from toolkit.extension import discover

Load = Callable[..., FlowTrainerConfig]


@pytest.fixture
def load(flow_job, make_pictures, write_job, tmp_path: Path) -> Load:
    folder = make_pictures(tmp_path / "data", "a", "b")

    def section(**changes: object) -> FlowTrainerConfig:
        config = load_job(
            write_job(flow_job(folder, **changes)), discover().find_config
        )
        found = config.processes[0].section
        assert isinstance(found, FlowTrainerConfig)
        return found

    return section


RANDOM_FROZEN = {"text_encoder": {"train": False}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"vae": ""}},
            "model.vae: required. Give the folder of an autoencoder",
        ),
        ({"model": {"vae": "no/such"}}, "model.vae: "),
        ({"model": {"prediction": "epsilon"}}, "model.prediction: "),
        (
            {"model": {"transformer": {"class_name": "FluxTransformer2DModel"}}},
            "model.transformer.class_name: ",
        ),
        (
            {"model": {"transformer": {"config": {"patch_size": "x"}}}},
            "model.transformer.config.patch_size: 'x' is not",
        ),
        (
            {"model": {"transformer": {"config": {"num_layers": 0}}}},
            "model.transformer.config.num_layers: 0 is out of",
        ),
        (
            {"model": {"text_encoder": {"config": {"num_hidden_layers": -1}}}},
            "model.text_encoder.config.num_hidden_layers: -1 is out of range",
        ),
        (
            {
                "model": {
                    "text_encoder": {
                        "config": {"max_position_embeddings": 16},
                        "max_tokens": 32,
                    }
                }
            },
            "model.text_encoder.max_tokens: 32 exceeds the 16 positions of the text encoder. Change one of them.",
        ),
        (
            {
                "model": {
                    "vae": "",
                    "new_vae": {"config": {"layers_per_block": 10**9}},
                },
                "autoencoder": {},
            },
            "model.new_vae.config.layers_per_block: 1000000000 is out of range",
        ),
        (
            {"model": RANDOM_FROZEN},
            "model.text_encoder.train: false, but its weights are random",
        ),
        (
            {"model": {"text_encoder": {"name_or_path": "./bert"}}},
            "model.text_encoder.name_or_path: './bert' is",
        ),
        (
            {"model": {"text_encoder": {"tokenizer": "."}}},
            "model.text_encoder.tokenizer: needs name_or_path.",
        ),
        (
            {
                "model": {
                    "text_encoder": {"name_or_path": ".", "config": {"hidden_size": 8}}
                }
            },
            "model.text_encoder.config: has no effect with 'name_or_path'",
        ),
        (
            {
                "model": {"text_encoder": {"train": False, "allow_random": True}},
                "optimizers": {"text_encoder": {}},
            },
            "optimizers.text_encoder: has no effect: 'model.text_encoder.train: false' freezes it",
        ),
        (
            {"optimizers": {"vae": {}}},
            "optimizers.vae: needs the section 'autoencoder'",
        ),
        (
            {"train": {"blank_prompt_preservation": True}},
            "train.blank_prompt_preservation: needs the model without its",
        ),
        (
            {"train": {"assistant": "someone/adapter"}},
            "train.assistant: needs an adapter beside which the file works, and this trains a model. Remove it.",
        ),
        (
            {"sample": {"prompts": ["a"], "lora": "someone/adapter"}},
            "sample.lora: needs an adapter beside which the file works",
        ),
        (
            {"sample": {"prompts": ["a"], "vae_path": "fix.safetensors"}},
            "sample.vae_path: is for models of the Qwen-Image family, and this model has an autoencoder of its own.",
        ),
        (
            {"train": {"gradient_checkpointing": "block_offload"}},
            "train.gradient_checkpointing: 'block_offload' is not supported",
        ),
        ({"train": {"parallel": "fsdp"}}, "train.parallel: 'fsdp' is not supported"),
        (
            {"train": {"min_timestep": 900, "max_timestep": 300}},
            "train.min_timestep: 900 is not below max_timestep 300",
        ),
        (
            {"train": {"full_bf16": True, "dtype": "fp32"}},
            "train.full_bf16: requires 'dtype: bf16'",
        ),
        (
            {"train": {"fused_backward_pass": True}},
            "train.fused_backward_pass: works with a single role",
        ),
        ({"name": "start"}, "name: 'start' is a folder of every run"),
        ({"stop_when": {"metric": "loss_recon", "below": 1}}, "stop_when.metric: "),
    ],
)
def test_what_makes_no_sense_is_an_error_at_its_key(
    load: Load, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(**changes)
    assert f"process[0].{message}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message", "remedies"),
    [
        (
            {"model": RANDOM_FROZEN},
            "so captions would be noise. Remove 'train', give 'name_or_path' a trained text encoder, or "
            "'allow_random: true'.",
            [
                {"model": {"text_encoder": {}}},
                {"model": {"text_encoder": {"train": False, "allow_random": True}}},
            ],
        ),
        (
            {"model": {"new_vae": {}, "vae": ""}},
            "has to be trained. Add the section 'autoencoder', or set 'vae'.",
            [{"model": {"new_vae": {}, "vae": ""}, "autoencoder": {}}, {}],
        ),
        (
            {"model": {"vae": ""}},
            "Give the folder of an autoencoder, such as a vae_trainer wrote, or 'new_vae'.",
            [{}, {"model": {"new_vae": {}, "vae": ""}, "autoencoder": {}}],
        ),
    ],
)
def test_what_the_answer_says_puts_it_right(
    load: Load, changes: dict, message: str, remedies: list[dict]
) -> None:
    with pytest.raises(ConfigErrors, match=re.escape(message)):
        load(**changes)
    for remedy in remedies:
        load(**remedy)


def test_the_folder_of_another_pipeline_is_refused_and_one_of_ours_taken(
    load: Load, tmp_path: Path, tiny_model: Path
) -> None:
    keys = {"transformer": None, "text_encoder": {}}
    with pytest.raises(ConfigErrors, match="Give a folder that a flow_trainer wrote"):
        load(model={"name_or_path": str(tiny_model), **keys})
    ours = write_flow_model(tmp_path / "ours")
    assert load(model={"name_or_path": str(ours), **keys}).model.name_or_path


def test_guidance_of_a_model_that_knows_no_empty_caption(
    load: Load, tmp_path: Path
) -> None:
    """Either way that the warning names ends it."""
    folder = str(tmp_path / "data")

    def warned(scale: float, **keys: object) -> bool:
        dataset = {"folder_path": folder, "resolution": 32, **keys}
        sample = {"samples": [{"prompt": "a"}], "guidance_scale": scale}
        found = warnings(load(sample=sample, datasets=[dataset]))
        message = "needs an unconditional model: set caption_dropout_rate (for example 0.1) or guidance_scale 1."
        return message in str(found)

    assert warned(4)
    assert not warned(1) and not warned(4, caption_dropout_rate=0.1)


def test_references_need_a_transformer_that_takes_them(
    load: Load, tmp_path: Path
) -> None:
    folder = str(tmp_path / "data")
    keys = {
        "datasets": [{"folder_path": folder, "control_path": folder, "resolution": 32}],
        "sample": {"samples": [{"prompt": "a", "ctrl_img": f"{folder}/a.png"}]},
        "validation": {"folder_path": folder, "control_path": folder},
    }
    refused = (
        "SD3Transformer2DModel does not support control images. Remove it, or train a QwenImageTransformer2DModel "
        "or QwenImage21Transformer2DModel (model.transformer.class_name)."
    )
    given = {
        "model": {
            "name_or_path": str(write_flow_model(tmp_path / "sd3")),
            "transformer": None,
        }
    }
    for changes in ({}, given):
        with pytest.raises(ConfigErrors) as caught:
            load(**keys, **changes)
        for key in (
            "datasets[0].control_path",
            "sample.samples[0].ctrl_img",
            "validation.control_path",
        ):
            assert f"process[0].{key}: {refused}" in str(caught.value)
    assert load(**keys, kind="QwenImageTransformer2DModel").plan(JobContext("job"))


@pytest.mark.parametrize("key", ["ctrl_img"])
def test_an_image_of_a_sample_that_cannot_be_used_is_told_at_once(
    load: Load, tmp_path: Path, key: str
) -> None:
    Image.new("RGB", (2, 900)).save(tmp_path / "thin.png")
    item = {
        "prompt": "a",
        "ctrl_img": str(tmp_path / "data" / "a.png"),
        key: str(tmp_path / "thin.png"),
    }
    section = load(kind="QwenImageTransformer2DModel", sample={"samples": [item]})
    with pytest.raises(DataErrors, match=rf"sample.samples\[0\].{key}: .*thin.png"):
        section.plan(JobContext("job"))


def test_what_contradicts_the_folder_of_an_earlier_run_is_told(
    load: Load, tmp_path: Path
) -> None:
    model = str(write_flow_model(tmp_path / "model", prediction="v"))
    with pytest.raises(ConfigErrors) as caught:
        load(model={"name_or_path": model, "prediction": "flow"})
    said = str(caught.value)
    assert (
        "model.prediction: 'flow', but the model in" in said
        and "predicts 'v'. Leave it out." in said
    )
    assert "model.transformer: has no effect with 'model.name_or_path'" in said
    assert "model.text_encoder.config: has no effect with 'model.name_or_path'" in said


def test_the_roles_and_their_optimizers(load: Load) -> None:
    section = load(
        train={
            "lr": 1e-3,
            "optimizer": "lion",
            "optimizer_params": {"betas": [0.9, 0.95]},
        },
        optimizers={"flow": {"lr": 5e-7}},
    )
    assert section.roles() == (FLOW, TEXT_ENCODER)
    flow, text = (section.role_optimizer(role) for role in section.roles())
    assert (flow.optimizer, flow.lr, text.lr) == ("lion", 5e-7, pytest.approx(5e-8))
    assert flow.optimizer_params == text.optimizer_params == {"betas": [0.9, 0.95]}
    other = load(
        optimizers={"text_encoder": {"optimizer": "adamw", "lr": 1e-5}},
        train={"optimizer": "lion"},
    )
    own = other.role_optimizer(TEXT_ENCODER)
    assert (own.optimizer, own.lr, own.optimizer_params) == ("adamw", 1e-5, {})


@pytest.mark.parametrize(
    ("text", "optimizers", "trained"),
    [
        ({}, {}, True),
        ({"train": False, "allow_random": True}, {}, False),
        ({"name_or_path": "."}, {}, False),
        ({"name_or_path": "."}, {"text_encoder": {}}, True),
        ({"name_or_path": ".", "train": True}, {}, True),
    ],
)
def test_when_the_text_encoder_is_trained(
    load: Load, text: dict, optimizers: dict, trained: bool
) -> None:
    section = load(model={"text_encoder": text}, optimizers=optimizers)
    assert section.trains_text() is trained
    assert ("grad_norm/text_encoder" in section.logged_numbers()) is trained


def test_what_moves_nothing_is_told(load: Load) -> None:
    def told(**changes: object) -> dict[tuple, str]:
        return {found.key: found.message for found in warnings(load(**changes))}

    assert "barely learns" in told(train={"lr": 5e-7})["train", "lr"]
    assert (
        "barely learns"
        in told(optimizers={"flow": {"lr": 5e-7}})["optimizers", FLOW, "lr"]
    )
    assert not told(train={"lr": 1e-4})
    sample = {"width": 64, "height": 64, "samples": [{"prompt": "a"}]}
    assert "caption_dropout_rate" in told(sample=sample)["sample", "guidance_scale"]
    assert not told(sample={**sample, "guidance_scale": 1})


def test_samples_have_the_size_of_the_images_unless_given(load: Load) -> None:
    sizes = [
        [
            (item.width, item.height)
            for item in load(
                sample={**given, "samples": [{"prompt": "a"}]}
            ).sample_pictures()
        ]
        for given in ({}, {"width": 96}, {"width": 96, "height": 64})
    ]
    assert sizes == [[(32, 32)], [(96, 32)], [(96, 64)]]


def test_equal_captions_are_warned_of(load: Load, tmp_path: Path) -> None:
    notes = load().plan(JobContext("job")).notes
    assert not any("prompts will have no effect" in note for note in notes)
    for name in ("a", "b"):
        (tmp_path / "data" / f"{name}.txt").write_text("a thing")
    notes = load().plan(JobContext("job")).notes
    assert (
        "warning: all captions are 'a thing': prompts will have no effect on what is drawn"
        in notes
    )
