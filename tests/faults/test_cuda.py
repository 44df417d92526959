"""Jobs on a CUDA device: everything is in the right memory, in the right order, and
trains as on the CPU.

The device is one that is none (tests/stand_in_cuda): it refuses tensors of two devices
in one operation, and gives garbage to whoever does not wait for a copy. With `-m cuda`
it is the real one that is there; the CPU's numbers are met less closely on that, and
what depends on single bytes of memory is left to the stand-in.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from benchmarks import bench_memory
from tests.conftest import FAST_BF16
from tests.diffusers_reference import relative
from tests.extensions.from_scratch.conftest import SMALL
from tests.faults.conftest import STEP, Job, draw_pictures, pictures_of
from tests.faults.nursery import Fault, Nursery
from tests.parts import needs_stand_in
from tests.stand_in_cuda import TOTAL, built
from toolkit.models.tiny import TinySpec, write_tiny_model

STAND_IN = [
    pytest.mark.slow,
    needs_stand_in,
]

INT8 = {"quantize": True, "qtype": "int8"}
INT4 = {"quantize": True, "qtype": "int4"}
PLAIN = {"gradient_checkpointing": "none"}
IN_BACKWARD = {
    "lr": 1e-4,
    "fused_backward_pass": True,
    "gradient_accumulation": 1,
    "max_grad_norm": 0,
}
EAGER = {"enabled": True, "backend": "aot_eager"}

SETTINGS: dict[str, dict[str, dict]] = {
    "as it is": {},
    "bf16": {"train": {"dtype": "bf16"}},
    "int8": {"model": INT8},
    "int8 products": {"model": {**INT8, "quantized_products": "int8"}},
    # A tenth of the layers, as each takes seconds to be traced.
    "compiled where auto can": {
        "network": {"network_kwargs": {"only_if_contains": ["to_q"]}},
        "train": {"compile": {"backend": "aot_eager"}},
    },
    "int8, compiled": {"model": INT8, "train": {"compile": EAGER}},
    "int4, text encoder int8": {
        "model": {**INT4, "quantize_te": True, "qtype_te": "int8"}
    },
    "uint3, the blank prompt held": {
        "model": {"quantize": True, "qtype": "uint3"},
        "train": {"blank_prompt_preservation": True},
    },
    "fp8": {"model": {"quantize": True, "qtype": "float8"}},
    "nothing computed again": {"train": PLAIN},
    "attention kept": {"train": {"gradient_checkpointing": "keep_attention"}},
    "attention offloaded": {"train": {"gradient_checkpointing": "offload_attention"}},
    "all computed again": {"train": {"gradient_checkpointing": "full"}},
    "three blocks swapped": {"model": {"blocks_to_swap": 3}, "train": PLAIN},
    "the 12 GB card's": {
        "model": {**INT4, "modulation_table": True, "blocks_to_swap": 2},
        "train": {"gradient_checkpointing": "full_offload"},
    },
    "the smallest card's": {
        "model": {**INT4, "modulation_table": False, "blocks_to_swap": 3},
        "train": {"gradient_checkpointing": "block_offload"},
    },
    "dora, adafactor": {
        "network": {"type": "dora"},
        "train": {"optimizer": "adafactor"},
    },
    "lokr, prodigy": {
        "network": {"type": "lokr"},
        "train": {"optimizer": "prodigy", "lr": 1.0},
    },
    "loha, sgd": {"network": {"type": "loha"}, "train": {"optimizer": "sgd"}},
    "the model itself": {"network": {"type": "full"}, "train": {"lr": 1e-4}},
    "the model itself, three blocks swapped, average": {
        "model": {"blocks_to_swap": 3},
        "network": {"type": "full"},
        "train": {**IN_BACKWARD, "ema_config": {"use_ema": True}},
        "save": {"layout": "single_file"},
    },
    "the model itself, two blocks swapped, rounded at random": {
        "model": {"blocks_to_swap": 2},
        "network": {"type": "full"},
        "train": {
            **IN_BACKWARD,
            **{
                "dtype": "bf16",
                "full_bf16": True,
                "optimizer": "adafactor",
                "gradient_checkpointing": "full_offload",
            },
        },
    },
    "validation": {"validation": {"fraction": 0.3, "every": 2}},
    "low_vram": {"model": {"low_vram": True}},
}


SMALL_CARD = ("int4, text encoder int8", "lokr, prodigy")
TOGETHER: dict[str, tuple[str, ...]] = {
    "bf16": ("bf16",),
    "fp8": ("fp8", "dora, adafactor", "low_vram"),
    "int8, compiled": (
        "int8 products",
        "compiled where auto can",
        "attention offloaded",
    ),
    "uint3": (
        "uint3, the blank prompt held",
        "three blocks swapped",
        "attention offloaded",
        "validation",
    ),
    "the 12 GB card's": ("the 12 GB card's", *SMALL_CARD),
    "the smallest card's": ("the smallest card's", *SMALL_CARD),
    **{name: (name,) for name in SETTINGS if name.startswith("the model itself, ")},
}
"""Jobs with several of these settings, which are all that the stand-in runs: it has the
CPU's numbers. The rest are parts of them."""

