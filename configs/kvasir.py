"""MedMamba-T on Kvasir (v1), endoscopy of the digestive tract, with the paper's recipe.

Claim: the authors report accuracy 78.8 %, F1 78.6 % and AUC 0.973 on their own split, whose lists
    of images are not public. This split has the same sizes (2408 / 392 / 1200), by data.split_seed.
Command: python main.py --config=configs/kvasir.py
    The run downloads the images (4,000, 1.2 GB), or takes the archive or its extracted folder that
    you fetched yourself: --config.data.public.manual_dir=path/to/folder
    The set names no patients, so frames of one patient may be in two splits. Where an image is in
    two splits, the run only warns, since this file sets data.allow_overlap.
Expected: nobody ran this config, neither the training nor the download. The code that reads the
    archive was tested on a small archive of the same layout.
Cost: 150 epochs of 38 steps at 224 px and batch 64; a GPU is needed. The files are up to 1920x1072
    px and take long to decode. Training stops early after 20 epochs without a better validation AUC
    (the paper stops early, too, but does not say when).
"""

from medmamba_jax import at_size, default_config


def get_config(size="full"):
    config = default_config()
    config.data.name = "kvasir"
    config.data.allow_overlap = True  # the paper's split is used unchanged
    config.train.patience = 20
    return at_size(config, size)
