"""What a model's name means and what its files say; the hub cache is one of HF_HOME in
a temporary folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from tests.model_folders import write_cached, write_model
from tests.quantized import mark
from tests.toolkit.config.conftest import trainer
from toolkit.config.sections.model_files import (
    OTHERS,
    ModelFolder,
    families,
    looks_like_a_path,
    model_fault,
    published,
    weight_files,
    where_else,
)
from toolkit.errors import UserError
from toolkit.registry import FAMILIES

FROM_EXTENSIONS = [
    title
    for one in families()
    if one.arch not in FAMILIES
    for title in one.published.values()
]

MADE_FROM_THEM = [
    "what is made from them",
    *(f"{one.title}s of its own" for one in families() if not one.published),
]
"""What is trained beside the published models; a part may add a family of its own."""

OURS = (
    "and this program trains Qwen-Image-Edit-2509, Qwen-Image-Edit-2511, Qwen-Image, Qwen-Image-2512, Qwen-Image-Edit, "
    "Qwen-Image-Layered, Qwen-Image-2.1, Qwen-Image-2.1-Turbo, "
    f"{', '.join([*FROM_EXTENSIONS, *MADE_FROM_THEM[:-1], f'and {MADE_FROM_THEM[-1]}'])}."
)
REMEDY = "Give a folder in diffusers layout, or a hub id such as 'Qwen/Qwen-Image-Edit-2509'."


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HF_HOME, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "home"


def test_the_tables_know_the_families() -> None:
    assert set(FAMILIES) <= {family.arch for family in families()}
    assert published() and not set(published()) & set(OTHERS)
    assert [pattern for pattern in OTHERS if pattern != pattern.lower()] == []


# ------------------------------------------------------------ path or hub id


def test_what_cannot_be_a_hub_id_is_a_path() -> None:
    ids = (
        "Qwen/Qwen-Image-Edit-2509 someone/my_model.v2 a/b black-forest-labs/FLUX.1-dev"
    )
    assert [name for name in ids.split() if looks_like_a_path(name)] == []
    paths = [
        *("./a/b", "/a/b", "~/b", "a\\b", "C:/b", "a/b/c", "a/b/", "a/", "/", "name"),
        *("my models/edit", "a/b--c", "a/..b", "a/b.safetensors", "a/b.GGUF"),
        *("a/b.ckpt", "output/x", "models/qwen_image", "checkpoints/last"),
    ]
    assert [name for name in paths if not looks_like_a_path(name)] == []


def test_a_name_below_a_folder_that_is_here_is_a_path_unless_it_is_known(
    tmp_path: Path, home: Path
) -> None:
    for folder in ("mine", "Qwen"):
        (tmp_path / folder).mkdir()
    assert looks_like_a_path("mine/model")
    assert not looks_like_a_path(next(iter(published())))
    assert not looks_like_a_path("Qwen/Qwen-Image-2.0")
    write_cached(home, "mine/model")
    assert not looks_like_a_path("mine/model")


# ------------------------------------------------------------ local folders


NOWHERE = "does not exist (working directory: {here}). "
NO_FOLDER = "is a file and no model folder. "
WEIGHTS = "diffusion_models/qwen_image_bf16.safetensors"
INDEX = "model/model_index.json"
PARTS = "transformer vae text_encoder tokenizer processor scheduler"
LOCAL = [
    # what is there beside the model in `models/edit`, the name, what is said of it
    ({}, "models/edit", ""),
    ({}, "{here}/models/edit", ""),
    *(
        ({}, name, f"{name!r} {NOWHERE}Did you mean 'models/edit'? {REMEDY}...")
        for name in ("models/edti", "./Modles/Edit", "models/edit_")
    ),
    ({}, "models/something", f"'models/something' {NOWHERE}{REMEDY}..."),
    (
        {"someone/a.txt": b""}, "someone/model",
        f"'someone/model' {NOWHERE}{REMEDY} If it is one: 'someone' is a folder here, so run "
        "`hf download someone/model` first.",
    ),
    *(({}, name, f"{name!r} {NOWHERE}{REMEDY}") for name in ("other/x.safetensors", "x.ckpt")),
    ({}, "/tmp/none/x.gguf", f"'/tmp/none/x.gguf' {NOWHERE}{REMEDY} Of another machine: --map /tmp/none=NEW."),
    *(
        ({WEIGHTS: b""}, name, f"{name!r} {NOWHERE}Did you mean '{WEIGHTS}'? {REMEDY}")
        for name in (WEIGHTS.replace("bf16", "bf6"), WEIGHTS.replace("models", "model"))
    ),
    ({"alone.safetensors": b""}, "alone.safetensors", f"'alone.safetensors' {NO_FOLDER}{REMEDY}"),
    *(
        ({"models/edit/vae/x.safetensors": b""}, name, f"{name!r} {NO_FOLDER}Did you mean 'models/edit'? {REMEDY}")
        for name in ("models/edit/vae/x.safetensors", "models/edit/model_index.json")
    ),
    *(
        ({}, name, f"{name!r} holds no model_index.json. Did you mean 'models/edit'? {REMEDY}")
        for name in ("models", "models/edit/transformer", "./models/")
    ),
    *(
        ({INDEX: index}, "./model", f"{INDEX}: has no '_class_name'...")
        for index in (b"[]", b"null", b"3", b"{}", b'{"_class_name": null}', b'{"_class_name": 5}')
    ),
    *(
        ({INDEX: index}, "./model", f"{INDEX}: not readable (...")
        for index in (b"", b'{"_class_name": ', b"\xff\xfe\x00", b"[" * 100_000)
    ),
    (
        {INDEX: b'{"_class_name": "FluxPipeline"}'}, "./model",
        f"'./model' is another model: {INDEX} says 'FluxPipeline', {OURS} {REMEDY}",
    ),
    *(
        (
            {f"model/{part}": None}, "./model",
            f"'./model': {part}/ is missing in model. Copy or download the whole model.",
        )
        for part in PARTS.split()
    ),
    (
        {"model/vae/config.json": None, "model/tokenizer": None}, "./model",
        "'./model': vae/config.json, tokenizer/ are missing in model. Copy or download the whole model.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("files", "name", "said"), LOCAL)
def test_a_name_is_a_model_or_one_line_says_what_it_is(
    tmp_path: Path, files: dict[str, bytes | None], name: str, said: str
) -> None:
    write_model(tmp_path / "models" / "edit")
    if any(file.startswith("model/") for file in files):
        write_model(tmp_path / "model")
    for file, content in files.items():
        if content is None:
            gone = tmp_path / file
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        else:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(content)
    found = model_fault(name.format(here=tmp_path), None)
    begin, dots, _ = said.format(here=tmp_path).partition("...")
    assert found.startswith(begin) and (dots or found == begin), found
    assert "\n" not in found


def test_what_is_not_here_is_known_by_its_published_name() -> None:
    families = {
        "Qwen/Qwen-Image-2.0": "Qwen-Image-2.0",
        "Qwen/Qwen3-VL-8B-Instruct": "a language model",
        "black-forest-labs/FLUX.1-dev": "FLUX",
        "stabilityai/stable-diffusion-xl-base-1.0": "Stable Diffusion XL",
        "stabilityai/stable-diffusion-3.5-large": "Stable Diffusion",
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "Wan",
    }
    for name, family in families.items():
        said = f"{name!r} is another model ({family}), {OURS} {REMEDY}"
        assert model_fault(name, None) == said
    ours = (
        *("qwen/qwen-image-edit", "someone/Qwen-Image", "Qwen/Qwen-Image-2600"),
        *("Tongyi-MAI/Z-Image-Turob", "krea/Krea-2-Rav"),
        "black-forest-labs/FLUX.2-klein-4",
    )
    assert {name: model_fault(name, None) for name in (*published(), *ours)} == (
        dict.fromkeys((*published(), *ours), "")
    )


def test_the_files_in_the_cache_count_more_than_the_published_name(home: Path) -> None:
    write_cached(home, "Qwen/Qwen-Image-2.0")
    write_cached(home, "someone/flux", "FluxPipeline", without=PARTS)
    write_cached(home, "someone/edit", without=PARTS)
    assert model_fault("Qwen/Qwen-Image-2.0", None) == ""
    assert model_fault("someone/edit", None) == "", "an index alone decides too"
    assert "'someone/flux' is another model" in model_fault("someone/flux", None)


def test_a_dry_run_refuses_it_at_its_key(mistakes, tmp_path: Path) -> None:
    write_model(tmp_path / "other")
    mark(tmp_path / "other" / "text_encoder" / "config.json")
    (line,) = mistakes(trainer("model: {name_or_path: other}"))
    assert line.startswith(
        "7:29: process[0].model.name_or_path: other/text_encoder/config.json: the text_encoder is "
    )


def test_what_the_hub_does_not_have_may_be_a_misspelt_folder(tmp_path: Path) -> None:
    write_model(tmp_path / "weights" / "edit")
    said = f"If a local folder is meant, it is not there (working directory: {tmp_path}). Did you mean 'weights/edit'? "
    assert where_else("wieghts/edit") == said


def test_a_folder_seen_from_elsewhere_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "models" / "edit")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert "Did you mean '../../models/edit'? " in model_fault("models/edit", None)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Qwen-Image-2.1", "Qwen/Qwen-Image-2.1"),
        ("Qwen/QwenImage-2.1", "Qwen/Qwen-Image-2.1"),
        ("Qwen/Qwen-Image-Edit2511", "Qwen/Qwen-Image-Edit-2511"),
        ("/data/qwen/qwen-image-2512/", "Qwen/Qwen-Image-2512"),
        ("someone/mascots", ""),
    ],
)
def test_a_misspelt_id_is_answered_with_the_published_one(
    name: str, meant: str
) -> None:
    said = model_fault(name, None) or where_else(name)
    assert (f"Did you mean {meant!r}? " if meant else "working directory") in said
    assert ("Did you mean" in said) == bool(meant)


@pytest.mark.parametrize("name", ["output/mine", "output/mine/mine.safetensors"])
def test_a_lora_is_no_model(tmp_path: Path, name: str) -> None:
    (tmp_path / "output" / "mine").mkdir(parents=True)
    file, key = (
        tmp_path / "output" / "mine" / "mine.safetensors",
        "diffusion_model.transformer_blocks.0.a.lora_A.weight",
    )
    for found, told in ((key, True), ("transformer_blocks.0.a.weight", False)):
        save_file({found: torch.zeros(1)}, file)
        assert (
            "It is a LoRA: give the model, and the file as model.base_loras"
            in model_fault(name, None)
        ) == told


# ------------------------------------------------------------ hub ids


@pytest.mark.parametrize("listed", [False, True])
def test_a_hub_model_of_another_family_is_refused(home: Path, listed: bool) -> None:
    index = (
        write_cached(home, "someone/model", "FluxPipeline", listed=listed)
        / "model_index.json"
    )
    assert model_fault("someone/model", None) == (
        f"'someone/model' is another model: {index} says 'FluxPipeline', {OURS} {REMEDY}"
    )


def test_the_revision_decides_which_index(home: Path) -> None:
    snapshot = write_cached(home, "someone/model", "FluxPipeline")
    write_model(snapshot.parent / ("b" * 40))
    (snapshot.parents[1] / "refs" / "edit").write_text("b" * 40)
    for revision, refused in (
        ("main", True),
        ("a" * 40, True),
        ("edit", False),
        ("b" * 40, False),
        ("none", False),
    ):
        assert bool(model_fault("someone/model", revision)) is refused, revision


def test_a_hub_model_that_lacks_a_part_for_good_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For good: the repository has no more, or the hub may not be asked. Else the run
    completes the download."""
    listed = write_cached(home, "someone/listed", without="vae", listed=True)
    broken_off = write_cached(home, "someone/broken", without="vae processor")
    remedy = "Copy or download the whole model."
    assert (
        model_fault("someone/listed", None)
        == f"'someone/listed': vae/ is missing in {listed}. {remedy}"
    )
    assert model_fault("someone/broken", None) == ""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model_fault("someone/broken", None) == (
        f"'someone/broken': vae/, processor/ are missing in {broken_off}. {remedy}"
    )


