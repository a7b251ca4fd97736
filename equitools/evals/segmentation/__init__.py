"""Objects of pictures and videos, from frozen features."""
