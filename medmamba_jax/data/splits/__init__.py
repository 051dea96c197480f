"""Which image is for training: by fractions, patients, folds or a table."""
