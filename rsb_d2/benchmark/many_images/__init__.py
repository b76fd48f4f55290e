"""Prediction of many images, end to end."""
