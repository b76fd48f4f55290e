"""Modules that several tests use."""
