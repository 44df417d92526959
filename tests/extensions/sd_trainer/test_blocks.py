"""What the keys of memory and compiling cannot be combined with, in every shape they
are written in."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from tests.parts import needs_foreign_names
from toolkit.config import load_job
from toolkit.errors import ConfigErrors


@pytest.fixture
def section(write_job, trainer, make_pictures, tmp_path: Path):
    """The section of a job with these keys in `train` and `model`."""
    photos = make_pictures(tmp_path / "photos", "a")

    def section(
        train: dict | None = None, model: dict | None = None, **changes
    ) -> SdTrainerConfig:
        plain = trainer(photos, train=train, **changes)
        plain["model"].update(model or {})
        job = load_job(write_job(plain), lambda name: SdTrainerConfig)
        return job.processes[0].section

    return section


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "level"),
    [
        ({}, "auto"),
        ({"gradient_checkpointing": True}, "full"),
        ({"gradient_checkpointing": "TRUE"}, "full"),
        ({"gradient_checkpointing": False}, "none"),
        ({"gradient_checkpointing": "Cheap"}, "cheap"),
        ({"gradient_checkpointing": "keep_attention"}, "keep_attention"),
        ({"gradient_checkpointing_cpu_offload": True}, "full_offload"),
        (
            {
                "gradient_checkpointing": True,
                "gradient_checkpointing_cpu_offload": True,
            },
            "full_offload",
        ),
        (
            {
                "gradient_checkpointing": True,
                "gradient_checkpointing_cpu_offload": False,
            },
            "full",
        ),
        ({"gradient_checkpointing_cpu_offload": False}, "auto"),
        (
            {
                "gradient_checkpointing": "full_offload",
                "gradient_checkpointing_cpu_offload": True,
            },
            "full_offload",
        ),
    ],
)
def test_levels_as_people_write_them(section, keys: dict, level: str) -> None:
    assert section(keys).train.checkpointing_level() == level


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"gradient_checkpointing": "most"},
            "'most' is unknown. Use 'auto' or 'none' or",
        ),
        (
            {
                "gradient_checkpointing": False,
                "gradient_checkpointing_cpu_offload": True,
            },
            "mean the same",
        ),
        ({"gradient_checkpointing_cpu_offload": 3}, "write true or false."),
        (
            {"compile": {"mode": "max-autotun"}},
            "'max-autotun' is unknown. Did you mean 'max-autotune'?",
        ),
        ({"compile": {"cache_size_limit": -1}}, "-1 is out of range: must be >= 0."),
        ({"compile": {"modes": "default"}}, "unknown key. Did you mean 'mode'?"),
    ],
)
def test_what_is_wrong_is_told(section, keys: dict, message: str) -> None:
    with pytest.raises(ConfigErrors, match="process") as caught:
        section(keys)
    assert message in str(caught.value)


@needs_foreign_names
@pytest.mark.parametrize(
    ("train", "model"),
    [
        (
            {
                "compile": {
                    "enabled": True,
                    "backend": "aot_eager",
                    "dynamic": False,
                    "cache_size_limit": 9,
                }
            },
            {},
        ),
        (
            {
                "compile": True,
                "compile_backend": "aot_eager",
                "compile_dynamic": "false",
                "compile_cache_size_limit": 9,
            },
            {},
        ),
        (
            {"compile_backend": "aot_eager"},
            {"compile": True, "compile_dynamic": False, "cache_size_limit": 9},
        ),
        (
            {"compile_backend": "aot_eager"},
            {"block_compile": True, "compile_dynamic": False, "cache_size_limit": 9},
        ),
        (
            {"compile": {"backend": "aot_eager"}},
            {
                "compile": False,
                "block_compile": True,
                "compile_dynamic": False,
                "cache_size_limit": 9,
            },
        ),
    ],
)
def test_compiling_as_people_write_it(section, train: dict, model: dict) -> None:
    found = section(train, model).train.compile
    given = {"backend": "aot_eager", "dynamic": False, "cache_size_limit": 9}
    assert found.enabled is True and found.model_dump(include=set(given)) == given


@needs_foreign_names
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
