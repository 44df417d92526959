"""What is asked of the model beyond its folder: quantized blocks, levels of
checkpointing, products in int8."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.process import SdTrainerProcess
from extensions.sd_trainer.setup import build_block_runner
from tests import running
from tests.diffusers_reference import CPU, open_tiny, relative
from tests.processes import several
from tests.running import lines
from toolkit.config.reading.loader import load_job
from toolkit.config.sections.model import ModelConfig
from toolkit.contracts.data import BatchSpec, PromptEmbeds, Size
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.errors import UserError
from toolkit.files.log import shown
from toolkit.memory.quantization import (
    RowwiseQuantized,
    WithRecoveryLora,
    quantize_weight,
    quantizer,
)
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.plan.memory import Machine
from toolkit.plan.memory_inputs import ItemGroup, count_trainable_params, step_shape
from toolkit.plan.memory_plan import plan_memory
from toolkit.train.base_model import block_quantizer

RANK = 24


def recovery_tensors(model_folder: Path, qtype: str) -> dict[str, Tensor]:
    """A LoRA file's tensors: of each attention layer the best change of `RANK` that
    undoes its quantization."""
    model = open_tiny(model_folder)
    tensors = {}
    for target in model.lora_targets():
        if ".attn." in target:
            weight_OI = model.network_module.get_submodule(target).weight.detach()
            u, s, vh = torch.linalg.svd(
                weight_OI - quantize_weight(weight_OI, qtype).dequantize()
            )
            tensors[f"transformer.{target}.lora_A.weight"] = vh[:RANK].contiguous()
            tensors[f"transformer.{target}.lora_B.weight"] = (
                u[:, :RANK] * s[:RANK]
            ).contiguous()
    return tensors


def section(model_folder: Path, **keys) -> SimpleNamespace:
    return SimpleNamespace(
        model=ModelConfig(name_or_path=str(model_folder), quantize=True, **keys)
    )


@pytest.fixture
def ask(tiny_model: Path, said: list[str]):
    """The quantizer of a section with these keys, and what it said."""

    def ask(**keys):
        made = block_quantizer(section(tiny_model, **keys).model)
        return made(keys.get("qtype", "int8")), said

    return ask


@torch.no_grad()
def test_a_recovery_adapter_brings_the_output_closer(
    tiny_model: Path, ask, tmp_path: Path
) -> None:
    file = tmp_path / "recovery.safetensors"
    save_file(recovery_tensors(tiny_model, "int2"), file)
    transform, notes = ask(qtype="int2", accuracy_recovery_adapter=str(file))
    plain = open_tiny(tiny_model)
    without = open_tiny(
        tiny_model, transform_block=mixed_quantizer(plain.lora_targets())
    )
    recovered = open_tiny(tiny_model, transform_block=transform)
    prompt = PromptEmbeds.stack([plain.encode_prompt("a cat", [])])
    x_BCHW = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(0))
    exact, before, after = (
        model.predict_velocity(x_BCHW, torch.tensor([0.5]), prompt, [()])
        for model in (plain, without, recovered)
    )
    assert relative(after, exact) < 0.7 * relative(before, exact)
    block = recovered.blocks()[0]
    assert (
        type(block.attn.to_q.weight) is WithRecoveryLora
        and type(block.img_mlp.net[2].weight) is RowwiseQuantized
    )
    assert notes == [
        "accuracy-recovery adapter recovery.safetensors: added to 16 layers of int2, never trained and never saved; "
        "the other 12 are int8"
    ]


def mixed_quantizer(targets):
    """int2 for attention, int8 for the rest: the base of the recovery adapter, without
    it."""

    def transform(block: nn.Module, name: str) -> None:
        quantizer("int2", recovery={f"{name}.{layer}": NOTHING for layer in ATTENTION})(
            block, name
        )

    return transform


ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
             "attn.add_v_proj", "attn.to_add_out")  # fmt: skip
NOTHING = (torch.zeros(64, 1), torch.zeros(1, 64))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"some.layer.lora_A.weight": torch.ones(4, 64)},
            "1 keys are of layers that this model does not have",
        ),
        ({}, "recovery.safetensors changes no layer of this model's blocks."),
        (
            {
                "transformer_blocks.0.attn.to_q.lokr_w1": torch.ones(2, 2),
                "transformer_blocks.0.attn.to_q.lokr_w2": torch.ones(32, 32),
            },
            "recovery.safetensors is not a plain LoRA (transformer_blocks.0.attn.to_q).",
        ),
        (
            {
                "transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(4, 32),
                "transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(32, 4),
            },
            "transformer_blocks.0.attn.to_q",
        ),
    ],
    ids=["unknown", "empty", "another kind", "another size"],
)
def test_a_file_of_no_use_is_refused(
    ask, tmp_path: Path, keys: dict[str, Tensor], words: str
) -> None:
    file = tmp_path / "recovery.safetensors"
    save_file(keys, file)
    with pytest.raises(UserError) as caught:
        ask(qtype="int4", accuracy_recovery_adapter=str(file))
    assert words in str(caught.value)


def test_a_file_of_the_hub_is_brought(
    ask, tmp_path: Path, tiny_model: Path, monkeypatch
) -> None:
    from toolkit.train import base_model as frozen

    file = tmp_path / "recovery.safetensors"
    save_file(recovery_tensors(tiny_model, "int4"), file)
    asked = []
    monkeypatch.setattr(
        frozen, "download_file", lambda name, key: asked.append((name, key)) or file
    )
    ask(qtype="int4", accuracy_recovery_adapter="owner/repo/recovery.safetensors")
    assert asked == [
        ("owner/repo/recovery.safetensors", "model.accuracy_recovery_adapter")
    ]


def test_an_unquantized_model_has_no_quantizer(tiny_model: Path) -> None:
    assert block_quantizer(ModelConfig(name_or_path=str(tiny_model))) is None


@pytest.mark.slow
def test_a_job_trains_on_a_recovered_base_and_saves_its_own_lora_alone(
    run_py, write_job, trainer, make_pictures, tiny_model: Path, tmp_path: Path
) -> None:
    """Under ai-toolkit's names, with a layer outside of the blocks."""
    tensors = {
        name.replace("transformer.", "diffusion_model.", 1): tensor
        for name, tensor in recovery_tensors(tiny_model, "uint3").items()
    }
    tensors |= {"diffusion_model.img_in.lora_A.weight": torch.ones(1, 64)}
    tensors |= {"diffusion_model.img_in.lora_B.weight": torch.ones(64, 1)}
    save_file(tensors, tmp_path / "recovery.safetensors")
    model = {
        "name_or_path": str(tiny_model),
        "quantize": True,
        "qtype": "uint3|recovery.safetensors",
    }
    job = write_job(trainer(make_pictures(tmp_path / "photos", "a", "b"), model=model))
    result = run_py(job, "-v")
    assert result.returncode == 0, result.stderr
    assert "added to the frozen uint3 model: recovery.safetensors" in result.stdout
    assert (
        "added to 16 layers of uint3, never trained and never saved; the other 12 are int8"
        in result.stdout
    )
    assert "; 1 in it are left out, as they are not quantized" in result.stdout
    (file,) = (tmp_path / "output").glob("*/*.safetensors")
    with safe_open(file, framework="pt") as stored:
        ranks = {
            stored.get_slice(key).get_shape()[0]
            for key in stored.keys()  # noqa: SIM118
            if "lora_A" in key
        }
        moved = [
            bool(stored.get_tensor(key).any())
            for key in stored.keys()  # noqa: SIM118
            if "lora_B" in key
        ]
        assert stored.metadata()["accuracy_recovery_adapter"] == "recovery.safetensors"
    assert ranks == {4} and sum(moved) > len(moved) / 2
    losses = lines(file.parent / "metrics.jsonl")
    assert len(losses) == 2


