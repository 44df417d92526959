"""Which keys of a job may change between two starts of a run."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from toolkit.config import load_job
from toolkit.config.reading.removed import removed
from toolkit.config.sections.dataset import ColumnsConfig
from toolkit.extension import discover
from toolkit.train.config_diff import ConfigChange
from toolkit.train.config_diff import diff_configs as changes_of

KINDS = {
    "harmless": """
        save.dtype save.save_every save.max_step_saves_to_keep save.max_states_to_keep save.also
        sample.sample_every sample.sample_start_step sample.format sample.samples[0].prompt sample.seed sample.prompts
        logging.log_every datasets[0].webdataset.token datasets[0].webdataset.samples
        validation stop_when resume device card datasets[0].num_workers
        datasets[0].cache train.skip_first_sample train.force_first_sample
        train.disable_sampling train.gradient_checkpointing train.compile.enabled train.compile.backend
        train.compile.mode train.compile.dynamic train.compile.fullgraph train.compile.cache_size_limit train.parallel
        train.ddp_timeout model.low_vram model.keep_quantized memory_check model.modulation_table
        model.blocks_to_swap network.pretrained_lora_path
    """,
    "impossible": """
        network.type network.linear network.network_kwargs.only_if_contains network.network_kwargs.ignore_if_contains
        model.quantize model.qtype model.quantize_te model.qtype_te model.accuracy_recovery_adapter
        model.model_kwargs.match_target_res model.model_kwargs.control_resolution
    """,
    "place": "model.name_or_path model.revision",
    "changes the result": """
        type name trigger_word training_seed network.linear_alpha network.dropout train.lr
        train.optimizer train.optimizer_params.weight_decay train.batch_size train.gradient_accumulation
        train.lr_scheduler train.lr_warmup_steps train.lr_scheduler_params.num_warmup_steps train.max_grad_norm
        network.loraplus_lr_ratio network.scale_weight_norms train.timestep_type train.loss_type
        train.dtype train.ema_config.use_ema train.ema_config.ema_decay datasets[0].folder_path datasets[0].resolution
        datasets[0].num_repeats datasets[0].caption_dropout_rate datasets[0].caption_ext datasets[0].control_path
        datasets[0].background datasets[0].shuffle_tokens
    """,
}


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict:
    """The dump of a job that says something in every part."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "data").mkdir()
    (folder / "job.json").write_text(
        f"""{{"job": "extension", "config": {{"name": "job", "process": [{{"type": "sd_trainer",
        "network": {{"type": "lora", "network_kwargs": {{"only_if_contains": ["attn"]}}}},
        "datasets": [{{"folder_path": "{folder}/data"}}],
        "train": {{"optimizer_params": {{"weight_decay": 0.1}}, "lr_scheduler_params": {{"num_warmup_steps": 3}}}},
        "sample": {{"prompts": ["a"]}},
        "model": {{"name_or_path": "{tiny_model}", "model_kwargs": {{"match_target_res": true}}}}}}]}}}}"""
    )
    config = load_job(folder / "job.json", discover().find_config)
    return config.processes[0].section.model_dump(
        mode="json", exclude={"training_folder"}
    )


def diff_configs(*values: dict, **given: dict) -> list[ConfigChange]:
    return changes_of(SdTrainerConfig, *values, **given)


def keys_of(value, path: str = "") -> list[str]:
    """Dotted paths of all leaves, written out without the module under test."""
    if isinstance(value, dict) and value:
        return [
            key
            for name, child in value.items()
            for key in keys_of(child, f"{path}.{name}" if path else name)
        ]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [
            key
            for index, child in enumerate(value)
            for key in keys_of(child, f"{path}[{index}]")
        ]
    return [path]


