"""Fitting a large model into the memory there is: quantization, checkpointing, offloading, block swapping, sharding."""