assert {name for names in TOGETHER.values() for name in names} <= SETTINGS.keys()


def settings_of(names: Iterable[str]) -> dict[str, dict]:
    joined: dict[str, dict] = {}
    for part, values in (item for name in names for item in SETTINGS[name].items()):
        joined[part] = {**joined.get(part, {}), **values}
    return joined


MEMORY = {
    "model": ("blocks_to_swap", "modulation_table", "low_vram"),
    "train": ("gradient_checkpointing", "compile"),
}
"""Keys that change no number."""


def numbers_of(names: Iterable[str]) -> dict[str, dict]:
    """The settings without those of `MEMORY`: what jobs share that learn the same."""
    return {
        part: rest
        for part, values in settings_of(names).items()
        if (rest := {k: v for k, v in values.items() if k not in MEMORY.get(part, ())})
    }


@pytest.fixture(scope="module")
def four_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "four"
    write_tiny_model(folder, TinySpec(layers=4))
    return folder


@pytest.fixture(
    params=[
        pytest.param("cuda", marks=STAND_IN, id="stand-in"),
        pytest.param("real_cuda", marks=pytest.mark.cuda, id="GPU"),
    ],
)
def device(request: pytest.FixtureRequest) -> list[Fault]:
    """What makes the device in a job's process, or only prepares it."""
    return [("cuda", str(built())) if request.param == "cuda" else (request.param,)]


stand_in_only = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=STAND_IN, id="stand-in")], indirect=True
)


@pytest.fixture
def here(job: Job, four_blocks: Path, tmp_path: Path) -> Job:
    """The small job with a reference, on a model of which three blocks can be
    swapped."""
    references = draw_pictures(tmp_path / "references", "a", "b", "c")
    job.section["datasets"][0] |= {"control_path": str(references)}
    job.section["model"]["name_or_path"] = str(four_blocks)
    return job


@pytest.fixture
def there(nursery: Nursery, tmp_path: Path) -> Callable[[Job], Job]:
    """The same job on the device, in a folder of its own."""

    def on_cuda(job: Job) -> Job:
        folder = tmp_path / "cuda"
        folder.mkdir()
        return Job(nursery, folder, {**copy.deepcopy(job.section), "device": "cuda:0"})

    return on_cuda


STEPS = 3
"""The numbers of the third one show what both matrices of a LoRA have learned."""

PRECISIONS = {
    "cuda": {"": 1e-5, "quantized_products": 1e-4, "bf16": 2e-3},
    "real_cuda": {"": 1e-3, "quantized_products": 1e-2, "bf16": 1e-2},
}
"""Relative, by device and what a job's settings mention: of bf16's roundings, and of
numbers between two levels of 8 bits."""


# The fixtures of a module do not ask for `device`: they would be made anew for each test
# that has another parameter.

Names = tuple[str, ...]


@pytest.fixture(scope="module")
def job_of(
    nursery: Nursery,
    small_section: dict,
    four_blocks: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Fault, str, dict[str, dict]], Job]:
    """Makes the job of some settings for the CPU or the device, which is compared with
    it. Jobs of one place encode images and texts once."""
    references = draw_pictures(tmp_path_factory.mktemp("references"), "a", "b", "c")
    encoded_once = {
        name: tmp_path_factory.mktemp("cache") for name in ("cpu", "cuda:0")
    }

    def make(device: Fault, name: str, settings: dict[str, dict]) -> Job:
        section = copy.deepcopy(small_section)
        # Texts of one length, which one program is compiled for.
        section["datasets"][0] |= {
            "control_path": str(references),
            "caption_dropout_rate": 0,
        }
        section["device"] = name
        section["model"]["name_or_path"] = str(four_blocks)
        section["train"]["steps"] = section["sample"]["sample_every"] = STEPS
        for part, values in settings.items():
            section[part] = {**section.get(part, {}), **values}
        if device[0] == "real_cuda":
            section["network"].pop("dropout")  # a GPU draws others
        folder = tmp_path_factory.mktemp("job")
        (folder / "output").mkdir()
        (folder / "output" / "_cache").symlink_to(encoded_once[name])
        return Job(nursery, folder, section)

    return make


