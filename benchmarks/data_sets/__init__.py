"""Data sets: made ones, and how long it takes from there to the first batch."""
