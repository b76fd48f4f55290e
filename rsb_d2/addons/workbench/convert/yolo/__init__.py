"""Ultralytics' YOLO layout: data.yaml, a label file an image, and back."""
