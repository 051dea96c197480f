"""MedMamba-T on Kvasir (v1), endoscopy of the digestive tract, with the paper's recipe.

Claim: the authors report accuracy 78.8 %, F1 78.6 % and AUC 0.973 on their own split, whose index
    lists are not public; this split has the same sizes (2408 / 392 / 1200), by data.split_seed.
Command: python main.py --config=configs/kvasir.py
    The images (4,000, 1.2 GB) are downloaded, or taken from the archive or its extracted folder
    that you fetched yourself: --config.data.manual_dir=path/to/folder
Expected: not run here, neither the training nor the download; the builder was tested on a small
    archive of the same layout. The set names no patients, so frames of one may be in two splits;
    of images that are in two the run only warns, since this file sets data.allow_overlap.
Cost: 150 epochs of 37 steps at 224 px and batch 64; wants a GPU. The files are up to 1920x1072 px
    and take long to decode. Early stopping after 20 epochs without a better validation AUC (the
    paper stops early, too, but does not say when).
"""

from medmamba_jax import at_size, default_config


def get_config(size="full"):
    config = default_config()
    config.data.source = "tfds"
    config.data.name = "kvasir"
    config.data.allow_overlap = True  # the paper's split is taken as it is
    config.train.patience = 20
    return at_size(config, size)
