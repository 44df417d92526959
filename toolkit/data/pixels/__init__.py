"""Reading image files: formats, colours, EXIF rotation, sizes, and the alignment of two
images. Every room reads images with these modules."""
