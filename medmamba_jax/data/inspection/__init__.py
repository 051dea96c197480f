"""The command `medmamba inspect`."""
