"""diffusers: the loader of the pipeline and the one of the transformer, each fused into
the weights."""

from __future__ import annotations

import os

import diffusers
from harness import base_weights, build, main


class Processor:
    """Stands in for the text processor, which the pipeline of 2.1 calls once when it is
    made."""

    @property
    def tokenizer(self):
        return self

    def encode(self, *_):
        return [0]

    def apply_chat_template(self, *_, **__):
        return [[0]]


def apply(job, file, weights):
    transformer = build(job, weights)
    way = os.environ.get("INTEROP_WAY", "pipeline")
    if way == "pipeline":
        pipeline_class = getattr(diffusers, job["pipeline"])
        parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer"))
        accepted = pipeline_class.__init__.__annotations__
        given = {part: None for part in parts if part in accepted}
        if "processor" in accepted:
            given["processor"] = Processor()
        pipeline = pipeline_class(transformer=transformer, **given)
        pipeline.load_lora_weights(file["path"])
        if getattr(transformer, "peft_config", None):
            pipeline.fuse_lora()
    else:
        prefix = {"prefix": None} if way == "adapter_bare" else {}
        transformer.load_lora_adapter(file["path"], **prefix)
        if getattr(transformer, "peft_config", None):
            transformer.fuse_lora()
    return base_weights(transformer)


main(apply)
