"""What can be said of a model's outputs for labelled images; imports no JAX."""
