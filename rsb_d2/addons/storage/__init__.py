"""Where image files are: on the disk, inside a tar file, or beyond, with a copy on the disk."""