def replaced(section: dict, key: str, value) -> dict:
    """The section with another value at a dotted path, whether it was there or not."""
    new = copy.deepcopy(section)
    place, *rest = key.replace("[", ".[").split(".")
    target = new
    for part in rest:
        index = int(place[1:-1]) if place.startswith("[") else place
        if isinstance(target, dict):
            target = target.setdefault(index, [{}] if part.startswith("[") else {})
        else:
            target = target[index]
        place = part
    target[place] = value
    return new


def kind_of(section: dict, key: str) -> str:
    [change] = diff_configs(section, replaced(section, key, "other"))
    assert change.key == key
    return change.kind


@pytest.mark.parametrize(
    ("key", "kind"),
    [(key, kind) for kind, keys in KINDS.items() for key in keys.split()],
)
def test_what_a_change_of_a_key_is(section: dict, key: str, kind: str) -> None:
    assert kind_of(section, key) == kind


def test_every_key_of_a_job_is_seen_when_it_changes_and_harmless_only_when_meant(
    section: dict,
) -> None:
    keys = keys_of(section)
    assert len(keys) > 60
    harmless = {key for key in keys if kind_of(section, key) == "harmless"}
    # Images are compared by what they hold, and their repeats with them.
    where = {
        "datasets[0].url",
    }
    where |= {f"datasets[0].columns.{role}" for role in ColumnsConfig.model_fields}
    meant = {
        "train.steps",
        "train.epochs",
        "callbacks",  # they look on
        *where,
        *KINDS["harmless"].split(),
    }
    parts = ("save.", "sample.", "logging.")
    assert {key for key in harmless if not key.startswith(parts)} <= meant
    assert {key for key in keys if key.startswith(parts)} <= harmless


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lr_groups", []),
        ("optimizers.vae.lr_groups", []),
        ("train.memory_account", False),
        ("train.noise_levels_per_sample", 1),
        ("train.preference", None),
        ("train.ema_config.power_averages", True),
        ("train.ema_config.use_num_updates", True),
        ("train.lr_scheduler_power", 1.0),
        ("train.reg_weight", 1.0),
        ("datasets[0].from_base", None),
        ("datasets[0].path_map", {"a": "b"}),
        ("first_sample", {"samples": []}),
    ],
)
def test_a_removed_key_that_computed_nothing_is_no_change(
    section: dict, key: str, value: object
) -> None:
    assert diff_configs(replaced(section, key, value), section) == []


@pytest.mark.parametrize(
    ("key", "value", "row"),
    [
        ("train.noise_levels_per_sample", 4, "train.noise_levels_per_sample"),
        ("train.preference", {"beta": 350.0, "share": 1.0}, "train.preference"),
        ("train.reg_weight", 0.0, "train.reg_weight"),
        ("train.ema_config.use_num_updates", False, "train.ema_config.use_num_updates"),
        ("datasets[0].from_base", {"prompts": "a.txt"}, "datasets[].from_base"),
    ],
)
def test_a_removed_key_that_computed_something_is_one_change_with_the_remedy(
    section: dict, key: str, value: object, row: str
) -> None:
    (change,) = diff_configs(replaced(section, key, value), section)
    assert change.kind == "changes the result"
    assert str(change) == f"{row}: {removed('keys')[row]}"


def test_equal_jobs_have_no_change_and_order_of_keys_is_none(section: dict) -> None:
    assert diff_configs(section, copy.deepcopy(section)) == []
    assert diff_configs(section, dict(reversed(section.items()))) == []
    assert diff_configs({"a": (1, 2)}, {"a": [1, 2]}) == []


def test_a_change_names_both_values(section: dict) -> None:
    [change] = diff_configs(section, replaced(section, "train.lr", 0.5))
    assert str(change) == f"train.lr: {section['train']['lr']!r} -> 0.5"
    assert (change.old, change.new) == (section["train"]["lr"], 0.5)


