"""Jobs that go on from what an earlier start left: changed jobs, changed datasets,
chosen states, damaged states.

Every change, and every choice of a state, is in tests/toolkit/train/test_resumption*.py
and test_config_diff.py.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from extensions.tools.shared.run_job import training_section
from tests.faults.conftest import Job, contents, draw_pictures
from toolkit.train.run_reader import read_run

pytestmark = pytest.mark.slow


def rewrite(state: Path, document: dict) -> None:
    """Another state.json, and its hash in the manifest."""
    (state / "state.json").write_text(json.dumps(document))
    manifest = json.loads((state / "MANIFEST.json").read_text())
    content = (state / "state.json").read_bytes()
    manifest["files"]["state.json"] = {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (state / "MANIFEST.json").write_text(json.dumps(manifest))


def rewrite_all(job: Job, change: Callable[[dict], object]) -> None:
    """Every state.json of the run with a change."""
    for state in (job.folder / "state").iterdir():
        document = json.loads((state / "state.json").read_text())
        change(document)
        rewrite(state, document)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


# ------------------------------------------------------------ random seeds


def test_a_random_seed_is_drawn_once_and_kept_by_a_resume(job: Job) -> None:
    """Samples of all sets have one noise: that of the seed which was drawn. Another run
    draws another one."""
    job.change(
        training_seed="random",
        sample__seed="random",
        train__steps=1,
        train__gradient_accumulation=1,
    )
    seed = int(re.search(r"training_seed (\d+)", job.run())[1])
    with safe_open(job.folder / "job.safetensors", "np") as file:
        assert file.metadata()["ss_seed"] == str(seed)
    assert training_section(read_run(job.folder)).sample_pictures()[0].seed == seed
    first = job.result()
    job.change(train__steps=2)
    assert f"training_seed {seed}\n" in job.run()
    images = sorted(key for key in first if re.fullmatch(r"\d+_\d+", key))
    job.change(training_seed=seed, sample__seed=seed, train__steps=1)
    shutil.rmtree(job.folder)
    job.run()
    again = job.result()
    assert images and [again[key] for key in images] == [first[key] for key in images]
    job.change(training_seed="random")
    shutil.rmtree(job.folder)
    ends = ("leave_at", "toolkit.train.base_model:load_model", 1)
    assert f"training_seed {seed}\n" not in job.run(faults=[ends], code=99)


# ------------------------------------------------------------ zeros


def test_a_job_of_zeros_draws_a_seed_keeps_it_and_saves_only_the_end(job: Job) -> None:
    """0 is off for all of these; the seed that was drawn goes on with the run."""
    job.change(
        training_seed=0,
        network__dropout=0,
        train__max_grad_norm=0,
        train__lr_warmup_steps=0,
        train__steps=2,
    )
    job.change(
        save__save_every=0, save__max_step_saves_to_keep=0, sample__sample_every=0
    )
    job.change(train__skip_first_sample=True)
    job.section["datasets"][0] |= {"caption_dropout_rate": 0, "num_workers": 0}
    seed = int(re.search(r"training_seed (\d+)", job.run())[1])
    assert seed > 0 and [path.name for path in job.folder.glob("*.safetensors")] == [
        "job.safetensors"
    ]
    assert job.states() == [2]
    assert [path.name for path in job.folder.glob("samples/*")] == [
        "000000002_0.png"
    ], "the last set"
    with safe_open(job.folder / "job.safetensors", "np") as file:
        assert file.metadata()["ss_seed"] == str(seed)
    job.change(train__steps=3, training_seed=seed)
    # the seed that was drawn, given: no change
    assert f"training_seed {seed}\n" in job.run()


# ------------------------------------------------------------ changed jobs


def test_a_changed_lr_is_refused_and_goes_on_when_allowed(finished: Job) -> None:
    finished.change(train__lr=0.02, train__steps=8)
    before = contents(finished.folder)
    said = finished.run(code=2)
    assert "train.lr: 0.01 -> 0.02" in said and "--allow-change" in said
    assert contents(finished.folder) == before, "a job that is refused changes nothing"
    said = finished.run("--allow-change")
    assert "changed since the last run: train.lr: 0.01 -> 0.02" in said
    assert finished.steps() == list(range(1, 9))
    assert [line["lr"] for line in finished.metrics()][5:] == [0.01, 0.02, 0.02]


def test_another_base_model_is_refused_wherever_it_is(
    finished: Job, tiny_model: Path
) -> None:
    other = shutil.copytree(tiny_model, finished.cwd / "other")
    weights = min((other / "transformer").glob("*.safetensors"))
    scaled = {name: tensor * 3 for name, tensor in load_file(weights).items()}
    save_file(scaled, weights, metadata={"format": "pt"})
    finished.change(model__name_or_path=str(other), train__steps=8)
    for flags in ([], ["--allow-change"]):
        said = finished.run(*flags, code=2)
        assert (
            "was trained on another base model: transformer differs. Restore the model"
            in said
        )
    assert finished.steps() == list(range(1, 7))


def test_a_checkpoint_of_0_2_0_goes_on_where_it_was_and_keeps_its_spelling(
    finished: Job, tiny_model: Path
) -> None:
    """It has no record of its base. Its files have `diffusion_model.` and an alpha for
    each layer, and it has no record of that either."""
    assert not any(
        key.endswith(".alpha") for key in load_file(finished.folder / "job.safetensors")
    )

    def forget(document: dict) -> None:
        del document["base"]
        assert document.pop("spelling") == "alpha_folded"

    rewrite_all(finished, forget)
    shutil.copytree(tiny_model, finished.cwd / "other")
    finished.change(model__name_or_path=str(finished.cwd / "other"), train__steps=8)
    said = finished.run(code=2)
    assert "model.name_or_path: " in said and "cannot change" in said
    finished.change(model__name_or_path=str(tiny_model))
    finished.run()
    assert finished.steps() == list(range(1, 9))
    saved = load_file(finished.folder / "job.safetensors")
    stems = {
        key.removesuffix(".lora_A.weight")
        for key in saved
        if key.endswith(".lora_A.weight")
    }
    assert stems and all(
        float(saved[f"{stem}.alpha"]) == finished.section["network"]["linear_alpha"]
        for stem in stems
    )
    last = max(finished.folder.glob("state/step_*"))
    assert json.loads((last / "state.json").read_text())["spelling"] == "alpha_stored"


def test_a_changed_dataset_is_reported_and_goes_on_with_the_next_epoch(
    job: Job, pictures: Path
) -> None:
    data = job.cwd / "data"
    shutil.copytree(pictures, data)
    job.section["datasets"][0]["folder_path"] = str(data)
    job.change(train__steps=2, sample=None)
    job.run()
    # 2 steps x 2 micro-batches of 3: one into the second epoch
    assert job.metrics()[-1]["epoch"] == 1
    draw_pictures(data, "d", "e")
    (data / "a.png").unlink()
    (data / "a.txt").unlink()
    (data / "b.txt").write_text("another caption")
    job.change(train__steps=3)
    said = job.run()
    for words in (
        "2 added",
        "d.png",
        "1 removed",
        "a.png",
        "1 edited",
        "b.png",
        "The next epoch begins",
    ):
        assert words in said
    assert [line["epoch"] for line in job.metrics()] == [0, 1, 2]
    job.change(train__steps=4)
    assert "dataset has changed" not in job.run(), (
        "the second time it is the same dataset"
    )


def test_a_finished_job_does_nothing_and_says_so(
    finished: Job, tiny_model: Path
) -> None:
    def files() -> dict[str, tuple[bytes, int]]:
        found = contents(finished.folder)
        return {
            name: (text, (finished.folder / name).stat().st_mtime_ns)
            for name, text in found.items()
        }

    before = files()
    assert "is complete at step 6: nothing to do" in finished.run()
    other = shutil.copytree(tiny_model, finished.cwd / "other")
    finished.change(model__name_or_path=str(other))
    assert "is complete at step 6: nothing to do" in finished.run(), (
        "the same model at another place is the same"
    )
    config = other / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"added": 1}))
    assert "was trained on another base model: vae encoder differs" in finished.run(
        code=2
    )
    assert files() == before


# ------------------------------------------------------------ a chosen state


def test_going_back_to_a_step_moves_what_is_later_and_ends_the_same(
    finished: Job, same
) -> None:
    """Leftovers of killed writes and a torn line of metrics do no harm."""
    finished.change(resume=2)
    # File times say nothing: the oldest looks newest, and the clock was wrong.
    for path in finished.folder.glob("state/step_*"):
        os.utime(path, (4e9 - finished.states().index(int(path.name[5:])),) * 2)
    leftovers = [
        ".job.safetensors.0123abcd.tmp",
        "samples/.x.png.0123abcd.tmp",
        "state/.tmp-6-99-0123abcd/weights.safetensors",
    ]
    for name in leftovers:
        (finished.folder / name).parent.mkdir(exist_ok=True)
        (finished.folder / name).write_text("half")
    with (finished.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    said = finished.run()
    assert not any((finished.folder / name).exists() for name in leftovers)
    assert "resuming from" in said and "superseded" in said
    same()
    assert finished.steps() == [1, 2, 3, 4, 5, 6]
    moved = {path.name for path in (finished.folder / "superseded" / "1").iterdir()}
    assert {
        "step_000000004",
        "step_000000006",
        "job_000000004.safetensors",
        "job.safetensors",
    } <= moved
    assert len([name for name in moved if name.endswith(".png")]) == 2


def test_an_odd_name_of_a_job(job: Job) -> None:
    job.change(sample=None, train__steps=4, train__gradient_accumulation=1)
    job.name = name = "ünï 🦊 a[b]*?(c)+{d}"
    job.run()
    job.change(resume=2)
    job.run()
    assert job.steps() == [1, 2, 3, 4]
    assert (job.folder / "superseded" / "1" / f"{name}_000000004.safetensors").exists()


# ------------------------------------------------------------ damaged states


def test_the_newest_good_state_is_taken_and_the_damaged_one_named(
    finished: Job, same
) -> None:
    (finished.folder / "run.json").unlink()
    damage(finished.folder / "state" / "step_000000006" / "optimizer.safetensors")
    (finished.folder / "state" / "step_000000004" / "MANIFEST.json").unlink()
    said = finished.run()
    for words in (
        "step_000000006 is skipped: optimizer",
        "step_000000004 is skipped: MANIFEST",
        "resuming from",
    ):
        assert words in said
    same()


def test_a_state_that_verifies_and_lacks_something_is_one_line(job: Job) -> None:
    """Somebody else wrote it: one entry after the other is taken out, or of another
    type."""
    job.change(train__steps=1, train__gradient_accumulation=1)
    job.change(sample=None, training_seed=0)
    job.run()
    job.change(train__steps=2)
    [state] = (job.folder / "state").iterdir()
    whole, kept = (
        json.loads((state / "state.json").read_text()),
        job.folder.rename(job.cwd / "kept"),
    )
    places = [
        (key,) for key in ("state", "roles", "settings", "dataset", "base", "seed")
    ]
    places += [("state", key) for key in ("step", "epoch", "extra")]
    places += [
        ("roles", "network", key)
        for key in ("optimizer_class", "optimizer", "ema_updates")
    ]
    for number, (*parents, last) in enumerate(places):
        for forged in (
            (None, ["x"])
            if last in ("base", "dataset")
            else ([None, ["x"]][number % 2],)
        ):
            document = copy.deepcopy(whole)
            inner = document
            for key in parents:
                inner = inner[key]
            inner[last] = forged
            if forged is None:
                del inner[last]
            shutil.copytree(kept, job.folder)
            rewrite(state, document)
            child = job.start()
            assert child.wait() in (0, 1, 2) and "Traceback" not in child.output, (
                last,
                forged,
                child.output,
            )
            if child.code:
                assert (
                    str(state.relative_to(job.cwd)) in child.output.splitlines()[-1]
                ), (last, forged, child.output)
            # A state need not have a record of its base; another dataset begins with
            # its next epoch.
            assert bool(child.code) == (
                (last, forged) not in [("base", None), ("dataset", ["x"])]
            ), (last, forged)
            shutil.rmtree(job.folder)


# ------------------------------------------------------------ another decoder


def other_decoder(model: Path, file: Path) -> Path:
    """A file with a VAE whose decoder is another one."""
    (own,) = (model / "vae").glob("*.safetensors")
    begin = ("decoder.", "post_quant_conv.")
    weights = {
        name: tensor * 1.1 if name.startswith(begin) else tensor
        for name, tensor in load_file(own).items()
    }
    save_file(weights, file)
    return file


@pytest.fixture(scope="module")
def of_seven_steps(whole: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The finished run, gone on with to step 7. Read only."""
    made = Job(
        whole.nursery, tmp_path_factory.mktemp("seven"), copy.deepcopy(whole.section)
    )
    shutil.copytree(whole.cwd / "output", made.cwd / "output")
    made.change(train__steps=7)
    made.run()
    return made


