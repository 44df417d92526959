"""The callbacks that come with the program, one duty each."""
