"""Annotation files, read once per machine: arrays in a file that all processes map.

``store`` is the file, ``annotation_file`` what is read, ``build`` how it becomes arrays,
``records`` what Detectron2 then gets, ``selection`` what training asks of all records at once, and
``annotation_cache`` when a file is used and when it is made anew.
"""