def test_a_repository_without_an_index_is_no_model(home: Path) -> None:
    snapshot = write_cached(
        home, "someone/lora", without="model_index.json", listed=True
    )
    assert (
        model_fault("someone/lora", None)
        == f"'someone/lora' holds no model_index.json ({snapshot}). {REMEDY}"
    )
    # Where files are still missing, the run asks the hub for it.
    write_cached(home, "someone/other", without="model_index.json")
    (write_cached(home, "someone/broken", listed=True) / "model_index.json").unlink()
    assert (
        model_fault("someone/other", None) == model_fault("someone/broken", None) == ""
    )


# ------------------------------------------------------------ contents


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "copy")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("text_encoder/config.json", "[]", "holds no JSON object"),
        ("vae/config.json", '{"base_dim": ', "not readable"),
        ("processor/preprocessor_config.json", "null", "holds no JSON object"),
        ("tokenizer/vocab.json", "{", "not readable"),
        (
            "scheduler/scheduler_config.json",
            '{"base_shift": "high"}',
            "base_shift: 'high' is not a number",
        ),
        (
            "scheduler/scheduler_config.json",
            '{"shift_terminal": NaN}',
            "shift_terminal: nan is not a number",
        ),
        (
            "scheduler/scheduler_config.json",
            '{"base_image_seq_len": 4096}',
            "and max_image_seq_len are equal",
        ),
        (
            "transformer/config.json",
            '{"num_layers": 0}',
            "num_layers: 0 is not a whole number from 1 to 1000",
        ),
        (
            "transformer/config.json",
            '{"num_layers": 1000000000}',
            "num_layers: 1000000000 is not a whole number",
        ),
        (
            "transformer/config.json",
            '{"attention_head_dim": "64"}',
            "attention_head_dim: '64' is not a whole number",
        ),
        (
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            "[]",
            "holds no JSON object",
        ),
        (
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            '{"weight_map": {"a": 1}}',
            "has no 'weight_map'",
        ),
        (
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            '{"weight_map": {"a": "../other/weights.safetensors"}}',
            "'../other/weights.safetensors' is not the name of a file in this folder",
        ),
    ],
)
def test_a_file_that_says_nothing_usable_is_named(
    copy: Path, file: str, content: str, words: str
) -> None:
    assert model_fault(str(copy), None) == ""
    (copy / file).write_text(content)
    fault = model_fault(str(copy), None)
    assert (
        fault.startswith(f"{copy / file}: ")
        and words in fault
        and fault.endswith("the model again.")
    )


