"""The plan's memory against the weights of the classes, and against what a step takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import BertConfig, BertModel

from extensions.from_scratch.flow_memory_plan import Work, plan_memory
from extensions.from_scratch.flow_plan import FlowTrainerSection
from extensions.from_scratch.latent_flow.sizes import bert_shapes, transformer_sizes
from tests.extensions.from_scratch.conftest import TEXT, TRANSFORMERS
from toolkit.memory.estimate import Machine

SD3, QWEN = "SD3Transformer2DModel", "QwenImageTransformer2DModel"


@pytest.mark.parametrize(
    ("name", "config", "more"),
    [
        (SD3, {}, {"caption_projection_dim": 1152, "in_channels": 16, "out_channels": 16}),
        (SD3, {"num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 16, "qk_norm": "rms_norm"}, {}),
        (SD3, {**TRANSFORMERS[SD3], "patch_size": 1, "dual_attention_layers": [0]}, {}),
        (QWEN, TRANSFORMERS[QWEN], {"axes_dims_rope": (4, 2, 2)}),
        (QWEN, {"num_layers": 1}, {}),
    ],
)
def test_the_shapes_are_those_of_the_class(name: str, config: dict[str, Any], more: dict[str, Any]) -> None:
    sizes = transformer_sizes(name, config, 16, 64)
    fitting: dict[str, Any] = {"joint_attention_dim": 64, "out_channels": 16, "in_channels": 64 if name == QWEN else 16}
    if name == SD3:
        fitting |= {"pooled_projection_dim": 64, "caption_projection_dim": sizes.width}
    with torch.device("meta"):
        module = getattr(diffusers, name)(**{**fitting, **more, **config})
    assert Counter(sizes.shapes) == Counter(tuple(p.shape) for p in module.parameters())
    assert sizes.blocks == len(module.transformer_blocks)


@pytest.mark.parametrize("config", [{}, TEXT, {**TEXT, "vocab_size": 300}])
def test_the_shapes_of_the_text_encoder_are_those_of_a_bert(config: dict[str, Any]) -> None:
    fitting = {"vocab_size": 8192, "max_position_embeddings": 77}
    with torch.device("meta"):
        module = BertModel(BertConfig(**{**fitting, **config}), add_pooling_layer=False)
    assert Counter(bert_shapes(config, 77)) == Counter(tuple(p.shape) for p in module.parameters())


def section_of(job: dict[str, Any]) -> FlowTrainerSection:
    return FlowTrainerSection.model_validate(job)


def part(job: dict[str, Any], name: str, phase: str = "training", **work: int) -> int:
    plan = plan_memory(section_of(job), Work(work.get("images", 2), work.get("pixels", 32 * 32)), Machine("cpu"))
    return next(one for one in plan.phases if one.name == phase).host.get(name, 0)


@pytest.mark.parametrize("changes", [{}, {"autoencoder": {"discriminator": {"channels": 4, "layers": 1}}}])
def test_weights_moments_and_averages_are_those_of_the_run(
    start, flow_job, pictures: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    seen = {}
    from extensions.from_scratch.flow_process import FlowTrainerProcess

    fit = FlowTrainerProcess.fit

    def watched(self, setup, run, *rest) -> None:
        fit(self, setup, run, *rest)
        weights = {name: sum(p.numel() for p in role.parameters.values()) for name, role in run.roles.items()}
        seen.update(weights=sum(weights.values()), state=sum(role.state_bytes for role in run.roles.values()))

    monkeypatch.setattr(FlowTrainerProcess, "fit", watched)
    text = {"config": {**TEXT, "vocab_size": 300}}
    job = flow_job(pictures, model={"text_encoder": text}, train={"ema_config": {"use_ema": True}}, **changes)
    start(job)
    assert part(job, "weights") == pytest.approx(4 * seen["weights"], rel=0.01)
    assert part(job, "optimizer") == pytest.approx(seen["state"], rel=0.01)


@pytest.mark.parametrize("kind", [SD3, QWEN])
def test_what_a_step_keeps_is_about_what_the_plan_says(
    start, flow_job, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of transformer and text encoder, without what the allocator loses."""
    from extensions.from_scratch.flow_process import FlowStep

    seen: list[int] = []
    call = FlowStep.__call__

    def watched(self, batch, step=0):
        storages = {}

        def pack(tensor):
            storages.setdefault(tensor.untyped_storage()._cdata, tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = call(self, batch, step)
        own = {p.untyped_storage()._cdata for p in self.model.network_module.parameters()}
        own |= {p.untyped_storage()._cdata for p in self.model.text_encoder.parameters()}
        seen.append(sum(t.untyped_storage().nbytes() for key, t in storages.items() if key not in own))
        return losses

    monkeypatch.setattr(FlowStep, "__call__", watched)
    wide = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32}
    more = {"pos_embed_max_size": 32} if kind == SD3 else {}
    model = {"transformer": {"class_name": kind, "config": {**wide, **more}}}
    pictures = make_pictures(tmp_path / "data", "a", "b", size=(64, 64))
    job = flow_job(pictures, kind, model=model, train={"steps": 1, "gradient_checkpointing": False})
    job["datasets"][0]["resolution"] = 64
    start(job)
    planned = part(job, "activations", pixels=64 * 64)
    assert max(seen) == pytest.approx(planned, rel=0.35)


def test_smaller_settings_lower_the_plan(flow_job, pictures: Path) -> None:
    def peak(images: int = 4, **changes: Any) -> int:
        section = section_of(flow_job(pictures, **changes))
        return plan_memory(section, Work(images, 256 * 256), Machine("cuda")).device_bytes

    whole = peak(train={"gradient_checkpointing": False})
    assert peak(images=2, train={"gradient_checkpointing": False}) < whole
    assert peak(train={"gradient_checkpointing": True}) < whole
    assert peak(train={"gradient_checkpointing": False}, autoencoder={}) > whole
