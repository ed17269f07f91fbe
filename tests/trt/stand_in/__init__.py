"""Modules that stand in for those of a GPU machine in tests. This folder itself goes on the path, never its parent.

It is a package so that mypy takes ``stand_in/tensorrt`` for what it is, and not for TensorRT.
"""
