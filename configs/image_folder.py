"""MedMamba-T on a folder of your own images, with the paper's optimiser settings.

Claim: `<root>/{train,val,test}/<class>/*`, or `<root>/<class>/*` which is then split by a seed,
    becomes a classifier with its report in one command.
Command: python main.py --config=configs/image_folder.py --config.data.root=path/to/images
Expected: depends on the images; docs/results.md has chest X-rays as an example.
Cost: MedMamba-T at 224 px and batch 64 wants a GPU. On a CPU start with
    --config.model.variant=medmamba_nano --config.data.image_size=64
"""

from medmamba_jax import at_size, default_config


def get_config(size="full"):
    config = default_config()
    config.data.source = "image_folder"
    config.train.epochs = 100
    config.train.patience = 20
    return at_size(config, size)
