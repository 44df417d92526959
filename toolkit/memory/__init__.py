"""Memory savings: quantization, activation checkpointing and offload, block swap, FSDP;
and their estimate."""
