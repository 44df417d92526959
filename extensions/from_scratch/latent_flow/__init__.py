"""Latent flow models as `flow_trainer` makes them: any transformer of a table, any of
diffusers' image autoencoders."""
