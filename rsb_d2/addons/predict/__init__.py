"""Detections on images, folders and videos.

Uses ``addons.storage`` to list tar files.
"""