@pytest.fixture(scope="module")
def on_the_cpu(
    request: pytest.FixtureRequest, job_of: Callable[..., Job]
) -> Iterator[Callable[[Names, Fault], Job]]:
    """The job that learns the same as that of some settings, started on the CPU. Beside
    a GPU, on which jobs run in turn, those of all tests that were chosen are started at
    once: such a machine has many cores."""
    started: dict[str, Job] = {}

    def key_of(names: Names, device: Fault) -> str:
        return json.dumps([device[0], numbers_of(names)], sort_keys=True)

    def of(names: Names, device: Fault) -> Job:
        chosen = [
            item.callspec.params
            for item in request.session.items
            if hasattr(item, "callspec")
        ]
        of_all = {
            params["names"]
            for params in chosen
            if "names" in params and params["device"] == "real_cuda"
        }
        for each in of_all if device[0] == "real_cuda" else {names}:
            key = key_of(each, device)
            if key not in started:
                started[key] = job_of(device, "cpu", numbers_of(each))
                started[key].start()
        return started[key_of(names, device)]

    yield of
    for job in started.values():
        job.end()


@pytest.fixture(scope="module")
def on_the_device(
    job_of: Callable[..., Job], on_the_cpu: Callable[[Names, Fault], Job]
) -> Callable[[Names, Fault], Job]:
    """The job of some settings, which has trained there, and its twin on the CPU too."""

    @cache
    def of(names: Names, device: Fault) -> Job:
        here = on_the_cpu(names, device)
        there = job_of(device, "cuda:0", settings_of(names))
        child = there.start(faults=[(*device, str(there.cwd / "report.json"))])
        child.ends_with()
        here.started[0].ends_with()
        return there

    return of


def with_settings(*chosen: str) -> pytest.MarkDecorator:
    """Runs a test for these of `TOGETHER` on the stand-in, and for the settings of the
    same names on a GPU; by default for all."""
    return pytest.mark.parametrize(
        ("device", "names"),
        [
            *(
                pytest.param("cuda", TOGETHER[id], marks=STAND_IN, id=f"stand-in-{id}")
                for id in chosen or TOGETHER
            ),
            *(
                pytest.param(
                    "real_cuda", (name,), marks=pytest.mark.cuda, id=f"GPU-{name}"
                )
                for name in chosen or SETTINGS
            ),
        ],
        indirect=["device"],
    )


@with_settings()
def test_a_job_learns_there_what_it_learns_on_the_cpu(
    names: Names,
    on_the_cpu: Callable[[Names, Fault], Job],
    on_the_device: Callable[[Names, Fault], Job],
    device: list[Fault],
    record_property: Callable,
) -> None:
    there, here = on_the_device(names, device[0]), on_the_cpu(names, device[0])
    settings = settings_of(names)
    output = there.started[0].output
    assert "device cuda:0" in output
    assert device[0][0] != "cuda" or bool(
        re.search(r"compiled \d+ programs", output)
    ) == ("compile" in str(settings))
    report = json.loads((there.cwd / "report.json").read_text())
    record_property("peak_bytes", report["most"])
    precision = max(
        value
        for word, value in PRECISIONS[device[0][0]].items()
        if word in str(settings)
    )
    ours, theirs = there.metrics(), here.metrics()
    assert [line["step"] for line in ours] == [*range(1, STEPS + 1)]
    assert [line["loss"] for line in ours] == pytest.approx(
        [line["loss"] for line in theirs], rel=precision
    )
    ours, theirs = pictures_of(there), pictures_of(here)
    assert ours.shape == theirs.shape == (2, 64, 64, 3)
    assert np.abs(ours - theirs).mean() < 255 * max(1e-3, 10 * precision)


