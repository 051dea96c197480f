"""What `python -m medmamba_jax.data inspect` shows."""
