"""peft: PeftModel.from_pretrained on a folder, merged into the weights."""

from __future__ import annotations

from harness import build, main
from peft import PeftModel


def apply(job, file, weights):
    model = PeftModel.from_pretrained(build(job, weights), file["path"])
    merged = model.merge_and_unload()
    return {name: tensor.clone() for name, tensor in merged.state_dict().items()}


main(apply)
