"""Networks: adapters on a frozen model, full fine-tuning, and the files of both."""
