"""Public data sets: what is known of them, and how they reach TFDS."""
