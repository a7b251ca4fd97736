"""equitools: equivariant self-supervised learning of images, from the shell."""

__version__ = "0.1.0"
