"""Images that the base model makes before the training (`datasets[].from_base`): killed
while they are made, changed prompts, another place, another model. The rules without a
run are in tests/toolkit/data/scan/test_from_base.py."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.faults.conftest import KILL, STEP, TERM, Job, run_together
from tests.faults.nursery import Nursery
from toolkit.config.sections.model import ModelConfig
from toolkit.contracts.data import Size
from toolkit.data.batches.latent_cache import CachePair, ItemEncoder
from toolkit.files.run_files import DATASET_PREFIX
from toolkit.files.tensor_cache import TensorCache
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.system import seeding
from toolkit.train.base_model import load_base_model
from toolkit.train.sampling import SamplePrompt, Sampler

pytestmark = pytest.mark.slow

PROMPTS = ["a red house", "a grey cat"]
COUNT = 3


def prepare(job: Job) -> None:
    job.change(sample=None, train__steps=3, train__gradient_accumulation=1)
    job.change(save__save_every=1)
    job.section["datasets"].append(
        {
            "from_base": {
                "prompts": "prompts.txt",
                "count": COUNT,
                "sample_steps": 2,
                "neg": "blurred",
            },
            "resolution": 64,
        }
    )
    (job.cwd / "prompts.txt").write_text(
        "# kept\n\n" + "\n".join(PROMPTS) + "\n", encoding="utf-8"
    )


def made(job: Job) -> dict[str, bytes]:
    """The images and captions that there are, by their names below the cache."""
    folder = job.cwd / "output" / "_cache" / "from_base"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def images(job: Job) -> list[str]:
    return [name for name in made(job) if name.endswith(".png")]


@pytest.fixture(scope="module")
def unbroken(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, small_section: dict
) -> Job:
    """Three steps without an interruption. Read only."""
    job = Job(
        nursery, tmp_path_factory.mktemp("unbroken"), copy.deepcopy(small_section)
    )
    prepare(job)
    said = job.run()
    assert (
        f"{COUNT} of {COUNT} are generated before step 1, in 2 steps at guidance 4 each"
        in said
    )
    assert f"{COUNT} images of the base model are in output/_cache/from_base/" in said
    return job


def test_each_image_has_its_caption_and_is_trained(unbroken: Job) -> None:
    files = made(unbroken)
    captions = [text.decode() for name, text in files.items() if name.endswith(".txt")]
    assert sorted(captions) == sorted(
        f"{PROMPTS[index % 2]}\n" for index in range(COUNT)
    )
    assert sorted(name[:-4] for name in files if name.endswith(".txt")) == [
        name[:-4] for name in images(unbroken)
    ]
    # a prompt that is used again has another seed
    assert len({files[name] for name in images(unbroken)}) == COUNT
    (record,) = unbroken.folder.glob(f"{DATASET_PREFIX}*.json")
    assert (
        sum(name.startswith("prompts.txt/") for name in json.loads(record.read_text()))
        == COUNT
    )


def test_the_images_are_those_of_the_base_model_alone(
    unbroken: Job, small_section: dict
) -> None:
    model = load_base_model(
        ModelConfig(**small_section["model"]), torch.device("cpu"), torch.float32
    )
    seeds = [
        seeding.key(0, "from_base", PROMPTS[index % 2], index // 2) % 2**32
        for index in range(COUNT)
    ]
    asked = [
        SamplePrompt(PROMPTS[index % 2], "blurred", Size(64, 64), seed, 4.0, 2)
        for index, seed in enumerate(seeds)
    ]
    sampler = Sampler(
        model,
        asked,
        ItemEncoder(model, torch.float32),
        CachePair(TensorCache(None), TensorCache(None)),
    )
    expected = sorted(sampler.generate(index).tobytes() for index in range(COUNT))
    folder = unbroken.cwd / "output" / "_cache" / "from_base"
    assert (
        sorted(Image.open(folder / name).tobytes() for name in images(unbroken))
        == expected
    )


def test_no_trace_of_a_lora_is_in_them(job: Job, unbroken: Job) -> None:
    """Neither of the one that the training starts from nor of the assistant."""
    prepare(job)
    lora = str(unbroken.folder / "job.safetensors")
    job.change(
        network__pretrained_lora_path=lora, train__assistant=lora, train__steps=1
    )
    job.run()
    assert made(job) == made(unbroken)


def test_ended_while_they_are_made_and_trained_it_goes_on_to_the_same_bytes(
    job: Job, unbroken: Job
) -> None:
    """Killed when the second one has its caption alone, stopped while that one is made,
    then gone in step 3, whereupon all are lost."""
    prepare(job)
    folder = job.cwd / "output" / "_cache" / "from_base"
    killed = ("kill_self", "PIL.Image:Image.save", 2, KILL)
    job.run(faults=[killed], code=-KILL)
    (first,) = images(job)
    written = (folder / first).stat().st_mtime_ns
    base_image = "jobs.process.image_trainer:write_base_image"
    said = job.run(faults=[("kill_self", base_image, 1, TERM)], code=75)
    assert f"{COUNT - 1} of {COUNT} are generated before step 1" in said
    assert len(images(job)) == 2
    said = job.run(faults=[("leave_at", STEP, 1 + 3)], code=99)
    assert f"{COUNT - 2} of {COUNT} are generated before step 1" in said
    assert (folder / first).stat().st_mtime_ns == written
    assert made(job) == made(unbroken)
    shutil.rmtree(job.cwd / "output" / "_cache")
    said = job.run()
    assert "resuming from" in said and "dataset has changed" not in said
    assert made(job) == made(unbroken)
    assert job.result() == unbroken.result()


def test_another_job_of_the_same_base_uses_them_again(
    job: Job, unbroken: Job, tmp_path: Path
) -> None:
    """One of another base does not."""
    shutil.copytree(unbroken.cwd / "output" / "_cache", job.cwd / "output" / "_cache")
    before = made(job)
    prepare(job)
    job.name = "other"
    job.change(network__linear=2, train__steps=1)
    plan = job.run("--dry-run")
    assert (
        f"images of the base model (from_base): all {COUNT} exist already; in output/_cache/from_base/"
        in plan
    )
    said = job.run(
        faults=[("fail", "jobs.process.image_trainer:write_base_image", 1, 5)]
    )
    assert "images of the base model are in" not in said
    assert made(job) == before
    write_tiny_model(tmp_path / "model", TinySpec(seed=5))
    job.name = "of_another_base"
    job.change(model__name_or_path=str(tmp_path / "model"))
    assert f"{COUNT} of {COUNT} are generated before step 1" in job.run("--dry-run")


def test_another_count_is_a_changed_job_moved_prompts_are_none_and_others_a_changed_dataset(
    job: Job, unbroken: Job
) -> None:
    prepare(job)
    job.change(train__steps=2)
    job.run()
    before = made(job)
    from_base = job.section["datasets"][1]["from_base"]
    from_base["count"] = 2
    job.change(train__steps=3)
    said = job.run(code=2)
    assert (
        f"datasets[1].from_base.count: {COUNT} -> 2" in said
        and "this changes the result" in said
    )
    (job.cwd / "prompts.txt").rename(job.cwd / "kept.txt")
    from_base |= {"count": COUNT, "prompts": "kept.txt"}
    said = job.run()
    assert f"the dataset has moved: its {3 + COUNT} images are those of the run" in said
    assert job.metrics() == unbroken.metrics()
    (job.cwd / "kept.txt").write_text("a green tree\na red house\n", encoding="utf-8")
    job.change(train__steps=4)
    said = job.run("--allow-change")
    # Three of two prompts: one of the first is new, and so is the other's place.
    assert (
        "the dataset has changed: 2 added (kept.txt/" in said
        and "; 2 removed (kept.txt/" in said
    )
    assert "The next epoch begins with it." in said
    assert before.items() <= made(job).items()


def test_the_cache_process_leaves_them_to_the_training(job: Job) -> None:
    prepare(job)
    job.change(type="cache")
    assert (
        f"{COUNT} images of 'from_base' are not there yet: the training makes and encodes them"
        in job.run()
    )
    assert not made(job)


def test_two_processes_share_them_out(job: Job, unbroken: Job) -> None:
    prepare(job)
    job.change(train__steps=1)
    run_together(job)
    assert made(job) == made(unbroken)
