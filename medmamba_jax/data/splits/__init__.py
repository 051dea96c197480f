"""Splits images for training, validation and testing: by fractions, patients, folds or a table."""
