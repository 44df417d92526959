"""Every configuration and command that FluxFlow's training guide prints, with small
sizes and local paths in them."""

from __future__ import annotations

import io
import json
import random
import re
import shlex
import tarfile
from pathlib import Path

from PIL import Image

SIDE = 32

HEAD = f"""
data:
  data_path: images
  captions_file: captions.txt
  img_size: {SIDE}
model:
  vae_dim: 16
  feature_maps_dim: 8
  feature_maps_dim_disc: 2
  text_embedding_dim: 32
"""
"""What the guide's excerpts leave out."""

OF_OPTIMIZERS = """
        optimizers:
          vae:
            optimizer_type: "AdamW"
            lr: 0.0001
            weight_decay: 0.01
        schedulers:
          vae:
            scheduler_type: "CosineAnnealingLR"
            eta_min_factor: 0.1
"""

FILES: dict[str, str] = {
    "yaml files": f"""{HEAD}
training:
  batch_size: 4
  pipeline:
    steps:
      - name: "vae_training"
        n_epochs: 50
        train_vae: true
        train_spade: true
{OF_OPTIMIZERS}
output:
  output_path: "outputs/vae"
""",
    "path b": f"""{HEAD}
training:
  batch_size: 2
  workers: 8

  pipeline:
    steps:
      # Step 1: VAE training with GAN
      - name: "vae_training"
        n_epochs: 50
        train_vae: true
        train_spade: true
        gan_training: true

        optimizers:
          vae:
            optimizer_type: "AdamW"
            lr: 0.00001  # Same as 1e-5
            betas: [0.9, 0.999]
            weight_decay: 0.01
          discriminator:
            optimizer_type: "AdamW"
            lr: 0.00001
            betas: [0.0, 0.9]
            amsgrad: true

        schedulers:
          vae:
            scheduler_type: "CosineAnnealingLR"
            eta_min_factor: 0.1
          discriminator:
            scheduler_type: "CosineAnnealingLR"
            eta_min_factor: 0.1

output:
  output_path: "outputs/production"
""",
    "warmup, then gan": f"""{HEAD}
training:
  batch_size: 4
  output_path: "outputs/pipeline_training"

  pipeline:
    steps:
      - name: "vae_warmup"
        n_epochs: 10
        train_vae: true
        gan_training: false
        lr: 1e-5

      - name: "vae_with_gan"
        n_epochs: 40
        train_vae: true
        gan_training: true
        lr: 1e-5
        stop_condition:
          loss_name: "loss_recon"
          threshold: 0.01
""",
    "several optimizers": f"""{HEAD}
training:
  batch_size: 2

  pipeline:
    steps:
      # Step 1: VAE warmup with Adam
      - name: "vae_warmup"
        n_epochs: 10
        train_vae: true
        gan_training: false
        optim_sched_config: "configs/adam_warmup.json"

      # Step 2: GAN training with Lion
      - name: "gan_training"
        n_epochs: 30
        train_vae: true
        gan_training: true
        train_spade: true
        optim_sched_config: "configs/lion_gan.json"

      # Step 3: Flow training
      - name: "flow_training"
        n_epochs: 100
        train_diff_full: true
        freeze_vae: true  # Freeze VAE, train flow only
        optim_sched_config: "configs/lion_flow.json"
""",
    "complete": f"""{HEAD}
training:
  batch_size: 4
  workers: 8
  output_path: "outputs/full_pipeline"
  checkpoint_save_interval: 100

  pipeline:
    steps:
      # Step 1: VAE reconstruction warmup (no GAN)
      - name: "vae_warmup"
        n_epochs: 10
        train_vae: true
        gan_training: false
        train_spade: false
        lr: 2e-5
        kl_beta: 0.0001
        stop_condition:
          loss_name: "loss_recon"
          threshold: 0.02  # Exit when reconstruction is good

      # Step 2: Add SPADE and GAN
      - name: "vae_spade_gan"
        n_epochs: 40
        train_vae: true
        gan_training: true
        train_spade: true
        lr: 1e-5
        lambda_adv: 0.9
        kl_beta: 0.001
        optim_sched_config: "configs/lion_gan.json"

      # Step 3: Flow training (freeze VAE)
      - name: "flow_training"
        n_epochs: 100
        train_diff_full: true
        train_vae: false
        freeze_vae: true
        lr: 5e-7
        sample_captions:
          - "a photo of a cat sitting on a couch"
          - "an illustration of mountains at sunset"
        optim_sched_config: "configs/lion_flow.json"
""",
    "models made where missing": f"""{HEAD}
training:
  pipeline:
    steps:
      - name: vae_warmup
        train_vae: true
        # Only creates: compressor, decoder

      - name: flow_training
        train_diff: true
        # Auto-creates: flow_processor, text_encoder
        # No manual initialization needed!
""",
    "adversarial only": f"""{HEAD}
training:
  pipeline:
    steps:
      - name: "gan_only"
        train_vae: true
        gan_training: true
        train_spade: true
        train_reconstruction: false  # GAN-only mode
""",
    "optimizer of the flow model": f"""{HEAD}
optimizer_config:
  flow_processor:
    type: "Lion"
    lr: 5e-7
    betas: [0.9, 0.95]
    weight_decay: 0.01

scheduler_config:
  flow_processor:
    type: "CosineAnnealingLR"
    T_max: 100
    eta_min_factor: 0.1
training:
  pipeline:
    steps:
      - {{name: vae, train_vae: true}}
      - {{name: flow, train_diff_full: true}}
""",
    "reduce batch size": f"{HEAD}\ntraining:\n  train_vae: true\n  batch_size: 2  # or 1\n",
    "disable LPIPS": f"{HEAD}\ntraining:\n  train_vae: true\n  use_lpips: false\n",
    "reduce image size": f"{HEAD.replace(f'img_size: {SIDE}', 'img_size: 32')}\ntraining:\n  train_vae: true\n",
    "gan-only": f"{HEAD}\ntraining:\n  train_vae: false\n  gan_training: true\n  train_spade: true\n",
    "disable SPADE": f"{HEAD}\ntraining:\n  train_vae: true\n  train_spade: false\n",
    "reduce dimensions": f"{HEAD}\ntraining:\n  train_vae: true\n",
    "half precision": f"{HEAD}\ntraining:\n  train_vae: true\n  use_fp16: true  # RTX 3090/4090 recommended\n",
    "migration of kl_beta": f"{HEAD}\ntraining:\n  train_vae: true\n  kl_beta: 0.001  # Increased 10x\n",
}
"""Name of each configuration -> the file."""

