"""Image files become pixels, the same way everywhere: formats, colours, turned images,
sizes, alignment."""
