"""`run.py publish` against a hub on this machine, and at the end of a run."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from extensions.tools.publish.config import PublishConfig
from tests.conftest import readme_commands
from tests.http_server import QuietHandler, serving
from tests.running import run_tool
from toolkit.commands import command
from toolkit.errors import ConfigErrors, RunError, UserError
from toolkit.files.safetensors_io import read_metadata
from toolkit.files.writing import sha256_of
from toolkit.models.tiny import TinySpec, write_tiny_model

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123456789"


class Hub:
    """What was uploaded, and how the hub behaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.created: dict[str, Any] = {}
        self.public = False
        self.failures: list[int] = []
        """Statuses of the next answers."""
        self.tokens: set[str] = set()
        self.at_creation: Callable[[], object] = lambda: None


LAYER = "diffusion_model.transformer_blocks.0.attn.to_q"
WEIGHTS = {
    f"{LAYER}.lora_A.weight": torch.ones(2, 4),
    f"{LAYER}.lora_B.weight": torch.ones(4, 2),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that takes commits of small files, as the client library asks for them."""
    state = Hub()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def answer(self, body: bytes) -> None:
            state.tokens.add(self.headers.get("Authorization", ""))
            if state.failures:
                return self.send({"error": "not now"}, state.failures.pop(0))
            path = self.path.split("?")[0]
            if path == "/api/whoami-v2":
                return self.send({"name": "me", "type": "user"})
            if path == "/api/repos/create":
                state.created = json.loads(body)
                state.at_creation()
                return self.send({"url": f"{url}/me/{state.created['name']}"})
            if "/preupload/" in path:
                files = [
                    {"path": f["path"], "uploadMode": "regular"}
                    for f in json.loads(body)["files"]
                ]
                return self.send(
                    {
                        "files": [
                            {**file, "shouldIgnore": False, "oid": None}
                            for file in files
                        ]
                    }
                )
            if "/commit/" in path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        state.files[line["value"]["path"]] = base64.b64decode(
                            line["value"]["content"]
                        )
                return self.send(
                    {
                        "success": True,
                        "commitUrl": f"{url}/me/{state.created['name']}/commit/{'0' * 40}",
                        "commitOid": "0" * 40,
                    }
                )
            name = path.removeprefix("/api/models/").split("/revision")[0]
            info = {
                "id": name,
                "modelId": name,
                "sha": "0" * 40,
                "private": not state.public,
                "tags": [],
                "siblings": [],
            }
            return self.send({**info, "cardData": {"license": "apache-2.0"}})

        def send(self, value: Any, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(
            "extensions.tools.publish.process.time.sleep", lambda _: None
        )
        yield state


JOB = """\
job: extension
config:
  name: my_char
  process:
    - type: sd_trainer
      trigger_word: myc
      network: {type: lora, linear: 8, linear_alpha: 4}
      datasets: [{folder_path: /home/somebody/photos, resolution: [512, 768]}]
      train: {steps: 20, lr: 0.0002}
      model: {name_or_path: Qwen/Qwen-Image-Edit-2509, quantize: true, qtype: int4}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run, with samples of two steps and a report."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "output" / "my_char"
    (folder / "samples").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (folder / "run.json").write_text(
        '{"status": "finished", "name": "my_char", "step": 20, "samples": 40}'
    )
    (folder / "config.yaml").write_text(JOB.replace("/home/somebody", str(tmp_path)))
    (folder / "report.html").write_text("<p>report</p>")
    Image.effect_noise((64, 64), 50).save(tmp_path / "photos" / "secret-face.png")
    (tmp_path / "photos" / "secret-face.txt").write_text("SECRET CAPTION")
    (folder / "dataset-0123456789ab.json").write_text(
        json.dumps({f"{tmp_path}/photos/secret-face.png": "0" * 16})
    )
    (folder / "events.jsonl").write_text(
        json.dumps({"event": "start", "folder": f"{tmp_path}/photos"}) + "\n"
    )
    for name in ("my_char", "my_char_000000010"):
        save_file(
            WEIGHTS, folder / f"{name}.safetensors", {"training_info": '{"step": 20}'}
        )
    for step in (10, 20):
        for index in range(2):
            Image.new("RGB", (8, 8)).save(folder / "samples" / f"{step:09}_{index}.png")
    return folder


def private_in(files: Mapping[str, bytes], run: Path) -> list[tuple[str, str]]:
    """What must not be given away, with the file that holds it: paths, names and
    captions of the dataset, tokens."""
    marks = (
        str(run.parent.parent),
        "/home/",
        "secret-face",
        "SECRET CAPTION",
        'id="dataset"',
        TOKEN,
    )
    return [
        (name, mark)
        for name, data in files.items()
        for mark in marks
        if mark.encode() in data
    ]


def publish(*flags: str) -> PublishConfig:
    return run_tool("publish", flags)


def card_of(*flags: str, folder: str = "p") -> str:
    """The model card of a preview in this folder."""
    publish("output/my_char", "--repo", "me/x", "--preview", folder, *flags)
    return Path(folder, "README.md").read_text()


@pytest.mark.slow
def test_lora_card_samples_and_report_are_one_private_commit(
    hub: Hub, run: Path, said, capsys
) -> None:
    plain, public, preview = readme_commands(
        "extensions/tools/publish/README.md", "publish"
    )
    hub.failures, listed = [502, 429], []
    hub.at_creation = lambda: listed.extend(
        line.split()[-1] for line in said if line.startswith("  ")
    )
    publish(*plain)
    assert sorted(listed) == sorted(hub.files), "listed before anything is sent"
    assert private_in(hub.files, run) == [] and b"Curves" in hub.files["report.html"]
    assert "private" in hub.created.values() and hub.tokens <= {f"Bearer {TOKEN}", ""}
    samples = [f"samples/000000020_{index}.png" for index in range(2)]
    assert sorted(hub.files) == sorted(
        ["README.md", "my_char.safetensors", "report.html", *samples]
    )
    assert (
        hub.files["my_char.safetensors"] == (run / "my_char.safetensors").read_bytes()
    )
    card = hub.files["README.md"].decode()
    for line in (
        "base_model: Qwen/Qwen-Image-Edit-2509",
        "license: apache-2.0",
        "instance_prompt: myc",
        "pipeline_tag: text-to-image",
        "from diffusers import QwenImagePipeline",
        'pipe = QwenImagePipeline.from_pretrained("Qwen/Qwen-Image-Edit-2509", dtype=torch.bfloat16)',
        "pipe.prompt_template_encode_start_idx = 64",
        'images = pipe(prompt="myc", negative_prompt=" ").images',
        "| network | lora, rank 8, alpha 4 |",
        "| resolution | 512, 768 |",
        'pipe.load_lora_weights("me/my_char-lora", weight_name="my_char.safetensors")',
    ):
        assert line in card.splitlines(), line
    assert "photos" not in card
    assert any("again in 2 s" in line for line in said) and any(
        "/me/my_char-lora (private)" in line for line in said
    )
    assert TOKEN not in "".join(said) + capsys.readouterr().out

    hub.public = True
    with pytest.raises(UserError, match="me/my_char-lora is public"):
        publish(*plain)
    publish(*public)
    assert (
        "public" in hub.created.values()
        and "my_char_000000010.safetensors" in hub.files
    )
    before = dict(hub.files)
    publish(*preview)
    written = {
        path.relative_to("to_publish").as_posix()
        for path in Path("to_publish").rglob("*")
        if path.is_file()
    }
    assert (
        "README.md" in written
        and "samples/000000020_0.png" in written
        and hub.files == before
    )


def test_only_the_full_report_holds_the_dataset(hub: Hub, run: Path) -> None:
    (run / "report.html").unlink()
    run_tool("report", ["output/my_char"])
    publish("output/my_char", "--repo", "x", "--full-report")
    assert hub.files["report.html"] == (run / "report.html").read_bytes()
    found = {mark for name, mark in private_in(hub.files, run) if name == "report.html"}
    assert found == {
        str(run.parent.parent),
        "secret-face",
        "SECRET CAPTION",
        'id="dataset"',
    }


def test_paths_and_secrets_in_metadata_are_left_out_of_the_upload(
    hub: Hub, run: Path, said
) -> None:
    note = f"made from {run.parent.parent}/photos, /home/somebody/a.png and /home/somebody with {TOKEN}"
    weights = {"a": torch.arange(9.0), "b": torch.ones(3, dtype=torch.bfloat16)}
    save_file(weights, run / "my_char.safetensors", {"note": note, "sha256": "0" * 64})
    before = (run / "my_char.safetensors").read_bytes()
    publish("output/my_char", "--repo", "x")
    assert (
        private_in(hub.files, run) == []
        and (run / "my_char.safetensors").read_bytes() == before
    )
    sent = Path("sent.safetensors")
    sent.write_bytes(hub.files["my_char.safetensors"])
    assert read_metadata(sent) == {
        "note": "made from photos, a.png and ~ with <redacted>",
        "sha256": "0" * 64,
    }
    for name, tensor in load_file(sent).items():
        assert torch.equal(tensor, weights[name])
    assert f"`{sha256_of(sent)}`" in hub.files["README.md"].decode()
    assert (
        "my_char.safetensors: its metadata contains a path or a secret (note), which is removed"
        in said
    )


@pytest.mark.parametrize("name", ["README.md", "samples/000000020_0.png"])
def test_a_preview_overwrites_nothing(run: Path, name: str) -> None:
    mine = Path("mine") / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(
        UserError, match=rf"'mine/{name}' exists and is not overwritten"
    ):
        card_of("--licence", "mit", folder="mine")
    assert [path.read_text() for path in Path("mine").rglob("*") if path.is_file()] == [
        "mine"
    ]


@pytest.mark.parametrize(
    ("change", "lines", "absent"),
    [
        (
            ("Qwen/Qwen-Image-Edit-2509", "models/mine"),
            ['"path/to/mine", dtype=torch.bfloat16)  # the f'],
            "base_m",
        ),
        (
            ("resolution:", "control_path: /home/somebody/before, resolution:"),
            [
                "pipeline_tag: image-to-image",
                "from diffusers import QwenImageEditPlusPipeline",
                'images = pipe(image=[load_image("input.png")], prompt="myc", negative_prompt=" ").images',
            ],
            "prompt_template",
        ),
        (
            ("Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Layered"),
            ['image=[load_image("input.png").convert("RGBA")], prompt="myc"'],
            "QwenImageEdit",
        ),
        (("job: extension", "job: nothing"), ["license: mit"], "## Training"),
        (("an apache base", "asks for nothing"), ["license: mit"], "Built with"),
    ],
)
def test_the_card_says_how_the_file_is_loaded(
    run: Path, change: tuple[str, str], lines: list[str], absent: str
) -> None:
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(*change))
    card = card_of("--licence", "mit")
    assert all(line in card for line in lines), card
    assert absent not in card and "BASE_MODEL" not in card, card
    assert not Path("p/NOTICE").exists()