_DATA = "--data_path images --captions_file captions.txt"
_SMALL = f"--vae_dim 16 --feature_maps_dim 8 --feature_maps_dim_disc 2 --text_embedding_dim 32 --img_size {SIDE}"
_WIDE = f"--vae_dim 16 --feature_maps_dim 8 --img_size {SIDE}"

STAGE_1 = f"""
  {_DATA} --output_path outputs/stage1_vae --train_vae --train_spade --n_epochs 50 --batch_size 2
  --lr 1e-5 --lr_min 0.1 {_SMALL} --lambda_adv 0.9 --kl_beta 0.0001 --kl_warmup_steps 5000
  --checkpoint_save_interval 50 --gan_training --workers 8"""
STAGE_2 = f"""
  {_DATA} --output_path outputs/stage2_flow --model_checkpoint outputs/stage1_vae/flxflow_final.safetensors
  --train_diff_full --n_epochs 100 --batch_size 2 --lr 5e-7 --lr_min 0.1 {_WIDE}
  --sample_captions
    "a photo of a cat sitting on a couch"
    "an illustration of mountains at sunset"
    "abstract geometric shapes on a blue background"
  --checkpoint_save_interval 100 --workers 8"""
STAGE_3 = f"""
  {_DATA} --output_path outputs/stage3_joint --model_checkpoint outputs/stage2_flow/flxflow_final.safetensors
  --train_vae --train_spade --train_diff_full --n_epochs 20 --batch_size 2 --lr 1e-6 --lr_min 0.1 {_SMALL}
  --lambda_adv 0.5 --kl_beta 0.001
  --sample_captions "a photo of a cat sitting on a couch" "an illustration of mountains at sunset"
  --checkpoint_save_interval 50 --gan_training --workers 8"""