@stand_in_only
def test_an_autoencoder_and_its_discriminator_learn_there_what_they_learn_on_the_cpu(
    job: Job, there: Callable[[Job], Job], device: list[Fault], tmp_path: Path
) -> None:
    """With noise on what the discriminator sees, which is drawn there; the stand-in's
    numbers are the CPU's."""
    kept = {
        key: job.section[key]
        for key in ("training_folder", "device", "training_seed", "datasets")
    }
    job.section.clear()
    job.section |= {
        **kept,
        "type": "vae_trainer",
        "model": {"class_name": "AutoencoderKL", "config": SMALL["AutoencoderKL"]},
        "discriminator": {"channels": 4, "layers": 1, "instance_noise": 0.2},
        "train": {"steps": 3, "batch_size": 2, "lr": 1e-3, "dtype": "fp32"},
        "save": {"save_every": 0},
    }
    on_cuda = there(job)
    for child in (
        on_cuda.start(faults=[(*device[0], str(tmp_path / "report.json"))]),
        job.start(),
    ):
        child.ends_with()
    for ours, theirs in zip(on_cuda.metrics(), job.metrics(), strict=True):
        for name in ("loss/vae", "loss/discriminator", "adversarial_weight"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


RESUMED = 1e-3
"""Relative difference of weights after a resume on a real device, whose kernels may add
in any order."""


@with_settings("the 12 GB card's", "the model itself, three blocks swapped, average")
def test_a_job_goes_on_there_and_ends_in_the_same_bytes(
    names: Names,
    on_the_device: Callable[[Names, Fault], Job],
    device: list[Fault],
    record_property: Callable,
) -> None:
    job = on_the_device(names, device[0])
    report = job.cwd / "resumed.json"
    path, whole = job.folder / "job.safetensors", job.cwd / "whole.safetensors"
    shutil.copyfile(path, whole)
    job.change(resume=2)
    assert "resuming from" in job.run(faults=[(*device[0], str(report))])
    same = path.read_bytes() == whole.read_bytes()
    expected = load_file(whole)
    difference = max(
        relative(tensor, expected[name]) for name, tensor in load_file(path).items()
    )
    record_property("peak_bytes", json.loads(report.read_text())["most"])
    record_property("same_bytes", same)
    record_property("relative_difference", difference)
    assert same or (device[0][0] == "real_cuda" and difference < RESUMED)


FUSED: dict[str, dict] = {
    "network": {"type": "full"},
    "train": {
        "full_bf16": True,
        "dtype": "bf16",
        "fused_backward_pass": True,
        "max_grad_norm": 0,
        "lr": 1e-4,
    },
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "network": {"dropout": 0.0},
            "model": {**INT8, "quantized_products": "int8", "blocks_to_swap": 2},
            "train": {"gradient_checkpointing": "offload_attention"},
        },
        FUSED | {"train": FUSED["train"] | {"optimizer": "adafactor"}},
        FUSED | {"train": FUSED["train"] | {"optimizer": "adamw"}},
    ],
    ids=[
        "as it is",
        "int8 products, swapped, attention offloaded",
        "in the backward pass",
        "in it, by a fused kernel",
    ],
)
def test_no_step_waits_for_the_device(
    here: Job, there: Callable[[Job], Job], device: list[Fault], settings: dict
) -> None:
    """Steps 3 and 4, of which the last fetches the numbers of both, and how long each
    layer has had no gradient, while the device works on the next one."""
    for name, values in settings.items():
        here.section[name] = {**here.section[name], **values}
    # Filled again now and then, by a copy.
    here.section["model"]["modulation_table"] = (
        here.section["network"]["type"] != "full"
    )
    here.section.pop("sample")
    here.change(save__save_every=0, train__steps=5)
    job, waits = there(here), here.cwd / "waits.json"
    # Two micro-batches a step, after one trial of the largest.
    job.run(
        faults=[
            (*device[0], str(here.cwd / "report.json")),
            ("fetch_by_steps_only", 2),
            ("note_waits", STEP, [1 + 5, 1 + 9], str(waits)),
        ]
    )
    before, after = json.loads(waits.read_text())
    assert before == after


# ------------------------------------------------------------ its memory


