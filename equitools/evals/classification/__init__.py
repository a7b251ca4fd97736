"""Labels from frozen features, and from fine-tuned networks."""