COMMANDS: dict[str, str] = {
    "flags": f"{_DATA} --train_vae --n_epochs 50 --batch_size 2 --lr 1e-5 {_WIDE}",
    "path a": f"{_DATA} --output_path outputs/quick_test --train_vae --n_epochs 5 --batch_size 2 --lr 1e-5 {_WIDE}",
    "prefix": f'{_DATA} --fixed_prompt_prefix "style anime" --train_vae --lr 1e-5 {_WIDE}',
    "stage 1": STAGE_1,
    "8 GB": f"""{_DATA} --output_path outputs/low_vram --train_vae --train_spade --n_epochs 100 --batch_size 1
      --training_steps 4 --lr 1e-5 {_SMALL} --use_fp16 --workers 4""",
    "quick": f"""{_DATA} --output_path outputs/test --train_vae --n_epochs 5 --batch_size 2 --lr 1e-5 {_WIDE}
      --log_interval 5 --checkpoint_save_interval 10""",
    "high quality": f"""{_DATA} --output_path outputs/high_quality_vae --train_vae --train_spade --n_epochs 100
      --batch_size 4 --lr 2e-5 --lr_min 0.05 {_SMALL} --lambda_adv 0.9 --kl_beta 0.001 --kl_warmup_steps 10000
      --use_fp16 --workers 16 --checkpoint_save_interval 100 --gan_training""",
    "nan": f"""{_DATA} --train_vae --gan_training {_SMALL}
      --lr 1e-6 --lambda_adv 0.3 --initial_clipping_norm 0.5 --kl_beta 0.0001""",
    "diagrams": f"{_DATA} --train_vae --lr 1e-5 {_WIDE} --generate_diagrams",
}
"""Name of each command that trains an autoencoder -> its flags."""

FLOW_COMMANDS: dict[str, str] = {
    "stage 2": STAGE_2,
    "stage 3": STAGE_3,
    "samples": f"""{_DATA} --output_path outputs/flow_training
      --model_checkpoint outputs/stage1_vae/flxflow_final.safetensors --train_diff_full --n_epochs 200 --batch_size 4
      --lr 1e-6 {_WIDE} --sample_captions
        "a photograph of a golden retriever in a park"
        "an oil painting of a sailboat on the ocean"
        "a digital illustration of a futuristic city"
        "a watercolor painting of flowers in a vase"
      --checkpoint_save_interval 200 --use_fp16 --workers 12""",
    "text conditioning": f"""{_DATA} --model_checkpoint outputs/stage1_vae/flxflow_final.safetensors --train_diff_full
      --lr 1e-6 {_WIDE} --tokenizer_name tokenizer --n_epochs 200 --text_embedding_dim 32""",
}
"""The same of a flow model."""

STREAM_COMMANDS: dict[str, str] = {
    "default set": f"""--use_webdataset --webdataset_token hf_your_actual_token_here --webdataset_image_key jpg
      --webdataset_caption_key prompt --output_path outputs/webdataset_training --train_vae --train_spade --n_epochs 1
      --batch_size 4 --lr 1e-5 {_WIDE} --use_fp16 --workers 8""",
    "another set": f"""--use_webdataset --webdataset_token hf_token
      --webdataset_url "hf://datasets/nyuuzyou/textureninja/dataset_*.tar" --webdataset_image_key png
      --webdataset_caption_key caption --output_path outputs/custom_dataset --train_vae --n_epochs 10 --batch_size 2
      {_WIDE}""",
    "old names": f"--use_tt2m --tt2m_token hf_your_actual_token --train_vae --lr 1e-5 {_WIDE}",
}
"""The same of streams."""

