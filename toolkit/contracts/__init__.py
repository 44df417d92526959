"""What the rooms agree on: types of data, and the interfaces of models, networks and
trainers.

Every room but `flow` may import it. It imports only modules of `toolkit/` itself, and
no torch."""
