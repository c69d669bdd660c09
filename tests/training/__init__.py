"""Tests of the training floor."""
