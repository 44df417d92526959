"""What is trained: adapters on a frozen model, and the files they are saved in."""
