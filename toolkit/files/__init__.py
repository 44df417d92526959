"""Files and logs: how they are written and read, and how secrets are kept out of them."""
