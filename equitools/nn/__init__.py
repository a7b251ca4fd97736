"""What networks, losses and optimizers are made of."""
