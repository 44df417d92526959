"""What the page of a run does with its files: images, the comparison, and what it waits
for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from starlette.testclient import TestClient

from extensions.tools.ui.queue import RUNNING, Queue, trains_elsewhere
from extensions.tools.ui.state import Ui
from extensions.tools.ui.views.queue import queue_of
from toolkit.system.nvidia import Gpu
from toolkit.train.lock import run_lock

FORM = {
    "file": "one.safetensors",
    "prompt": "a cat",
    "strength": "0.8",
    "seed": "7",
    "count": "2",
    "width": "64",
}


@pytest.fixture
def run(
    ui: Ui,
    make_run: Callable[..., Path],
    trainer,
    write_job,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A finished run whose job can be read, in the working directory; nothing works on
    the queue."""
    monkeypatch.chdir(ui.output.parent)
    monkeypatch.setattr(Queue, "start_runner", lambda self: None)
    folder = make_run("one", sampled=(0, 5, 10))
    shutil.copy(folder / "one.safetensors", folder / "one_000000005.safetensors")
    Image.new("RGB", (64, 64), "teal").save(ui.datasets / "control.png")
    samples = {
        "width": 64,
        "height": 96,
        "sample_steps": 3,
        "guidance_scale": 2,
        "neg": "blurred",
        "seed": 5,
    }
    samples["samples"] = [
        {
            "prompt": "[trigger] as a cat",
            "ctrl_img_1": str(ui.datasets / "control.png"),
        },
        {"prompt": "two"},
    ]
    section = trainer(ui.datasets, trigger_word="pipo", sample=samples)
    write_job(section, name="one").rename(folder / "config.yaml")
    return folder


def argv(ui: Ui) -> list[list[str]]:
    """The commands that wait, in their order."""
    return [list(entry.argv) for entry in queue_of(ui).entries()]


