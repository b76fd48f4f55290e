"""One detector in several runtimes."""
