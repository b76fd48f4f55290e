"""What a YAML of Detectron2 brings along: its keys for the backbone, and arithmetic."""
