"""Whole jobs: what they leave, that they are continued to the same bytes, and that they learn."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BertModel, PreTrainedTokenizerFast


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


SAMPLE = {"sample_every": 2, "width": 64, "height": 64, "sample_steps": 2, "samples": [{"prompt": "a red square"}]}


@pytest.mark.parametrize("kind", ["SD3Transformer2DModel", "QwenImageTransformer2DModel"])
def test_what_a_run_leaves(start, flow_job, pictures: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    folder = start(
        flow_job(
            pictures,
            kind,
            save={"save_every": 2},
            sample=SAMPLE,
            validation={"fraction": 0.4, "every": 2},
            train={"ema_config": {"use_ema": True}},
        )
    )
    final, said = folder / "job", capsys.readouterr().out
    assert {"job_000000002", "job_000000004", "job_best", "samples", "start"} <= {p.name for p in folder.iterdir()}
    averages = load_file(folder / "state" / "step_000000004" / "ema.safetensors")
    transformer = getattr(diffusers, kind).from_pretrained(final / "transformer")
    assert all(torch.equal(p, averages[f"flow/{name}"]) for name, p in transformer.named_parameters())
    encoder, info = BertModel.from_pretrained(final / "text_encoder", add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(p, averages[f"text_encoder/encoder.{name}"]) for name, p in encoder.named_parameters())
    diffusers.AutoencoderKL.from_pretrained(final / "vae")
    diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(final / "scheduler")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(final / "tokenizer")
    assert tokenizer.decode(tokenizer("naïve 猫")["input_ids"], skip_special_tokens=True).strip() == "naïve 猫"
    metrics = lines(folder / "metrics.jsonl")
    assert metrics[0]["loss_flow"] == metrics[0]["loss"] == metrics[0]["loss/flow"]
    assert {"lr/text_encoder", "grad_norm/text_encoder", "t_mean"} <= set(metrics[0])
    assert metrics[0]["lr/text_encoder"] == pytest.approx(1e-4)
    assert "validation/loss" in lines(folder / "validation.jsonl")[0]
    drawn = sorted((folder / "samples").glob("*.jpg"))
    assert len(drawn) == 3 and {Image.open(path).size for path in drawn} == {(64, 64)}
    assert "Auto-created text_encoder: BertModel with hidden_size=16" in said and "Freezing vae" in said
