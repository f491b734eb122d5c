"""Tests of the PyTorch side."""
