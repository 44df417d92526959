"""The commands and the processes that do not train: what is asked of each, at tiny
sizes."""

from __future__ import annotations

from typing import Any

LORA = "output/lora_int8_fp32"
LORA_FILE = f"{LORA}/lora_int8_fp32.safetensors"
LOKR_FILE = "output/lokr/lokr.safetensors"
PICTURES = (
    "--prompt a_red_cup --width 64 --height 64 --steps 2 --device cpu --dtype float32"
)
SMALL = "--device cpu --dtype float32"

COMMANDS: dict[str, str] = {
    "inspect": f"inspect {LORA_FILE} --model model",
    "inspect json": f"inspect {LOKR_FILE} --model model --json",
    **{
        f"convert to {program}": f"convert {LORA_FILE} OUT/x.safetensors --to {program} --model model"
        for program in ("comfyui", "diffusers", "kohya", "musubi", "aitk")
    },
    "resize": f"resize {LORA_FILE} OUT/x.safetensors --rank 2 --model model",
    "resize lokr": f"resize {LOKR_FILE} OUT/x.safetensors --share 0.5 --dtype float32 --model model",
    "merge": f"merge --base model --lora {LORA_FILE}:0.8 --output OUT/model",
    "merge files": f"merge --lora {LORA_FILE} {LORA_FILE}:0.5 --output OUT/x.safetensors --rank 3 --model model",
    "extract": "extract OUT/x.safetensors --base model --tuned output/full_fp32/full_fp32 --rank 2",
    "post_hoc_ema": f"post_hoc_ema {LORA}/lora_int8_fp32_000000003.safetensors {LORA_FILE} --beta 0.5 "
    "--output OUT/x.safetensors --model model",
    "generate": f"generate --model model --lora {LORA_FILE} {PICTURES} --reference images/control_1/2.png --seed 3 "
    "--cfg 2 --output OUT",
    "grid": f"grid --model model --lora {LORA_FILE} {PICTURES} --strength 0.5 1 --seed 3 4 --output OUT",
    "best": f"best {LORA} --images 2 --steps 2 --prompts a_lake --device cpu --output OUT/best.json",
    "report": f"report {LORA} --output OUT/report.html",
    "report share": f"report {LORA} --output OUT/report.html --share",
    "report linked": "report output/vae_gan --output OUT/report.html --embed false",
    "diagrams": "diagrams output/vae_gan --output OUT",
    "publish": f"publish {LORA} --repo me/x --licence mit --samples 1 --preview OUT",
    "caption": f"caption images/control_1 --model model {SMALL} --max-tokens 6 --format jsonl --output OUT/x.jsonl",
    "caption pairs": f"caption images/control_1 --pairs images/targets --model model {SMALL} --max-tokens 4 "
    "--format tsv --output OUT/x.tsv --trigger-word qkst",
    "lint": "lint images/targets --control-path images/control_1 --resolution 64 --preview --output OUT/lint.html",
    "lint job": "lint jobs/lora_int8_fp32.json --json",
    "cache": "cache jobs/lora_int8_fp32.json --prune --keep",
    "ara": "ara OUT/x.safetensors --model model --qtype int4 --rank 2 --calibrate images/targets --images 2 "
    f"--resolution 64 --measure false {SMALL}",
    "new": "new zuzu images/targets --model model --gpu 24 --output OUT/zuzu.yaml",
    "guide flags": "GUIDE_FLAGS",
}
"""Name -> arguments of run.py, with OUT for the folder to write."""

PROCESSES: dict[str, dict[str, Any]] = {
    "new_model": {
        "type": "new_model",
        "path": "OUT/model",
        "base": "model",
        "transformer": {
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "axes_dims_rope": [4, 6, 6],
        },
        "seed": 3,
    },
    "tiny_model": {"type": "tiny_model", "path": "OUT/model", "seed": 5},
    "example": {
        "type": "example",
        "folder_path": "images/targets",
        "output": "OUT/x.json",
    },
    "cache job": {
        "type": "cache",
        "training_folder": "OUT/cache",
        "device": "cpu",
        "train": {"dtype": "fp32"},
        "model": {"name_or_path": "model"},
        "datasets": [{"folder_path": "images/targets", "resolution": 64}],
    },
    "report job": {
        "type": "report",
        "run": LORA,
        "output": "OUT/x.html",
        "share": True,
    },
    "convert job": {
        "type": "convert",
        "input": LORA_FILE,
        "output": "OUT/x.safetensors",
        "to": "kohya",
        "model": "model",
    },
}
"""Name -> the same as a process of a job, which lies beside the examples."""

NEEDED = ("lora_int8_fp32", "lokr", "full_fp32", "vae_gan")
"""Jobs whose results they read."""
