"""Two pages about data: what is annotated, and how well it is detected."""
