#!/bin/bash
# A RunPod Instant Cluster: the same command on each of its pods, bash docker/engines/runpod_cluster.sh CONFIG
# RunPod sets NUM_NODES, NUM_TRAINERS, PRIMARY_ADDR and PRIMARY_PORT. The network volume, /workspace, is the
# folder that all share.
set -eu
config=${1:?give a config: bash runpod_cluster.sh /workspace/my_char.yaml}
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-ens1}" GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-ens1}"
exec python launch.py --nnodes "$NUM_NODES" --nproc-per-node "$NUM_TRAINERS" \
  --shutdown-timeout 240 --rdzv-backend c10d --rdzv-endpoint "$PRIMARY_ADDR:$PRIMARY_PORT" \
  --rdzv-id "$(basename "$config")" run.py "$config"
