"""What the keys of memory and compiling cannot be combined with, in every shape they are written in."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from tests.findings import warnings
from toolkit.config import load_job
from toolkit.config.process import JobContext
from toolkit.errors import ConfigErrors

JOB = JobContext("job")


@pytest.fixture
def section(write_job, trainer, make_pictures, tmp_path: Path):
    """The section of a job with these keys in `train` and `model`."""
    photos = make_pictures(tmp_path / "photos", "a")

    def section(train: dict | None = None, model: dict | None = None, **changes) -> SdTrainerConfig:
        plain = trainer(photos, train=train, **changes)
        plain["model"].update(model or {})
        job = load_job(write_job(plain), lambda name: SdTrainerConfig)
        return job.processes[0].section

    return section


def notes(section: SdTrainerConfig) -> dict[str, str]:
    return {".".join(map(str, finding.key)): finding.message for finding in warnings(section)}


@pytest.mark.parametrize(
    ("keys", "level"),
    [
        ({}, "auto"),
        ({"gradient_checkpointing": True}, "full"),
        ({"gradient_checkpointing": "TRUE"}, "full"),
        ({"gradient_checkpointing": False}, "none"),
        ({"gradient_checkpointing": "Cheap"}, "cheap"),
        ({"gradient_checkpointing": "keep_attention"}, "keep_attention"),
        ({"gradient_checkpointing_offload": True}, "full_offload"),
        ({"gradient_checkpointing_cpu_offload": True}, "full_offload"),
        ({"gradient_checkpointing": True, "gradient_checkpointing_cpu_offload": True}, "full_offload"),
        ({"gradient_checkpointing": True, "gradient_checkpointing_cpu_offload": False}, "full"),
        ({"gradient_checkpointing_offload": False}, "auto"),
        ({"gradient_checkpointing": "full_offload", "gradient_checkpointing_offload": True}, "full_offload"),
    ],
)
def test_levels_as_people_write_them(section, keys: dict, level: str) -> None:
    assert section(keys).train.checkpointing_level() == level


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gradient_checkpointing": "most"}, "'most' is not one of true, false, 'auto' or 'none' or"),
        ({"gradient_checkpointing": False, "gradient_checkpointing_offload": True}, "mean the same"),
        ({"gradient_checkpointing_offload": 3}, "write true or false."),
        ({"compile": {"mode": "max-autotun"}}, "'max-autotun' is unknown. Did you mean 'max-autotune'?"),
        ({"compile": {"cache_size_limit": -1}}, "-1 is out of range: must be >= 0."),
        ({"compile": {"modes": "default"}}, "unknown key. Did you mean 'mode'?"),
    ],
)
def test_what_is_wrong_is_told(section, keys: dict, message: str) -> None:
    with pytest.raises(ConfigErrors, match="process") as caught:
        section(keys)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("train", "model"),
    [
        ({"compile": {"enabled": True, "backend": "aot_eager", "dynamic": False, "cache_size_limit": 9}}, {}),
        (
            {
                "compile": True,
                "compile_backend": "aot_eager",
                "compile_dynamic": "false",
                "compile_cache_size_limit": 9,
            },
            {},
        ),
        ({"compile_backend": "aot_eager"}, {"compile": True, "compile_dynamic": False, "cache_size_limit": 9}),
        ({"compile_backend": "aot_eager"}, {"block_compile": True, "compile_dynamic": False, "cache_size_limit": 9}),
        (
            {"compile": {"backend": "aot_eager"}},
            {"compile": False, "block_compile": True, "compile_dynamic": False, "cache_size_limit": 9},
        ),
    ],
)
def test_compiling_as_people_write_it(section, train: dict, model: dict) -> None:
    found = section(train, model).train.compile
    given = {"backend": "aot_eager", "dynamic": False, "cache_size_limit": 9}
    assert found.enabled is True and found.model_dump(include=set(given)) == given


@pytest.mark.parametrize(
    ("train", "model", "enabled"),
    [
        ({}, {"compile": False}, False),
        ({}, {"block_compile": False}, False),
        ({"compile": False}, {}, False),
        ({"compile": "auto"}, {}, "auto"),
        ({"compile": {"mode": "max-autotune"}}, {}, "auto"),
        ({}, {"compile": "", "cache_size_limit": ""}, "auto"),
        ({}, {}, "auto"),
    ],
)
def test_compiling_is_left_to_the_program_unless_it_is_switched_off(
    section, train: dict, model: dict, enabled: bool | str
) -> None:
    assert section(train, model).train.compile.enabled == enabled


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"blocks_to_swap": 2}, {}, "2 is more than the model allows: it has 2 blocks"),
        ({"blocks_to_swap": 1}, {"network": {"type": "full"}}, "only frozen weights can be swapped"),
    ],
)
def test_swapping_that_is_not_possible(section, model: dict, changes: dict, message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        section({}, model, **changes)
    assert f"model.blocks_to_swap: {message}" in str(caught.value)


def test_the_published_model_has_sixty_blocks(section) -> None:
    hub = {"name_or_path": "Qwen/Qwen-Image-Edit-2509"}
    assert section({}, {**hub, "blocks_to_swap": 59}).model.blocks_to_swap == 59
    with pytest.raises(ConfigErrors, match=r"blocks_to_swap: 60 is more than the model allows: it has 60 blocks"):
        section({}, {**hub, "blocks_to_swap": 60})


def test_what_has_no_effect_is_a_note(section) -> None:
    found = notes(section({"compile": {"enabled": False, "mode": "max-autotune"}}, {"blocks_to_swap": 1}))
    assert found["train.compile.mode"] == "has no effect with 'enabled: false'."
    assert found["model.blocks_to_swap"].startswith("1 saves no memory")
    found = notes(section({"compile": {"enabled": True, "backend": "eager", "mode": "max-autotune"}}))
    assert found["train.compile.mode"] == "has no effect: backend 'eager' has no modes."
    assert not [key for key in notes(section({"compile": True})) if key.startswith("train.compile")]


@pytest.mark.parametrize("dropout", ["dropout", "rank_dropout", "module_dropout"])
@pytest.mark.parametrize("level", ["auto", "cheap", "full"])
def test_a_compiler_that_draws_dropout_anew_is_refused(section, dropout: str, level: str) -> None:
    keys = {"compile": {"enabled": True, "backend": "eager"}, "gradient_checkpointing": level}
    with pytest.raises(ConfigErrors, match=r"train\.compile\.backend: 'eager' samples dropout again"):
        section(keys, network={dropout: 0.1})
    section(keys)
    section({**keys, "gradient_checkpointing": "none"}, network={dropout: 0.1})
    section({**keys, "compile": {"enabled": True, "backend": "aot_eager"}}, network={dropout: 0.1})
    section({**keys, "compile": {"enabled": False, "backend": "eager"}}, network={dropout: 0.1})
