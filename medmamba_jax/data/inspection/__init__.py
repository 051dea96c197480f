"""What `medmamba inspect` shows."""