def test_the_card_of_a_file_that_diffusers_does_not_read_says_so(run: Path) -> None:
    last = max(run.glob("*.safetensors"), key=lambda path: len(path.name) * -1)
    parts = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    save_file(
        {f"{LAYER}.{part}": torch.ones(4, 4) for part in parts},
        last,
        read_metadata(last),
    )
    card = card_of("--licence", "mit")
    assert "diffusers loads plain LoRAs only" in card and "```python" not in card


@pytest.mark.parametrize("job_is_there", [True, False])
def test_what_the_licence_of_the_base_asks_for_is_written(
    run: Path, job_is_there: bool
) -> None:
    """By the job, or the LoRA's metadata where the job cannot be read; `--licence`
    gives the card another licence."""
    base = run.parent.parent / "base"
    write_tiny_model(base, TinySpec(arch="qwen_image_2"))
    (base / "LICENSE").write_text("the agreement")
    job = (
        (run / "config.yaml")
        .read_text()
        .replace("Qwen/Qwen-Image-Edit-2509, quantize: true, qtype: int4", str(base))
    )
    (run / "config.yaml").write_text(job if job_is_there else "job: {")
    save_file(
        {"a": torch.ones(1)},
        run / "my_char.safetensors",
        {"modelspec.architecture": "Qwen-Image-2.1/lora"},
    )
    card, notice = card_of(), Path("p/NOTICE").read_text()
    assert notice.startswith(
        "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. "
    )
    assert (
        f"**Built with Qwen**. {notice.strip()} [Licence](https://huggingface.co/Qwen/Qwen-Image-2.1/blob/"
        in card
    )
    assert (
        "license: other\nlicense_name: qwen-research\nlicense_link: https://huggingface.co/Qwen/"
        in card
    )
    assert Path("p/LICENSE").exists() == job_is_there
    card = card_of("--licence", "cc-by-4.0", folder="q")
    assert (
        "license: cc-by-4.0" in card
        and "license_name" not in card
        and "**Built with Qwen**" in card
    )


