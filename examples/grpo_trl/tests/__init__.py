"""Tests of what the example shows."""
