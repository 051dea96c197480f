"""What can be said of the outputs of a model without the model. Imports no JAX."""