@pytest.mark.slow
def test_a_licence_that_is_not_known_is_told(run: Path, said: list[str]) -> None:
    """Of a local base without a card, and with one that names none."""
    base = run.parent.parent / "base"
    write_tiny_model(base, TinySpec(arch="qwen_image"))
    job = (
        (run / "config.yaml")
        .read_text()
        .replace("Qwen/Qwen-Image-Edit-2509, quantize: true, qtype: int4", str(base))
    )
    (run / "config.yaml").write_text(job)
    for folder, page in (
        ("p", None),
        ("q", "---\ntags: [a]\n---\n"),
        ("r", "---\nlicense: mit\n---\n"),
    ):
        if page:
            (base / "README.md").write_text(page)
        said.clear()
        card = card_of(folder=folder)
        told = "the licence of base is not known (its model card names none); set it with --licence"
        assert (told in said) == (folder < "r")
        assert ("license: mit" in card) == (folder == "r")
        if told in said:
            said.clear()
            card_of("--licence", "mit", folder=f"{folder}2")
            assert told not in said


def test_what_goes_wrong_ends_with_the_command_that_repeats_it(
    hub: Hub, run: Path, monkeypatch
) -> None:
    again = re.escape(command("publish", "output/my_char", "--repo", "x"))
    hub.failures = [500] * 2
    with pytest.raises(
        RunError, match=rf"the hub rejects it .*then: {again} --attempts 2$"
    ):
        publish("output/my_char", "--repo", "x", "--attempts", "2")
    hub.failures = [403]
    with pytest.raises(RunError, match=rf"token that may write to it, then: {again}$"):
        publish("output/my_char", "--repo", "x")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        RunError, match=rf"cannot be reached .*Later: {again} --attempts 1$"
    ):
        publish("output/my_char", "--repo", "x", "--attempts", "1")
    monkeypatch.setattr("extensions.tools.publish.process.get_token", lambda: None)
    with pytest.raises(UserError, match=r"no token for the hub\. Set HF_TOKEN"):
        publish("output/my_char", "--repo", "x")
    for flags, words in [
        (("output", "--repo", "x"), "no run is here"),
        (("output/my_char", "--repo", "a/b/c"), "--repo"),
    ]:
        with pytest.raises(ConfigErrors, match=words):
            publish(*flags)
    for file in run.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ConfigErrors, match="holds no saved LoRA"):
        publish("output/my_char", "--repo", "x")
