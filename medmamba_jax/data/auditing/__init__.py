"""What is looked for in the images before training."""