def test_a_base_lora_is_known_by_what_is_in_the_file(section: dict) -> None:
    given = {"path": "a.safetensors", "multiplier": 1.0, "sha256": "0" * 64}

    def kinds(*loras: dict) -> list[str]:
        old, new = (
            replaced(section, "model.base_loras", entries)
            for entries in ([given], list(loras))
        )
        return sorted({change.kind for change in diff_configs(old, new)})

    assert kinds(given) == []
    assert kinds({**given, "path": "b.safetensors"}) == ["harmless"]
    assert kinds({**given, "multiplier": 0.5}) == ["impossible"]
    assert kinds({**given, "sha256": "1" * 64}) == ["impossible"]
    assert "impossible" in kinds()
    assert "impossible" in kinds(given, given)


def test_another_dataset_and_a_dropped_one_are_changes_of_the_result(
    section: dict,
) -> None:
    more = {**section, "datasets": [*section["datasets"], section["datasets"][0]]}
    for old, new in ((section, more), (more, section)):
        kinds = {change.key: change.kind for change in diff_configs(old, new)}
        assert kinds["datasets[1].folder_path"] == "changes the result"


def test_samples_that_are_added_or_dropped_are_harmless(section: dict) -> None:
    without = {**section, "sample": None}
    for old, new in ((section, without), (without, section)):
        found = diff_configs(old, new)
        assert found and {change.kind for change in found} == {"harmless"}


@pytest.mark.parametrize("key", ["train.steps", "train.epochs"])
@pytest.mark.parametrize(
    ("train", "depends"),
    [
        ({"lr_scheduler": "constant"}, False),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 100.0}, False),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 0.1}, True),
        (
            {
                "lr_scheduler": "constant",
                "lr_scheduler_params": {"num_warmup_steps": 0.1},
            },
            True,
        ),
        (
            {
                "lr_scheduler": "constant",
                "lr_warmup_steps": 0.1,
                "lr_scheduler_params": {"num_warmup_steps": 5},
            },
            False,
        ),
        ({"lr_scheduler": "linear"}, True),
        ({"lr_scheduler": "CosineAnnealingLR"}, True),
        (
            {"lr_scheduler": "CosineAnnealingLR", "lr_scheduler_params": {"T_max": 9}},
            False,
        ),
        (
            {
                "lr_scheduler": "CosineAnnealingLR",
                "lr_scheduler_params": {"T_max": 9},
                "lr_warmup_steps": 0.1,
            },
            True,
        ),
        ({"lr_scheduler": "cosine"}, True),
    ],
)
def test_the_length_is_harmless_only_where_the_schedule_does_not_depend_on_it(
    section: dict, key: str, train: dict, depends: bool
) -> None:
    base = {
        **section,
        "train": {**section["train"], "lr_scheduler_params": {}, **train},
    }
    assert kind_of(base, key) == ("changes the result" if depends else "harmless")


def test_every_schedule_has_been_thought_of() -> None:
    from toolkit.config.sections.train import SCHEDULES_WITHOUT_LENGTH
    from toolkit.optim.schedules import SCHEDULES, build_schedule

    needs = {
        "piecewise_constant": {"step_rules": "1:2,0.5"},
        "step": {"step_size": 2},
        "exponential": {"gamma": 0.5},
        "warmup_stable_decay": {"num_decay_steps": 2},
    }
    for name in SCHEDULES:
        short, long = (
            build_schedule(name, steps, 3, needs.get(name, {})) for steps in (10, 20)
        )
        same = all(short(step) == long(step) for step in range(10))
        assert same is (name in SCHEDULES_WITHOUT_LENGTH), name


def test_a_key_the_state_does_not_know_is_a_change_only_where_the_job_says_it() -> None:
    old, new = (
        {"train": {"lr": 1}},
        {"train": {"lr": 1, "clever": False, "brave": True}},
    )
    assert diff_configs(old, new, given={"train": {"lr": 1}}) == []
    [change] = diff_configs(old, new, given={"train": {"brave": True}})
    assert (change.key, change.old, change.new) == ("train.brave", None, True)
