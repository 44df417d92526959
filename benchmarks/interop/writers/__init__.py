"""Each module writes the files of one program: `write(model, folder)` yields them."""
