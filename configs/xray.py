"""MedMamba-T on the Covid19-Pneumonia-Normal chest X-rays (CPN), with the paper's recipe.

Claim: the paper reports accuracy 97.1 % and AUC 0.995 for MedMamba-T on its own split, whose lists
    of images are not public. This split has the same sizes (3140 / 521 / 1567), by data.split_seed.
Command: python main.py --config=configs/xray.py
    The run downloads the images (5,228, Mendeley Data dvntn9yhd2), or takes the archive or its
    extracted folder that you fetched yourself: --config.data.public.manual_dir=path/to/folder
    The paper splits by image. Where an image is in two splits, the run only warns, since this file
    sets data.allow_overlap.
Expected: nobody ran this config, because the images could not be downloaded; docs/results.md has
    other chest X-rays.
Cost: 150 epochs of 50 steps at 224 px and batch 64; a GPU is needed. Training stops early after 20
    epochs without a better validation AUC (the paper stops early, too, but does not say when).
"""

from medmamba_jax import at_size, default_config


def get_config(size="full"):
    config = default_config()
    config.data.name = "cpn_xray"
    config.data.allow_overlap = True  # the paper's split is used unchanged
    config.train.patience = 20
    return at_size(config, size)
