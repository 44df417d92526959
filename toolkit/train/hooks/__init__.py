"""The hooks that come with the program, one duty each."""