AT_384 = {"resolution": 384}
PLANNED: dict[str, dict] = {
    "int8, table, dora, batch of 2, attention offloaded": {
        **AT_384,
        "model": {**INT8, "modulation_table": True},
        "network": {"type": "dora"},
        "train": {"gradient_checkpointing": "offload_attention", "batch_size": 2},
    },
    "int4, table, half swapped, offloaded": {
        **AT_384,
        "model": {**INT4, "modulation_table": True, "blocks_to_swap": 2},
        "train": {"gradient_checkpointing": "full_offload"},
    },
    "int4, half swapped, what a block saves too": {
        **AT_384,
        "model": {**INT4, "modulation_table": False, "blocks_to_swap": 2},
        "train": {"gradient_checkpointing": "block_offload"},
    },
    "the model itself, fp32, average": {
        "network": {"type": "full"},
        "train": {
            "dtype": "fp32",
            "gradient_checkpointing": "full",
            "ema_config": {"use_ema": True},
        },
    },
    "the model itself, in bf16, three blocks swapped, average": {
        "model": {"blocks_to_swap": 3},
        "network": {"type": "full"},
        "train": {
            **{
                "full_bf16": True,
                "optimizer": "adafactor",
                "fused_backward_pass": True,
                "max_grad_norm": 0,
            },
            "ema_config": {"use_ema": True},
        },
    },
}
"""Sections of jobs as `benchmarks/bench_memory.py` has them; their tensors are large
beside what the plan rounds up."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    spec = TinySpec(layers=4, heads=8)
    bench_memory.prepare(folder, lambda to: write_tiny_model(to, spec))
    return folder


@stand_in_only
@pytest.mark.parametrize("settings", PLANNED.values(), ids=PLANNED)
def test_the_plan_says_what_is_taken_there(
    nursery: Nursery, tmp_path: Path, large: Path, device: list[Fault], settings: dict
) -> None:
    """In float32 where the CPU, which does the stand-in's products, takes minutes for
    them in bfloat16."""
    [section] = bench_memory.job_of(large, "job", settings)["config"]["process"]
    job = Job(
        nursery, tmp_path, {**section, "device": "cuda:0", "training_folder": "output"}
    )
    job.change(train__steps=1)
    if not FAST_BF16 and not job.section["train"].get("full_bf16"):
        job.change(train__dtype="fp32")
    job.run(faults=device)
    found = memory_event(job)
    assert found["predicted_bytes"] == pytest.approx(found["measured_bytes"], rel=0.07)


def memory_event(job: Job) -> dict:
    events = [
        json.loads(line)
        for line in (job.folder / "events.jsonl").read_text().splitlines()
    ]
    [found] = [event for event in events if event["event"] == "memory"]
    return found


@pytest.fixture
def trained_on(
    here: Job, there: Callable[[Job], Job], device: list[Fault]
) -> Callable[..., tuple[str, list[float], int]]:
    """Runs the small job with three images in a batch on a device of so many bytes.

    Returns what it prints, its losses, and the most bytes that it took.
    """
    here.section.pop("sample")
    here.section["network"].pop("dropout")  # drawn for each part of a batch
    # it would not start: the plan has the context of a real device
    here.section["memory_check"] = False
    here.change(train__steps=2, train__batch_size=3, train__gradient_accumulation=1)
    job = there(here)

    def run(total: int, **settings: object) -> tuple[str, list[float], int]:
        job.change(**settings)
        report = job.cwd / "report.json"
        shutil.rmtree(job.folder, ignore_errors=True)
        output = job.run(faults=[(*device[0], str(report), total)])
        most = json.loads(report.read_text())["most"]
        assert most <= total
        return output, [line["loss"] for line in job.metrics()], most

    return run


@stand_in_only
@pytest.mark.parametrize(
    "settings",
    [
        {"train__gradient_checkpointing": "full_offload", "model__blocks_to_swap": 3},
        {"train__gradient_checkpointing": "none", "model__modulation_table": True},
    ],
    ids=["offloaded and swapped", "all kept, table"],
)
def test_a_batch_that_does_not_fit_is_trained_in_halves(
    trained_on: Callable[..., tuple[str, list[float], int]], settings: dict
) -> None:
    """What the failed attempt took is given back: halves need most of it. `auto` takes
    a level that fits instead."""
    _, whole, most = trained_on(TOTAL, **settings)
    _, halved, _ = trained_on(most - 4096)
    assert halved == pytest.approx(whole, rel=1e-5)
    if settings["train__gradient_checkpointing"] == "none":
        auto = {"train__gradient_checkpointing": "auto"}
        output, losses, _ = trained_on(int(0.75 * most), **auto)
        level = "gradient_checkpointing auto: (cheap|keep_attention|full)"
        assert re.search(level, output)
        assert losses == pytest.approx(whole, rel=1e-5)


def test_a_run_ends_in_advice_wherever_its_memory_runs_out(
    here: Job,
    there: Callable[[Job], Job],
    device: list[Fault],
    record_property: Callable,
) -> None:
    """While images are encoded, the model is loaded, in a pass, in the optimizer's
    first step, in a sample."""
    here.section |= {"network": {"type": "full"}, "memory_check": False}
    here.change(
        train__lr=1e-4,
        train__gradient_checkpointing="full",
        train__steps=1,
        sample__sample_every=1,
    )
    job, report = there(here), here.cwd / "report.json"
    job.run(faults=[(*device[0], str(report))])
    most = json.loads(report.read_text())["most"]
    record_property("peak_bytes", most)
    for share in (0.97, 0.8, 0.6, 0.3, "to be encoded"):
        shutil.rmtree(
            job.cwd / "output" if share == "to be encoded" else job.folder,
            ignore_errors=True,
        )
        total = int(most * (0.3 if share == "to be encoded" else share))
        output = job.run(faults=[(*device[0], "", total)], code=1)
        assert (
            "out of memory" in output
            and "To save memory, in order of effect: " in output
        ), share


# ------------------------------------------------------------ what the device notices


SEEN = """
import torch
from tests.stand_in_cuda import built, install

