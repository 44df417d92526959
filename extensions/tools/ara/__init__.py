"""`type: ara`, `run.py ara`: makes an accuracy-recovery adapter for a quantized
model."""