OF_2509 = "of another model; a Qwen-Image-Edit-2509 has"


@pytest.mark.parametrize(
    ("file", "keys", "words"),
    [
        (
            "transformer/config.json",
            {"_class_name": "QwenImage21Transformer2DModel"},
            OF_2509,
        ),
        (
            "transformer/config.json",
            {"use_additional_t_cond": True},
            f"true is {OF_2509} false",
        ),
        (
            "transformer/config.json",
            {"guidance_embeds": True},
            f"true is {OF_2509} false",
        ),
        (
            "transformer/config.json",
            {"in_channels": 128},
            "in_channels: 128, and the VAE of this model has 64",
        ),
        (
            "transformer/config.json",
            {"joint_attention_dim": 3584},
            "and the text encoder of this model has 64",
        ),
        (
            "vae/config.json",
            {"_class_name": "AutoencoderKLQwenImage21"},
            f"{OF_2509} 'AutoencoderKLQwenImage'",
        ),
        ("vae/config.json", {"input_channels": 4}, f"input_channels: 4 is {OF_2509} 3"),
        (
            "text_encoder/config.json",
            {"architectures": ["Qwen3VLForConditionalGeneration"]},
            OF_2509,
        ),
        (
            "model_index.json",
            {"processor": ["transformers", "Qwen3VLProcessor"]},
            f"{OF_2509} 'Qwen2VLProcessor'",
        ),
        (
            "transformer/config.json",
            {"out_channels": None},
            "out_channels: 64, and the VAE of this model has 16",
        ),
        (
            "processor/preprocessor_config.json",
            {"patch_size": 16},
            "and the text encoder of this model has 14",
        ),
        (
            "processor/preprocessor_config.json",
            {"image_processor_type": "CLIPImageProcessor"},
            "image_processor_type: 'CLIPImageProcessor' is of another model than the text encoder",
        ),
        (
            "scheduler/scheduler_config.json",
            {"time_shift_type": "linear"},
            'samples are made with "exponential" alone',
        ),
        (
            "scheduler/scheduler_config.json",
            {"use_karras_sigmas": True},
            "true: samples are made with false alone",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "UniPCMultistepScheduler"},
            "samples are made with",
        ),
        ("scheduler/scheduler_config.json", {"shift": 0}, "shift: 0 is not above 0"),
    ],
)
def test_a_part_of_another_model_is_named(
    copy: Path, file: str, keys: dict[str, object], words: str
) -> None:
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    fault = model_fault(str(copy), None)
    place = copy / "transformer/config.json" if "the VAE" in words else path
    assert fault.startswith(f"{place}: ") and words in fault and "\n" not in fault