device = install(built())
cuda, side, here = torch.device("cuda"), torch.cuda.Stream(), torch.cuda.current_stream


def error(work):
    try:
        work()
    except RuntimeError as error:
        return str(error)


def out(ones, host):
    with torch.cuda.stream(side):
        host.copy_(ones, non_blocking=True)


ones = torch.ones(4, device=cuda)
assert "same device" in error(lambda: ones + torch.ones(4))
assert "same device" in error(lambda: torch.nn.functional.linear(torch.ones(1, 4), ones[None]))
assert ones[torch.tensor([1, 2])].tolist() == [1, 1] and (ones + torch.tensor(1.0)).tolist() == [2] * 4

assert "has no CUDA kernel" in error(lambda: torch.histogram(ones, 3))

host = torch.empty(4, pin_memory=True)
assert "may still use its memory" in error(lambda: out(ones, host))  # `ones` was read just now

side.wait_stream(here())
out(ones, host)
assert host.tolist() != [1] * 4
side.record_event().synchronize()
assert host.tolist() == [1] * 4

side.wait_stream(here())
out(ones, host)
del ones
side.synchronize()
assert host.tolist() != [1] * 4  # it was let go too early

late = torch.full((4,), 2.0, device=cuda).to("cpu", non_blocking=True)
assert late.tolist() != [2] * 4
torch.cuda.synchronize()
assert late.tolist() == [2] * 4

before = device.host_waited()
assert torch.full((1,), 3.0, device=cuda).item() == 3 and device.host_waited() == before + 1
tensor = torch.zeros(3, pin_memory=True).to(cuda, non_blocking=True)
assert device.host_waited() == before + 1
"""


@pytest.fixture
def run_there(nursery: Nursery, tmp_path: Path) -> Callable[[str], str]:
    """Runs a program in a process."""
    return lambda text: nursery.fork(
        [text], tmp_path, "program", main="tests.faults.faults"
    ).ends_with(0)


@stand_in_only
def test_the_device_notices_what_it_is_for(device, run_there) -> None:
    run_there(SEEN)


# ------------------------------------------------------------ parts of the program,
# alone on the device

PART = """
import torch
from tests.stand_in_cuda import built, install

device = install(built())
cuda = torch.device("cuda:0")
"""

SAVED_WEIGHT = """
from tests.toolkit.memory.toy_blocks import Stack
from toolkit.memory.offload import BlockSwap

stack = Stack()
weight = stack.model[0].up.base_layer.weight
expected = weight.clone()
swap = BlockSwap(stack.blocks(0, 1, 2), cuda)
swap._ensure_loaded(0, None)
restore = swap._as_place(0, weight)
for other in (1, 2):
    swap._ensure_loaded(other, None)  # no buffer holds the block any more
assert torch.equal(restore().cpu(), expected)
"""


@stand_in_only
def test_a_saved_weight_of_a_swapped_block_has_arrived_whoever_asks_for_it(
    device, run_there
) -> None:
    """Also where no gradient has reached the block before, whose hook would have
    waited."""
    run_there(PART + SAVED_WEIGHT)


AVERAGES = """
from torch.nn import Parameter

