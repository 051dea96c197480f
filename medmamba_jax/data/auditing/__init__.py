"""The checks of the images before training."""
