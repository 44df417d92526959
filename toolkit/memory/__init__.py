"""Ways to save memory: quantization, activation checkpointing and offload, block swap,
FSDP; and the estimate of the memory that a job needs."""
