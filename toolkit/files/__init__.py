"""What is written: files, logs, and what must not stand in them."""
