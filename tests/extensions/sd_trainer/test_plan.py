"""What an `sd_trainer` process would do, by arithmetic alone."""

from __future__ import annotations

from collections import namedtuple
from contextlib import nullcontext
from math import prod
from pathlib import Path

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.plan import check_disk_space
from toolkit.config import JobContext, load_job
from toolkit.data.run_plan import RunPlan
from toolkit.errors import UserError


@pytest.fixture
def plan(write_job, trainer, make_pictures, tmp_path: Path):
    """The plan of a job on 5 images of 3 repeats and 2 of 4, of two sizes of bucket."""
    many = make_pictures(tmp_path / "3_many", "a", "b", "c", "d", "e")
    few = make_pictures(tmp_path / "4_few", "f", "g", size=(64, 128))

    def make(**changes) -> RunPlan:
        section = trainer(many, few, **changes)
        entry = load_job(write_job(section), lambda uid: SdTrainerConfig).processes[0]
        return entry.section.plan(JobContext("job"))

    return make


def test_repeats_batches_and_epochs_are_counted(plan) -> None:
    """15 + 8 uses; in batches of 4: ceil(15 / 4) + ceil(8 / 4) = 6; 3 epochs in windows of 4: ceil(18 / 4) = 5."""
    found = plan(train={"steps": 0, "epochs": 3, "batch_size": 4, "gradient_accumulation": 4})
    assert (found.samples_per_epoch, found.micro_batches_per_epoch, found.optimizer_steps) == (23, 6, 5)
    assert (found.accumulation, found.requested_epochs) == (4, 3)


def test_a_schedule_that_does_not_fit_is_told_once_the_steps_are_known(plan) -> None:
    """Of epochs only the plan knows how many steps they are: here 5."""
    train = {"steps": 0, "epochs": 3, "batch_size": 4, "gradient_accumulation": 4, "lr_warmup_steps": 3}
    schedule = {"lr_scheduler": "warmup_stable_decay", "lr_scheduler_params": {"num_decay_steps": 3}}
    expected = "lr: a warm-up of 3 and a fall of 3 optimizer steps do not fit into 5: the rate falls in the 2 after the"
    assert expected in plan(train=train | schedule).render()
    assert "lr: " not in plan(train=train | {"lr_scheduler": "warmup_stable_decay"}).render()


def test_each_size_is_one_more_sample_per_image(plan, tmp_path: Path) -> None:
    datasets = [{"folder_path": str(tmp_path / "3_many"), "resolution": [64, 96, 64]}]
    assert plan(datasets=datasets).samples_per_epoch == 2 * 15


def test_the_words_tell_the_size_of_what_is_trained_and_written(plan) -> None:
    words = plan(network={"type": "lora", "linear": 4, "linear_alpha": 4}).render()
    # In each of 2 blocks 8 layers of 64 x 64, 2 of 64 x 384, 4 of 64 x 256: rank * (in + out) weights each, of 4 bytes.
    weights = 2 * 4 * (8 * (64 + 64) + 2 * (64 + 6 * 64) + 4 * (64 + 256))
    assert f"lora rank 4 on 28 layers: {weights:,} trainable parameters; each file {4 * weights / 1000:.3g} kB" in words
    assert "5 x 3 + 2 x 4 = 23 samples per epoch" in words
    only = plan(network={"type": "lora", "linear": 4, "network_kwargs": {"only_if_contains": ["to_q"]}}).render()
    assert "on 2 layers" in only


def test_a_model_that_is_trained_itself_is_counted_whole(plan, tiny_model: Path) -> None:
    from safetensors import safe_open

    shapes = []
    for shard in (tiny_model / "transformer").glob("*.safetensors"):
        with safe_open(shard, framework="numpy") as file:
            shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - not a dict
    stored = sum(map(prod, shapes))
    train = {"optimizer": "adafactor", "full_bf16": True, "dtype": "bf16"}
    words = plan(network={"type": "full"}, save={"dtype": "bf16"}, train=train).render()
    # Folder and state in bf16; Adafactor keeps a float32 mean of each row and column, and all of a vector.
    kept = 4 * sum(map(sum, shapes))
    sizes = f"each folder {2 * stored / 1000:.3g} kB, each state {(2 * stored + kept) / 1000:.3g} kB on disk"
    assert f"{stored:,} trainable parameters; {sizes}" in words
    part = plan(network={"type": "full", "include_patterns": r".*\.norm_q"}, save={"dtype": "fp32"}).render()
    # 2 norms of 32 weights; AdamW keeps two moments of each: 12 bytes. The folder holds the whole model.
    assert f"64 trainable parameters; each folder {4 * stored / 1e6:.3g} MB, each state {12 * 64} B on disk" in part


def test_the_share_of_the_untrained_start_is_told_for_the_first_save_and_the_end(plan) -> None:
    ema = {"use_ema": True, "ema_decay": 0.999, "use_num_updates": False}
    words = plan(train={"steps": 3400, "ema_config": ema}, save={"save_every": 340}).render()
    assert "71.2 % at step 340, 3.3 % at step 3400" in words  # 0.999^340 and 0.999^3400
    assert "EMA" not in plan().render()


def test_a_disk_without_room_for_one_save_is_refused(write_job, trainer, make_pictures, tmp_path, monkeypatch) -> None:
    section = trainer(make_pictures(tmp_path / "a", "a"), network={"type": "lora", "linear": 4}, save={"dtype": "fp32"})
    config = load_job(write_job(section), lambda uid: SdTrainerConfig).processes[0].section
    weights = 2 * 4 * (8 * (64 + 64) + 2 * (64 + 6 * 64) + 4 * (64 + 256))
    needed = weights * (4 + 8 + 4)  # raw weights and two moments in the state, the float32 file
    usage = namedtuple("usage", "total used free")
    for free in (needed, needed - 1):
        monkeypatch.setattr("extensions.sd_trainer.plan.shutil.disk_usage", lambda _, free=free: usage(0, 0, free))
        with pytest.raises(UserError, match="training_folder") if free < needed else nullcontext():
            check_disk_space(config, tmp_path)


def test_the_memory_is_told_in_words_and_in_json(plan) -> None:
    found = plan()
    assert "  memory: peak 0." in found.render()
    memory = found.to_json()["memory"]
    assert memory["host_phase"] in memory["phases"] and memory["host_bytes"] > 0
    assert ("device_bytes" in memory) == ("GB GPU" in found.render())


def test_planning_writes_nothing(plan, tmp_path: Path) -> None:
    plan()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3_many", "4_few", "job.yaml"]
