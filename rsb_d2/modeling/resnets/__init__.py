"""Detectron2's ``MODEL.RESNETS`` in the words of timm."""
