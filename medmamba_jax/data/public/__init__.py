"""Public data sets: facts about them, and their conversion to TFDS."""
