"""The machine: devices, processes and their exchange, signals, random streams."""