from toolkit.optim.ema import Ema

waiting = {name: Parameter(torch.ones(2)) for name in "abc"}
here = {name: Parameter(torch.ones(2, device=cuda)) for name in "def"}
for parameters in ({**waiting, **here}, {**here, **waiting}):
    ema = Ema(parameters, decay=0.5)
    for parameter in parameters.values():
        parameter.data.zero_()
    before = device.host_waited()
    ema.update(torch.ones((), dtype=torch.bool, device=cuda))
    assert device.host_waited() - before <= 2
    for average in ema.averages.values():
        torch.testing.assert_close(average.cpu(), torch.full((2,), 2 / 11))
    for parameter in parameters.values():
        parameter.data.fill_(1)
"""


@stand_in_only
def test_averages_in_main_memory_are_not_waited_for_one_by_one(
    device, run_there
) -> None:
    """The averages of swapped blocks that are trained are in main memory."""
    run_there(PART + AVERAGES)


MAPPED_BLOCKS = """
import random
from pathlib import Path

from tests.toolkit.memory.toy_blocks import Stack, same
from toolkit.errors import RunError
from toolkit.files.mapped import mapped_bytes
from toolkit.memory import offload
from toolkit.system.device import pinned

SWAPPED = (0, 1, 2, 4, 5)


def frozen(block):
    return [t for t in (*block.parameters(), *block.buffers()) if not t.requires_grad]


def mapped():
    stack = Stack(count=6, qtype="int8", device=cuda)
    for index in SWAPPED:
        tensors, path, begin = frozen(stack.model[index]), Path(f"{index}.bin"), 0
        data = [bytes(t.cpu().reshape(-1).view(torch.uint8).tolist()) for t in tensors]
        path.write_bytes(b"".join(one + bytes(-len(one) % 256) for one in data))
        memory = mapped_bytes(path)
        for t, one in zip(tensors, data):
            t.data = memory[begin : begin + len(one)].view(t.dtype).view(t.shape)
            begin += len(one) + -len(one) % 256
    return stack


whole = Stack(count=6, qtype="int8", device=cuda)
expected = whole.gradients(3)
for asked, most, found in ((0, 99, 0), (2, 99, 2), (9, 99, 5), (5, 3, 0)):
    stack = mapped()
    size = sum(-(-t.nbytes // 256) * 256 for t in frozen(stack.model[0]))
    # the system pins at most so many blocks in one piece
    offload.pinned = lambda make: (
        pinned(make) if make.args[0] <= most * size else make(pin_memory=False)
    )
    swap = offload.BlockSwap(stack.blocks(*SWAPPED), cuda, False, asked)
    pins = [waiting.memory.is_pinned() for waiting in swap._waiting]
    assert sum(pins) == found and pins == [not w.is_mapped for w in swap._waiting]
    assert (swap._window is None) == all(pins)
    for index, is_pinned in zip(SWAPPED, pins):
        assert all(t.is_pinned() == is_pinned for t in frozen(stack.model[index]))
    draw = random.Random(found)
    for _ in range(50):  # some that nobody uses
        place, ahead = draw.sample(range(5), 2)
        swap._ensure_loaded(place, ahead)
        block = SWAPPED[place]
        for ours, theirs in zip(frozen(stack.model[block]), frozen(whole.model[block])):
            assert torch.equal(ours.cpu(), theirs.cpu()), (asked, place, ahead)
    assert same(stack.wrap(swap).gradients(3), expected)
assert len(swap._window._copying._threads) == 2

real = offload.read_in
for failing in (0, 1):
    def read_in(share):
        if bool(share.storage_offset()) == failing:
            raise RunError(f"share {failing} is gone")
        real(share)

    swap = offload.BlockSwap(mapped().blocks(*SWAPPED), cuda)
    offload.read_in = read_in
    try:
        swap._ensure_loaded(0, None)
    except RunError as error:
        assert str(error) == f"share {failing} is gone"
    else:
        raise AssertionError("nothing was raised")
    offload.read_in = real
"""


@stand_in_only
def test_mapped_blocks_come_as_they_are_through_two_threads_or_pinned(
    device, run_there
) -> None:
    """Whichever are pinned, and in any order; the error of either thread reaches who
    waits."""
    run_there(PART + MAPPED_BLOCKS)