ADAM_WARMUP = {"optimizers": {"vae": {"type": "Adam", "lr": 1e-5}}}
LION_GAN = {
    "optimizers": {
        "vae": {"type": "Lion", "lr": 5e-6, "weight_decay": 0.01},
        "discriminator": {
            "type": "AdamW",
            "lr": 5e-6,
            "betas": [0.0, 0.9],
            "amsgrad": True,
        },
    },
    "schedulers": {
        "vae": {"type": "CosineAnnealingLR", "eta_min_factor": 0.1},
        "discriminator": {"type": "CosineAnnealingLR", "eta_min_factor": 0.1},
    },
}
LION_FLOW = {
    "optimizers": {
        "flow": {
            "type": "Lion",
            "lr": 5e-7,
            "betas": [0.9, 0.95],
            "weight_decay": 0.01,
            "decoupled_weight_decay": True,
        },
        "vae": {
            "type": "AdamW",
            "lr": 5e-7,
            "betas": [0.9, 0.95],
            "weight_decay": 0.01,
        },
        "text_encoder": {
            "type": "AdamW",
            "lr": 5e-8,
            "betas": [0.9, 0.99],
            "weight_decay": 0.01,
        },
        "discriminator": {
            "type": "AdamW",
            "lr": 5e-7,
            "betas": [0.0, 0.9],
            "weight_decay": 0.001,
            "amsgrad": True,
        },
    },
    "schedulers": {
        "flow": {"type": "CosineAnnealingLR", "eta_min_factor": 0.1},
        "vae": {"type": "CosineAnnealingLR", "eta_min_factor": 0.1},
        "text_encoder": {"type": "CosineAnnealingLR", "eta_min_factor": 0.001},
        "discriminator": {"type": "CosineAnnealingLR", "eta_min_factor": 0.1},
    },
}
"""The guide's example of the JSON file, whole."""


def arguments(command: str) -> list[str]:
    """A command's flags as a shell splits them."""
    return shlex.split(command.replace("\n", " "))


def short(text: str, steps: int = 2) -> str:
    """A file with so few batches in each of its steps."""
    limited = re.sub(
        r"^(\s+- name: \S+)$",
        rf"\1\n        max_steps: {steps}",
        text,
        flags=re.MULTILINE,
    )
    limited = re.sub(
        r"- \{name: (\w+),", rf"- {{name: \1, max_steps: {steps},", limited
    )
    return (
        limited
        if "steps:" in text
        else limited.replace("training:\n", f"training:\n  max_steps: {steps}\n")
    )


def write_shards(folder: Path) -> None:
    """Two shards in the layout of WebDataset with three pictures each, as jpg and png,
    and JSON with two captions.

    folder: one with the pictures of `write_data`.
    """
    (folder / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"dataset_{shard}.tar", "w") as tar:
            for index in range(3 * shard, 3 * shard + 3):
                picture = folder / "images" / f"image{index}.png"
                jpg = io.BytesIO()
                Image.open(picture).save(jpg, "JPEG")
                label = json.dumps(
                    {"prompt": f"prompt {index}", "caption": f"caption {index}"}
                ).encode()
                for ending, data in {
                    "png": picture.read_bytes(),
                    "jpg": jpg.getvalue(),
                    "json": label,
                }.items():
                    member = tarfile.TarInfo(f"{index:06d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_data(folder: Path) -> None:
    """Six small pictures with captions, and the JSON files that the configurations
    name."""
    draw = random.Random(0)
    (folder / "images").mkdir()
    for index in range(6):
        size = (48, 48) if index % 2 else (64, 48)
        picture = Image.new("RGB", size)
        picture.putdata(
            [
                (draw.randrange(256), x * 5 % 256, index * 40)
                for x in range(size[0] * size[1])
            ]
        )
        picture.save(folder / "images" / f"image{index}.png")
    lines = [f"image{index}.png\ta photo of number {index}\n" for index in range(6)]
    (folder / "captions.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "configs").mkdir()
    for name, data in {
        "adam_warmup": ADAM_WARMUP,
        "lion_gan": LION_GAN,
        "lion_flow": LION_FLOW,
    }.items():
        (folder / "configs" / f"{name}.json").write_text(
            json.dumps(data, indent=2), encoding="utf-8"
        )
