"""Tests of the long road."""
