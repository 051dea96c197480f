"""MedMamba-T on PAD-UFES-20, smartphone photographs of skin lesions, with the paper's recipe.

Claim: the authors report accuracy 58.8 %, F1 35.8 % and AUC 0.808 on their own split, whose lists
    of images are not public. This split has the same sizes (1384 / 227 / 687), by data.split_seed.
Command: python main.py --config=configs/pad_ufes_20.py
    The run downloads the images (2,298, 3.6 GB), or takes the archive or its extracted folder that
    you fetched yourself: --config.data.public.manual_dir=path/to/folder
    The paper splits by image, so images of one patient (of 1,373) are in several splits and the
    scores are too good. Of that the run only warns, since this file sets data.allow_overlap. To
    split by patient: --config.data.public.splits=patient --config.data.allow_overlap=False
Expected: nobody ran this config, neither the training nor the download. The code that reads the
    archive was tested on a small archive of the same layout. Somebody else's replication with a
    split by image reached accuracy 47.2 % and AUC 0.714. There are 52 melanomas among the 2,298
    images.
Cost: 150 epochs of 22 steps at 224 px and batch 64; a GPU is needed. The files are large PNGs and
    take long to decode. Training stops early after 20 epochs without a better balanced accuracy in
    validation, since the classes' sizes differ so much (the paper stops early, too, but does not
    say when or by which metric).
"""

from medmamba_jax import at_size, default_config


def get_config(size="full"):
    config = default_config()
    config.data.name = "pad_ufes_20"
    config.data.allow_overlap = True  # the paper's split is used unchanged
    config.train.patience = 20
    return at_size(config, size)
