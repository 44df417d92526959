"""The mathematics of flow matching: pure functions of tensors and numbers. Imports only
torch."""