@pytest.fixture(scope="module")
def five_blocks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "five"
    write_tiny_model(folder, TinySpec(layers=5))
    return str(folder)


def weights_of(file: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def section_on(model: str, **parts: object) -> SdTrainerConfig:
    given = {
        "type": "sd_trainer",
        "model": {"name_or_path": model},
        "datasets": [{"folder_path": "d"}],
    }
    return SdTrainerConfig.model_validate(given | parts)


BATCH = LatentBatch(
    torch.zeros(1, 16, 8, 8),
    PromptEmbeds(torch.zeros(1, 13, 4), (13,)),
    ((),),
    BatchSpec(0, (0,), (0,)),
    ("a",),
    torch.ones(1),
)


def heard_by_auto(
    section: SdTrainerConfig,
    compiled: bool = False,
    remembered: int = 0,
) -> dict:
    """What the block runner hears of the plan of a section and of `BATCH`, 77
    tokens."""
    heard, groups = {}, [ItemGroup(Size(4096, 4096), 0, False, False, 1, 30)]
    process = SimpleNamespace(
        section=section,
        plan=SimpleNamespace(memory=plan_memory(section, groups, Machine("cpu"))),
        model=SimpleNamespace(
            num_tokens=lambda latents, prompts, references: 64 * len(latents) + 13
        ),
        programs=SimpleNamespace(used=compiled),
        process_group=SimpleNamespace(all_gather_object=sorted),
        block_runner=SimpleNamespace(
            warn_of_slow_attention=lambda work, images: None,
            choose_checkpointing=lambda work, needed, gather: heard.update(
                work=work, needed=needed, gather=gather
            ),
        ),
    )
    run = SimpleNamespace(roles={"network": SimpleNamespace(state_bytes=remembered)})
    SdTrainerProcess._choose_checkpointing(process, run, BATCH)
    return heard


def test_auto_hears_of_the_step_and_of_the_optimizers_state(five_blocks: str) -> None:
    train = {"optimizer": "adamw", "gradient_accumulation": 2}
    section = section_on(
        five_blocks, network={"type": "dora", "linear": 4}, train=train
    )
    heard, trained = heard_by_auto(section), count_trainable_params(section)
    assert heard["work"] == step_shape(
        section, FAMILY.footprint(Path(five_blocks)), trained, 77
    )
    assert (heard["work"].kind, heard["work"].blocks, heard["work"].gradients_wait) == (
        "dora",
        5,
        True,
    )
    assert (heard["needed"], heard["gather"]) == (8 * trained.weights, sorted)
    resumed = heard_by_auto(section, remembered=7 * trained.weights)
    assert resumed["needed"] == trained.weights, "a run that goes on has it already"
    assert (
        heard_by_auto(section, compiled=True)["work"].compiled
        and not heard["work"].compiled
    )


def test_auto_hears_of_the_temporaries_of_an_optimizer_that_steps_in_the_backward_pass(
    five_blocks: str,
) -> None:
    train = {"optimizer": "adafactor", "max_grad_norm": 0}
    section, fused = (
        section_on(
            five_blocks,
            network={"type": "full"},
            train=train | {"fused_backward_pass": is_fused},
        )
        for is_fused in (False, True)
    )
    more = heard_by_auto(fused)["needed"] - heard_by_auto(section)["needed"]
    assert more == 4 * 4 * count_trainable_params(section).largest


def test_auto_hears_of_the_blocks_that_are_whole_although_they_are_shared_out(
    monkeypatch, five_blocks: str
) -> None:
    train = {"optimizer": "sgd", "parallel": "fsdp", "dtype": "bf16"}
    section, heard = section_on(five_blocks, network={"type": "full"}, train=train), []
    facts = FAMILY.footprint(Path(five_blocks))
    for processes in (1, 2):
        with several(monkeypatch, processes):
            heard.append(heard_by_auto(section))
    alone, shared_out = heard
    whole = facts.linear_params // 5 * (2 * 2 + 2 + 2 * 4)
    assert (alone["needed"], shared_out["needed"]) == (0, whole)
    half = alone["work"].gradients - 4 * facts.linear_params / 2
    # biases are dealt out, too
    assert shared_out["work"].gradients == pytest.approx(half, rel=0.02)


@pytest.mark.slow
def test_a_run_goes_on_with_other_settings_of_memory_in_the_same_bits(
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    five_blocks: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = make_pictures(tmp_path / "photos", "a", "b")

    def run(
        name: str, level: object, swapped: int, **changes: object
    ) -> tuple[list[float], dict[str, bytes]]:
        section = trainer(
            photos,
            train={"steps": 2, "lr": 1e-3, "gradient_checkpointing": level},
            model={
                "name_or_path": five_blocks,
                "quantize": True,
                "blocks_to_swap": swapped,
            },
            network={"type": "lora", "linear": 4, "linear_alpha": 4, "dropout": 0.1},
            save={"dtype": "float32", "save_every": 1, "max_states_to_keep": 0},
            **changes,
        )
        with shown():
            running.run_job(write_job(section, name=name))
        folder = tmp_path / "output" / name
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["loss"] for line in lines], weights_of(
            folder / f"{name}.safetensors"
        )

    plain = run("job", "auto", 0)
    assert "train.gradient_checkpointing auto: none (" in capsys.readouterr().out
    assert run("job", "full", 3, resume=1) == plain
    assert "model.blocks_to_swap: 0 -> 3" in capsys.readouterr().out
    assert run("other", "cheap", 4) == plain


def test_blocks_whose_saved_tensors_wait_are_not_compiled(
    tiny_model: Path, trainer, write_job, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "extensions.sd_trainer.setup.decide_compiling",
        lambda *given: asked.append(given[-1]),
    )
    section = trainer(tiny_model)
    for level, reason in (
        (
            "block_offload",
            "'gradient_checkpointing: block_offload' moves what they save",
        ),
        ("full", ""),
    ):
        section["train"] |= {"gradient_checkpointing": level}
        loaded = (
            load_job(write_job(section), lambda _: SdTrainerConfig).processes[0].section
        )
        assert (
            build_block_runner(
                loaded, open_tiny(tiny_model, reference_area=0), CPU
            ).level
            == level
        )
        assert asked.pop() == reason