@pytest.mark.parametrize(
    ("pipeline", "key", "value", "title"),
    [
        ("QwenImage21Pipeline", "causal_condition", False, "Qwen-Image-2.1"),
        ("QwenImagePipeline", "zero_cond_t", True, "Qwen-Image"),
        ("QwenImageEditPipeline", "zero_cond_t", True, "Qwen-Image-Edit"),
    ],
)
def test_a_transformer_with_another_setting_is_of_another_model(
    tmp_path: Path, pipeline: str, key: str, value: bool, title: str
) -> None:
    config = write_model(tmp_path / "model", pipeline) / "transformer" / "config.json"
    config.write_text(json.dumps({key: value}))
    said, own = json.dumps(value), json.dumps(not value)
    assert model_fault("./model", None) == (
        f"model/transformer/config.json: {key}: {said} is of another model; a {title} has {own}. "
        "Copy or download the model again."
    )


def test_a_tokenizer_without_the_token_of_images_is_of_another_model(
    copy: Path,
) -> None:
    assert model_fault(str(copy), None) == ""
    for file in (copy / "tokenizer").glob("*.json"):
        file.write_text(file.read_text().replace("<|image_pad|>", "<|picture|>"))
    fault = model_fault(str(copy), None)
    assert fault.startswith(
        f"{copy / 'tokenizer'}: has no token <|image_pad|>, so is of another model than the text"
    )