def test_a_form_is_a_command_of_the_queue(
    client: TestClient, ui: Ui, run: Path
) -> None:
    save_lora(run / "one.safetensors")
    text = client.get("/runs/one").text
    for shown in (
        "pipo as a cat",
        'value="96"',
        'value="5"',
        "one_000000005.safetensors</option>",
        'id="controls"',
    ):
        assert shown in text
    answer = client.post(
        "/runs/one/try", data=FORM | {"control": "0"}, follow_redirects=False
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/one#try")
    assert argv(ui) == [[
        "generate", "--lora=output/one/one.safetensors:0.8", "--prompt=a cat", "--width=64",
        "--trigger-word=pipo", "--steps=3", "--cfg=2", "--negative=blurred", "--seed=7", "--seed=8",
        f"--reference={ui.datasets / 'control.png'}",
        "--output=output/one/tried",
    ]]  # fmt: skip
    assert "waits in the queue" in client.get("/runs/one").text
    client.post("/runs/one/try", data=FORM | {"control": "0"})
    assert len(argv(ui)) == 1  # pressed twice


def test_a_mistake_is_told_at_its_field(client: TestClient, ui: Ui, run: Path) -> None:
    save_lora(run / "one.safetensors")
    for given, field, told in (
        ({"strength": "strong"}, "strength", "Write a number"),
        ({"seed": "-3"}, "seed", "must be &gt;= 0"),
        ({"seed": " "}, "seed", "Write a whole number, such as 42."),
        ({"width": "10"}, "width", "must be &gt;= 64"),
        ({"prompt": "a cat --w wide"}, "prompt", "is not a whole number"),
        ({"control": "send"}, "control", "Choose an image file"),
        *(
            ({"count": count}, "count", "Choose 1 to 4 images")
            for count in ("x", "0", "-1", "5", "1000000000", "", "1.5", "٣")
        ),
        *(
            ({"control": control}, "control", "no such control image")
            for control in (
                "99",
                "-1",
                "1",
                "x",
                "../a.png",
                "control:none.png",
                "control:../../run.json",
                "0:x",
                "/etc/passwd",
                "send:",
                "²",
            )
        ),
    ):
        answer = client.post("/runs/one/try", data=FORM | given)
        assert answer.status_code == 400 and not argv(ui)
        _, _, rest = answer.text.partition(f'id="try-{field}-bad"')
        assert told in rest.partition("</span>")[0], field
        # nothing that was typed is lost
        assert given.get("prompt", "a cat") in answer.text


def test_what_is_not_of_the_run_is_refused(
    client: TestClient, ui: Ui, run: Path
) -> None:
    for file in ("../one.safetensors", "run.json", "", "/etc/passwd"):
        assert (
            client.post("/runs/one/try", data=FORM | {"file": file}).status_code == 404
        )
    for place in (
        "tried/..%2frun.json",
        "samples/000000010_0.png",
        "control/..",
        "compared/none.png",
        "tried/none.png",
    ):
        assert client.get(f"/runs/one/images/{place}").status_code == 404
    (run / "tried").mkdir()
    (run / "tried" / "page.png").write_text("<script>")
    assert client.get("/runs/one/images/tried/page.png").status_code == 415
    assert client.get("/runs/none/tried").status_code == 404 and not argv(ui)


def test_a_control_image_is_sent_and_kept(
    client: TestClient, ui: Ui, run: Path
) -> None:
    save_lora(run / "one.safetensors")
    data = BytesIO()
    Image.new("RGB", (64, 64), "coral").save(data, "PNG")
    files = [("image", ("mine.png", data.getvalue()))] * 2  # the same one twice
    client.post("/runs/one/try", data=FORM | {"control": "send"}, files=files)
    kept = run / "tried" / "control" / "mine.png"
    assert kept.read_bytes() == data.getvalue()
    assert "--reference=output/one/tried/control/mine.png" in argv(ui)[0]
    assert client.get("/runs/one/images/control/mine.png").status_code == 200
    assert 'value="control:mine.png"' in client.get("/runs/one").text
    wrong = client.post(
        "/runs/one/try",
        data=FORM | {"control": "send"},
        files={"image": ("a.txt", b"text")},
    )
    assert wrong.status_code == 400 and "a.txt is not an image" in wrong.text
    torn = client.post(
        "/runs/one/try",
        data=FORM | {"control": "send"},
        files={"image": ("a.png", b"\x89PNG")},
    )
    assert torn.status_code == 400 and "a.png" in torn.text
    assert [path.name for path in (run / "tried" / "control").iterdir()] == ["mine.png"]


def test_what_somebody_looks_at_comes_before_runs_that_wait(
    client: TestClient, ui: Ui, run: Path
) -> None:
    save_lora(run / "one.safetensors")
    (ui.output.parent / "job.yaml").write_text("job: extension")
    queue_of(ui).add(["job.yaml"], "a long job")
    for prompt in ("first", "second"):
        client.post("/runs/one/try", data=FORM | {"prompt": prompt})
    assert [words[2] if len(words) > 2 else words[0] for words in argv(ui)] == [
        "--prompt=first",
        "--prompt=second",
        "job.yaml",
    ]


def test_a_run_that_was_started_elsewhere_is_told(
    client: TestClient, ui: Ui, run: Path, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_lora(run / "one.safetensors")
    client.post("/runs/one/try", data=FORM)
    other = make_run("other", status="running")
    with run_lock(other):
        monkeypatch.setattr("extensions.tools.ui.machine.ask_nvml", lambda: (None, []))
        told = client.get("/runs/one/tried").text
        assert (
            "It begins when other has ended, because both need this machine&#39;s processor."
            in told
        )
        monkeypatch.setattr(
            "extensions.tools.ui.machine.ask_nvml",
            lambda: ("", [Gpu("a GPU", 8, 1, 0)]),
        )
        ui.memory.pop(("kept", "machine"))
        assert "because both need the GPU." in client.get("/runs/one/tried").text
        assert [
            found.name for found in trains_elsewhere(ui.runs(), queue_of(ui).entries())
        ] == ["other"]
        entry = queue_of(ui).save(
            queue_of(ui).entries()[0], state=RUNNING, runs=(str(other),)
        )
        assert trains_elsewhere(ui.runs(), [entry]) == []
    assert "It begins when" not in client.get("/runs/one/tried").text


def test_all_files_are_compared_by_two_commands(
    client: TestClient, ui: Ui, run: Path
) -> None:
    answer = client.post("/runs/one/compare", follow_redirects=False)
    assert answer.headers["location"] == "/runs/one#compared"
    grid, best = argv(ui)
    assert grid[:3] == [
        "grid",
        "--lora=output/one/one_000000005.safetensors",
        "--lora=output/one/one.safetensors",
    ]
    assert grid[-1] == "--output=output/one/compared" and best == [
        "best",
        "--run=output/one",
    ]
    assert [entry.name for entry in queue_of(ui).entries()] == [
        "Compare all files: one",
        "Compare all files, the numbers: one",
    ]
    prompts = (run / "compared" / "prompts.yaml").read_text()
    assert "pipo as a cat" in prompts and "two" in prompts and "control.png" in prompts
    (run / "one_000000005.safetensors").unlink()
    assert client.post("/runs/one/compare").status_code == 409
    assert "Compare all files</button>" not in client.get("/runs/one").text


def test_what_cannot_be_measured_is_said_with_a_remedy_on_the_page(
    client: TestClient, run: Path
) -> None:
    assert "measures which one to use" in client.get("/runs/one").text
    measured = {
        "recommended": None,
        "reason": "no images are held out",
        "measured_on": "",
        "files": [],
    }
    (run / "best.json").write_text(json.dumps(measured))
    for text in (client.get("/runs/one").text, client.get("/runs/one/compared").text):
        assert "It cannot be told which file is best: no images are held out." in text
        assert "validation.every to 1." in text, (
            "a run of 10 steps would never reach 250"
        )
        assert (
            "Use None" not in text
            and "Use :" not in text
            and "measures which one to use" not in text
        )


@pytest.mark.parametrize(
    ("first", "last", "recommended", "said"),
    [
        (0.4, 0.5, "a", "Step 5 is nearer to your images"),
        (0.5, 0.5, "a", "Step 5 is as good as the later ones"),
        (0.5, 0.4, "b", "It is the last one"),
    ],
)
def test_which_file_is_best_is_said_in_a_word(
    client: TestClient,
    run: Path,
    first: float,
    last: float,
    recommended: str,
    said: str,
) -> None:
    rows = [
        {"file": name, "step": step, "loss": loss}
        for name, step, loss in (("a", 5, first), ("b", 10, last))
    ]
    measured = {"recommended": recommended, "reason": "r", "files": rows}
    (run / "best.json").write_text(json.dumps(measured))
    text = client.get("/runs/one/compared").text
    sentence, _, why = text.partition("<summary>Why</summary>")
    assert said in sentence and f"{first:.4f}" not in sentence
    assert f"{first:.4f}" in why and f"{last:.4f}" in why


def test_numbers_that_are_damaged_are_left_out(client: TestClient, run: Path) -> None:
    row = {"file": "one.safetensors", "step": 5, "loss": 0.125}
    measured = {
        "recommended": "one.safetensors",
        "reason": "the lowest loss",
        "measured_on": "16 <images>",
        "files": [row],
    }
    (run / "best.json").write_text(json.dumps(measured))
    text = client.get("/runs/one").text
    for shown in ("Use one.safetensors:", "0.1250", "16 &lt;images&gt;"):
        assert shown in text
    for damaged in (
        '{"files": 3}',
        '{"files": [3, {"file": []}]}',
        '{"files": [{"file": "a", "loss": "x"}]}',
    ):
        (run / "best.json").write_text(damaged)
        answer = client.get("/runs/one")
        assert answer.status_code == 200 and 'class="numbers"' not in answer.text


def save_lora(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """A LoRA of a layer in each block of the tiny model; its tensors, and the key of
    the first B."""
    stems = [
        f"diffusion_model.transformer_blocks.{block}.attn.to_q" for block in range(2)
    ]
    tensors = {f"{stem}.lora_A.weight": torch.ones(1, 64) for stem in stems}
    tensors |= {f"{stem}.lora_B.weight": torch.ones(64, 1) for stem in stems}
    save_file(tensors, path)
    return tensors, f"{stems[0]}.lora_B.weight"
