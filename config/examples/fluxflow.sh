#!/bin/bash
# A command of FluxFlow's training guide with its settings in variables: docs/coming_from_fluxflow.md.
# From the folder of the program: bash config/examples/fluxflow.sh (--dry-run shows the plan first)
set -eu
RUN="${RUN:-.venv/bin/python run.py}"

# Dataset
DATA_PATH="${DATA_PATH:-config/examples/photos}"
OUTPUT_PATH="${OUTPUT_PATH:-outputs/fluxflow_sh}"

# Model
VAE_DIM=32
FEAT_DIM=32
FEAT_DIM_DISC=8
IMG_SIZE=64

# Training
EPOCHS=2
BATCH_SIZE=4
LR=1e-4
LR_MIN=0.1
WORKERS=2

$RUN \
  --data_path "$DATA_PATH" \
  --output_path "$OUTPUT_PATH" \
  --train_vae \
  --n_epochs "$EPOCHS" \
  --batch_size "$BATCH_SIZE" \
  --lr "$LR" \
  --lr_min "$LR_MIN" \
  --vae_dim "$VAE_DIM" \
  --feature_maps_dim "$FEAT_DIM" \
  --feature_maps_dim_disc "$FEAT_DIM_DISC" \
  --img_size "$IMG_SIZE" \
  --workers "$WORKERS" \
  "$@"
