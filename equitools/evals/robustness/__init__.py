"""Accuracy when the test pictures change."""