def test_a_processor_saved_as_one_file_is_looked_into(copy: Path) -> None:
    image = json.loads((copy / "processor" / "preprocessor_config.json").read_text())
    (copy / "processor" / "preprocessor_config.json").unlink()
    for patch, fault in (
        (14, ""),
        (
            16,
            "processor_config.json: patch_size: 16, and the text encoder of this model",
        ),
    ):
        nested = {
            "processor_class": "Qwen2VLProcessor",
            "image_processor": image | {"patch_size": patch},
        }
        (copy / "processor" / "processor_config.json").write_text(json.dumps(nested))
        assert fault in model_fault(str(copy), None) and bool(fault) == bool(
            model_fault(str(copy), None)
        )


def test_what_makes_no_other_model_is_no_mistake(copy: Path) -> None:
    """A class of somebody's own, classes that do the same, an empty quantization."""
    index = json.loads((copy / "model_index.json").read_text())
    for classes in (
        {"processor": ["my_module", "WithoutVideos"]},
        {
            "processor": ["transformers", "Qwen2_5_VLProcessor"],
            "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        },
    ):
        (copy / "model_index.json").write_text(json.dumps(index | classes))
        assert model_fault(str(copy), None) == "", classes
    for said in (None, {}):
        for part in ("transformer", "text_encoder", "vae"):
            mark(copy / part / "config.json", said)
        assert model_fault(str(copy), None) == "", said


@pytest.mark.parametrize(
    ("file", "missing"),
    [
        ("tokenizer/merges.txt", "tokenizer/tokenizer.json or merges.txt"),
        (
            "processor/preprocessor_config.json",
            "processor/preprocessor_config.json or processor_config.json",
        ),
    ],
)
def test_a_missing_file_of_a_part_is_named(copy: Path, file: str, missing: str) -> None:
    (copy / file).unlink()
    assert f"{missing} is missing in {copy}" in model_fault(str(copy), None)


def test_weights_that_are_cut_off_or_not_there_are_seen_by_their_header(
    copy: Path,
) -> None:
    [weights] = (copy / "vae").glob("*.safetensors")
    whole = weights.read_bytes()
    for length in (len(whole) - 1, 9, 0):
        weights.write_bytes(whole[:length])
        assert model_fault(str(copy), None).startswith(f"{weights}: damaged weights (")
    weights.unlink()
    assert model_fault(str(copy), None).startswith(f"{copy / 'vae'}: has no weights (")
    shard = max((copy / "transformer").glob("*.safetensors"))
    weights.write_bytes(whole)
    shard.unlink()
    assert f"missing weight files: {shard.name}. " in model_fault(str(copy), None)


def test_sizes_that_a_model_from_nothing_has_never_seen(tmp_path: Path) -> None:
    buckets = {
        "buckets": {
            "0": {"resolution": [96, 160], "count": 3},
            "1": {"resolution": [128, 128], "count": 1},
        }
    }
    (tmp_path / "training.json").write_text(
        json.dumps({"ss_bucket_info": json.dumps(buckets)})
    )
    sizes, folder = [(128, 96), (64, 128), (96, 192)], ModelFolder(tmp_path)
    # a fine-tuned model knows more than it was trained on last
    assert folder.size_note(sizes) is None
    (tmp_path / "new_model.json").write_text("{}")
    assert folder.learned_sizes() == [(96, 160), (128, 128)]
    assert folder.size_note(sizes[:1]) is None
    assert "64x128: the model was trained on sides of 96 to 160 pixels" in str(
        folder.size_note(sizes)
    )
    assert str(folder.size_note(sizes[2:])).startswith("96x192")
    for damaged in ("{}", "[]", '{"ss_bucket_info": "7"}', '{"ss_bucket_info": 7}'):
        (tmp_path / "training.json").write_text(damaged)
        assert folder.learned_sizes() == []


# ------------------------------------------------------------ quantized weights


@pytest.mark.parametrize(
    ("part", "remedy"),
    [
        (
            "transformer",
            "transformer_path; model.quantize and qtype quantize it while it is loaded.",
        ),
        (
            "text_encoder",
            "text_encoder_path; model.quantize_te and qtype_te quantize it while it is loaded.",
        ),
        ("vae", "vae_path."),
    ],
    ids=["transformer", "text_encoder", "vae"],
)
def test_weights_that_another_program_quantized_are_refused_by_name(
    copy: Path, part: str, remedy: str
) -> None:
    place = mark(copy / part / "config.json")
    said = (
        f"{place}the {part} is quantized by sdnq (uint4), which is not read. Give "
        "the bf16 model that it was made from"
    )
    assert model_fault(str(copy), None) == f"{said}, or a bf16 file as model.{remedy}"
    assert model_fault(str(copy), None, {part}) == ""
    with pytest.raises(UserError) as refused:
        weight_files(copy / part)
    assert str(refused.value) == model_fault(str(copy), None)


def test_the_configs_of_a_broken_off_download_say_it(home: Path) -> None:
    snapshot = write_cached(
        home, "someone/quantized", without="vae processor", listed=False
    )
    assert model_fault("someone/quantized", None) == ""
    mark(snapshot / "transformer" / "config.json")
    assert "the transformer is quantized by sdnq (uint4)" in model_fault(
        "someone/quantized", None
    )
    assert model_fault("someone/quantized", None, {"transformer"}) == ""
    (snapshot / "transformer" / "config.json").write_text("{")
    assert "transformer/config.json: not readable" in model_fault(
        "someone/quantized", None
    )
