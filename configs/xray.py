"""MedMamba-T on the Covid19-Pneumonia-Normal chest X-rays (CPN), with the paper's recipe.

Claim: the paper reports accuracy 97.1 % and AUC 0.995 for MedMamba-T on its own split, whose
    index lists are not public; this split has the same sizes (3140 / 521 / 1567), by a seed.
Command: python main.py --config=configs/xray.py
    The images (5,228, Mendeley Data dvntn9yhd2) are downloaded, or taken from an archive or
    folder that you fetched yourself: --config.data.manual_dir=path/to/folder
    The paper's split is by image: of images that are in two parts the run only warns, since this
    file sets data.allow_overlap.
Expected: not run here, since the images could not be had; see docs/results.md for what was.
Cost: 150 epochs of 49 steps at 224 px and batch 64; wants a GPU. Early stopping after 20 epochs
    without a better validation AUC (the paper stops early, too, but does not say when).
"""

from medmamba_jax import at_size, default_config


def get_config(size="full"):
    config = default_config()
    config.data.source = "tfds"
    config.data.name = "cpn_xray"
    config.data.allow_overlap = True  # the paper's split is taken as it is
    config.train.patience = 20
    return at_size(config, size)
