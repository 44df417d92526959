"""Fitting a large model into the memory there is: quantization, and later checkpointing levels and offload."""
