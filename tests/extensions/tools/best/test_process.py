"""`run.py best`: the numbers of a short run's LoRAs, and what is recommended."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from extensions.tools.best.characters import (
    NOBODY,
    images_of,
    lines_of,
    nearest,
    who_appears,
)
from extensions.tools.best.embedding import Embedder, adherence, distance
from extensions.tools.best.process import Measured, _images, recommend, that_drift_less
from jobs.job import ExtensionJob
from tests.conftest import readme_commands
from tests.quantized import mark
from tests.running import run_job, run_tool, section_of
from toolkit.config import load_job
from toolkit.contracts.data import BucketedSample, ResizeCrop, Sample, Size
from toolkit.data.scan.validation_split import scan_and_split
from toolkit.errors import ConfigErrors, UserError
from toolkit.extension import discover
from toolkit.files.safetensors_io import read_metadata
from toolkit.models.families import family_for
from toolkit.train.paired import as_good_as_the_lowest
from toolkit.train.run_reader import rows_by_step


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A CLIP with random weights, and a tokenizer of some letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {**small, "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**small, "image_size": 28, "patch_size": 14}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    ).save_pretrained(tmp_path / "clip")
    letters = [f"{letter}{end}" for letter in "abehoptz" for end in ("", "</w>")]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    CLIPTokenizer(
        {word: index for index, word in enumerate(words)}, []
    ).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.slow
def test_the_loss_is_that_of_the_run_and_the_best_file_is_linked(
    write_job,
    trainer,
    make_pictures,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {"ctrl_img": str(make_pictures(tmp_path / "before", "x") / "x.png")}
    before["mask_img"] = str(tmp_path / "mask.png")
    Image.new("L", (8, 8)).save(before["mask_img"])
    section = trainer(
        make_pictures(tmp_path / "images", "ab", "bee", "hat", "top"),
        train={"steps": 2, "lr": 0.05},
        save={"dtype": "float32", "save_every": 1},
        validation={"fraction": 0.5, "every": 1, "timesteps": 2},
        sample={
            "samples": [{"prompt": "a hat", "width": 80, "height": 64, **before}],
            "sample_steps": 2,
        },
    )
    section["train"]["disable_sampling"] = True
    job = load_job(write_job(section, name="my_char"), discover().find_config)
    ExtensionJob(job, discover()).run()
    plain, linked, embedded, edited = readme_commands(
        "extensions/tools/best/README.md", "best"
    )
    short = ["--steps", "2", "--prompts", "a lake"]
    run = Path(plain[0])

    def best(*flags: str) -> dict:
        run_tool("best", [*flags, *short])
        return json.loads((run / "best.json").read_text())

    too_far = [*plain, "--most-drift", "0.1"]
    with pytest.raises(ConfigErrors, match=r"Set edits \(--edits\), such as 4"):
        best(*too_far)
    assert section_of("best", [*too_far, "--edits", "4"]).edits == 4
    found = best(*plain)
    base, first, last = found["files"]
    assert [each["step"] for each in found["files"]] == [None, 1, 2] and last[
        "file"
    ] == "my_char.safetensors"
    with rows_by_step(run / "validation.jsonl") as rows:
        recorded = [row["validation/loss"] for row in rows]
    assert [each["loss"] for each in found["files"]] == pytest.approx(
        recorded, rel=1e-5
    )
    assert base["drift"] == 0 < first["drift"] < last["drift"]
    assert {each["edit_drift"] for each in found["files"]} == {None}
    assert found["measured_on"] == "2 images that were not trained on"
    assert (
        base["by_image"].keys() == last["by_image"].keys()
        and len(last["by_image"]) == 2
    )
    name = found["recommended"]
    # of two images nothing is compared
    assert found["compared"] == [] and found["steps_beyond"] in (
        0,
        1,
    )
    assert any(line.startswith(f"recommended: {name}: ") for line in said)

    monkeypatch.setattr(
        "toolkit.files.writing.os.link",
        lambda *_: (_ for _ in ()).throw(OSError("no links")),
    )
    (run / "my_char_best.safetensors").unlink(missing_ok=True)  # the run's own
    assert best(*linked)["recommended"] == name
    assert (run / "my_char_best.safetensors").read_bytes() == (run / name).read_bytes()
    with pytest.raises(
        ConfigErrors, match=r"my_char_best\.safetensors is there already"
    ):
        best(*linked)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (record,) = run.glob("dataset-*.json")
    words = [Path(name).stem for name in json.loads(record.read_text())]
    with pytest.raises(UserError, match="caption has 'zoo'"):
        best(*plain, "--embedder", str(clip), "--characters", words[0], "zoo")
    again = best(
        *linked,
        "--overwrite",
        *embedded[1:],
        "--embedder",
        str(clip),
        *edited[1:],
        "--characters",
        *words,
    )
    assert [*again["who_appears"]] == words and found["who_appears"] is None
    assert all(
        row.keys() == set(words) and sum(row.values()) == 1
        for row in again["who_appears"].values()
    )
    assert all(each["outside_mask"] > 1 for each in again["files"])
    assert (run / "my_char_best.safetensors").samefile(run / again["recommended"])
    assert [each["loss"] for each in again["files"]] == [
        each["loss"] for each in found["files"]
    ]
    assert all(
        0 <= each["distance"] <= 2 and -1 <= each["adherence"] <= 1
        for each in again["files"]
    )

    (tmp_path / "photo.jpg").write_bytes(b"mine")
    (run / "my_char_best.safetensors").unlink()
    (run / "my_char_best.safetensors").write_bytes(b"mine")
    with pytest.raises(ConfigErrors) as caught:
        best(*linked, "--overwrite", "--output", "photo.jpg", "--embedder", "photo.jpg")
    told = [
        ("--embedder", "is a file."),
        ("--link", "was not made by"),
        ("--output", "was not made by"),
    ]
    for line, (flag, words) in zip(str(caught.value).splitlines(), told, strict=True):
        assert f"{flag}: " in line and words in line


@pytest.mark.slow
def test_files_of_a_run_that_broke_down_are_left_out(
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    """One holds NaN, one is so large that its loss is none, and comes first."""
    monkeypatch.chdir(tmp_path)
    section = trainer(
        make_pictures(tmp_path / "images", "ab"),
        save={"dtype": "float32", "save_every": 1},
    )
    section["train"] |= {"steps": 4, "lr": 0.01, "disable_sampling": True}
    run_job(write_job(section, name="my_char"))
    run = Path("output", "my_char")
    first, second = (run / f"my_char_00000000{step}.safetensors" for step in (1, 2))
    for file, factor in ((first, 1e30), (second, float("nan"))):
        save_file(
            {k: t * factor if "lora_B" in k else t for k, t in load_file(file).items()},
            file,
            read_metadata(file),
        )
    run_tool("best", [run, "--steps", "1", "--prompts", "a lake"])
    found = json.loads((run / "best.json").read_text())
    assert [each["step"] for each in found["files"]] == [None, 3, 4]
    assert any(f"{first.name}: its loss is not finite" in line for line in said)
    assert any(
        second.name in line and "not finite" in line and "It is left out" in line
        for line in said
    )
    assert found["recommended"] is found["steps_beyond"] is None, (
        "without validation the lowest loss tells nothing"
    )
    assert not any(line.startswith("recommended") for line in said)
    assert any(
        line.startswith("cannot tell which file is best: no images are held out")
        for line in said
    )
    assert "fraction: 0.1, every: 1}" in found["reason"], (
        "a run of 4 steps would never reach 250"
    )
    with pytest.raises(
        ConfigErrors, match="no section 'validation', so no file can be recommended"
    ):
        section_of("best", [str(run), "--link"])


def test_embeddings_are_those_of_transformers(clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel, Dinov2Config, Dinov2Model

    picture = Image.effect_mandelbrot((40, 28), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    pixels = (
        torch.tensor([*picture.crop((6, 0, 34, 28)).tobytes()])
        .view(28, 28, 3)
        .permute(2, 0, 1)
        / 255
    )
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    ids = torch.tensor([[0, 8, 3, 1]])  # h, a at the end of a word
    output = CLIPModel.from_pretrained(clip)(
        input_ids=ids, pixel_values=((pixels - mean) / std)[None]
    )
    embedder = Embedder(str(clip), "cpu", torch.device("cpu"))
    torch.testing.assert_close(
        embedder.images([picture]), output.image_embeds, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        embedder.texts(["ha"]), output.text_embeds, rtol=1e-4, atol=1e-5
    )
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "dino")
    dino = Embedder(str(tmp_path / "dino"), "cpu", torch.device("cpu"))
    assert not dino.reads_text and dino.images([picture, picture]).norm(
        dim=1
    ).tolist() == pytest.approx([1, 1])
    (tmp_path / "dino" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"'bert'\. Give a CLIP or a DINOv2"):
        Embedder(str(tmp_path / "dino"), "cpu", torch.device("cpu"))


def test_a_quantized_embedder_is_refused_by_name(clip: Path, tmp_path: Path) -> None:
    model = shutil.copytree(clip, tmp_path / "quantized")
    place = mark(model / "config.json")
    with pytest.raises(
        UserError,
        match=re.escape(f"embedder: {place}the embedder is quantized by sdnq (uint4)"),
    ):
        Embedder(str(model), "cpu", torch.device("cpu"))


def test_distance_and_adherence() -> None:
    rows = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
    assert distance(rows, rows[:1]) == pytest.approx(1 - (1 + 0.5**0.5) / 2)
    assert adherence(rows, rows.flip(0)) == pytest.approx(0.5**0.5)


def test_without_held_out_images_those_of_the_training_are_measured_with_their_captions(
    write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    section = trainer(make_pictures(tmp_path / "images", "a", "b", "c"))
    section["datasets"][0] |= {
        "caption_dropout_rate": 0.9,
        "flip_x": True,
        "resolution": [64, 96],
    }
    training = load_job(write_job(section), discover().find_config).processes[0].section
    measured, trained, words = _images(
        *scan_and_split(training, family_for(training.model))[1:], 2
    )
    assert [item.sample.rules.dropout_rate for item in measured] == [0, 0] and not any(
        measured[0].sample.flip
    )
    assert len({item.sample.image for item in trained}) == 2
    assert words.startswith("2 images of the training, for none are held out")


def test_what_is_recommended_and_why() -> None:
    base = Measured("base model", None, 0.5, 0.0)
    lowest, near, far = (
        Measured("a", 1, 0.4, 0.3),
        Measured("b", 2, 0.403, 0.1),
        Measured("c", 3, 0.41, 0.0),
    )
    best, reason = recommend([lowest, near, far], base)
    assert best is near and reason.startswith(
        "the least drift (0.100) among the 2 whose loss is within 1%"
    )
    assert recommend([lowest, far], base) == (
        lowest,
        "the lowest loss, 0.4000; the base model has 0.5000",
    )
    assert (
        "no LoRA of the run is better"
        in recommend([far], Measured("base model", None, 0.3, 0.0))[1]
    )
    alike = [Measured("a", 1, 0.4, 0.1, 0.7), Measured("b", 2, 0.403, 0.3, 0.6)]
    assert recommend(alike, base)[0] is alike[1]
    # the images differ more than the files
    wide = {f"{image}": 0.4 + image / 10 for image in range(9)}
    rows = [
        {image: loss + add + 0.001 * (int(image) % 2) for image, loss in wide.items()}
        for add in (0.1, 0, 0)
    ]
    rows[1] = {image: loss + 0.0005 * (int(image) % 3) for image, loss in wide.items()}
    files = [
        Measured(str(n), n, fmean(row.values()), 0.1, None, None, row)
        for n, row in enumerate(rows)
    ]
    best, reason = recommend(files, base, as_good_as_the_lowest(dict(enumerate(rows))))
    assert (
        best is files[1]
        and "the earliest of the 2 whose loss is not worse than the lowest within the in"
        in reason
    )
    assert recommend(files[:2], base, as_good_as_the_lowest(dict(enumerate(rows[:2]))))[
        1
    ].startswith("the lowest loss")
    still, off = replace(far, edit_drift=0.2), replace(lowest, edit_drift=3.0)
    assert recommend(that_drift_less([off, still], 1.0), base)[0] is still
    assert (
        recommend([off, still], base)[0]
        is recommend(that_drift_less([off], 1.0), base)[0]
        is off
    )


def test_folders_that_cannot_be_measured(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "finished", "name": "x"}')
    for folder, words in [
        (tmp_path / "none", "no run is here"),
        (tmp_path, "holds no job"),
    ]:
        with pytest.raises(ConfigErrors, match=words):
            section_of("best", [str(folder)])


# ------------------------------------------------------------ who appears when whom is
# asked for


def image(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


def embed(images) -> torch.Tensor:
    rows = torch.tensor(
        [each.resize((1, 1)).getpixel((0, 0)) for each in images], dtype=torch.float32
    )
    return torch.nn.functional.normalize(rows, dim=1)


SAMPLES = {
    "anna": ["#c01010", "#b02010", "#a01000", "#1010a0"],
    "ben": ["#0000ff", "#101090"],
}


def test_a_sample_counts_for_the_character_whose_images_are_nearest() -> None:
    references = {
        "anna": embed([image("#ff0000"), image("#ee1100")]),
        "ben": embed([image("#0000ff")]),
    }
    table = who_appears(
        ["anna", "ben"],
        lambda name: [image(c) for c in SAMPLES[name]],
        nearest(references, embed),
    )
    assert table == {
        "anna": {"anna": 0.75, "ben": 0.25},
        "ben": {"anna": 0.0, "ben": 1.0},
    }
    assert lines_of(table) == [
        "asked for     anna      ben",
        "anna           75%      25%",
        "ben             0%     100%",
    ]


def test_a_judge_may_see_nobody_and_no_stranger() -> None:
    judge = ["anna", NOBODY]
    table = who_appears(["anna"], lambda name: [image("red")] * 2, lambda images: judge)
    assert table == {"anna": {"anna": 0.5, NOBODY: 0.5}}
    with pytest.raises(ValueError, match="'carl' was recognised"):
        who_appears(["anna"], lambda name: [image("red")], lambda images: ["carl"])


def test_images_of_a_character_are_those_that_name_it_alone() -> None:
    crop = ResizeCrop(Size(8, 8), 0, 0, Size(8, 8))
    captions = [
        "a photo of anna",
        "Anna at night",
        "anna and ben",
        "ben",
        "annabel",
        "ben",
    ]
    items = [
        BucketedSample(Sample(f"{index}.png", text, 1, Size(8, 8), "f"), crop)
        for index, text in enumerate(captions)
    ]
    both = items[3].sample._replace(captions=("ben", "ben with anna"))
    items.append(items[3]._replace(sample=both._replace(image="6.png")))
    found = images_of(["anna", "ben"], [*items, items[0]])
    assert {
        word: [item.sample.image for item in own] for word, own in found.items()
    } == {
        "anna": ["0.png", "1.png"],
        "ben": ["3.png", "5.png"],
    }
