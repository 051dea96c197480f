"""MedMamba-T on your own images (a folder, a table or an npz file), with the paper's optimiser.

Claim: one command trains a classifier on `<path>/{train,val,test}/<class>/*`, or on
    `<path>/<class>/*`, which is split by a seed, and reports its metrics. docs/data.md has the
    other forms.
Command: python main.py --config=configs/image_folder.py --config.data.path=path/to/images
Expected: depends on the images; docs/results.md has chest X-rays as an example.
Cost: MedMamba-T at 224 px and batch 64 needs a GPU. On a CPU start with
    --config.model.variant=medmamba_nano --config.data.image_size=64
"""

from medmamba_jax import at_size, default_config


def get_config(size="full"):
    config = default_config()
    config.train.epochs = 100
    config.train.patience = 20
    return at_size(config, size)