@pytest.mark.parametrize("key", ["model", "sample"])
def test_another_decoder_changes_the_samples_alone(
    finished: Job, whole: Job, of_seven_steps: Job, tiny_model: Path, key: str
) -> None:
    """For samples alone it may come in a whole VAE with another encoder: only its
    decoder counts."""
    cache = finished.cwd / "output" / "_cache"
    cached = contents(cache / "latents")
    file = other_decoder(tiny_model, finished.cwd / "decoder.safetensors")
    if key == "sample":
        save_file({n: w * 1.1 for n, w in load_file(file).items()}, file)
    finished.change(**{f"{key}__vae_path": str(file), "train__steps": 7})
    said = finished.run("-v")
    assert (
        "sample.vae_path: samples are decoded with decoder.safetensors; latents and training stay as they are"
        in said
    ) == (key == "sample")
    assert cached and contents(cache / "latents") == cached, "nothing is encoded again"
    ours, theirs = finished.result(), of_seven_steps.result()
    assert (
        ours["job.safetensors"] == theirs["job.safetensors"]
        and ours["metrics"] == theirs["metrics"]
    )
    last = max(name for name in ours if re.fullmatch(r"\d+_0", name))
    assert ours[last] != theirs[last], "decoded by the other decoder"


def test_a_checkpoint_that_knows_the_whole_vae_alone_goes_on_with_it(
    finished: Job, tiny_model: Path
) -> None:
    """As versions before 0.3.0 recorded it."""
    rewrite_all(finished, lambda document: document["base"].pop("vae_encoder"))
    finished.change(train__steps=7)
    finished.run()
    rewrite_all(finished, lambda document: document["base"].pop("vae_encoder", None))
    file = other_decoder(tiny_model, finished.cwd / "decoder.safetensors")
    finished.change(model__vae_path=str(file), train__steps=8)
    assert "was trained on another base model: vae differs" in finished.run(code=2)
