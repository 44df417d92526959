"""The machine: devices, processes and what they share, signals, random streams."""
