"""Process types, one folder each. A folder dropped here is found at the next start."""
