"""MedMamba-T on FETAL_PLANES_DB, maternal-fetal ultrasound, with the paper's recipe.

Claim: the authors report accuracy 94.0 %, F1 93.0 % and AUC 0.993 on their own split, whose lists
    of images are not public. This split has the same sizes (7446 / 1237 / 3717), by
    data.split_seed.
Command: python main.py --config=configs/fetal_planes_db.py
    The run downloads the images (12,400), or takes the archive or its extracted folder that you
    fetched yourself: --config.data.public.manual_dir=path/to/folder
    The paper splits by image, so images of one patient (of 1,792) are in several splits and the
    scores are too good. Of that the run only warns, since this file sets data.allow_overlap. To
    split by patient: --config.data.public.splits=patient --config.data.allow_overlap=False
    To split as the publisher does, with validation images split off the training patients:
    --config.data.public.splits=official --config.data.allow_overlap=False
Expected: nobody ran this config, neither the training nor the download. The code that reads the
    archive was tested on a small archive of the same layout.
Cost: 150 epochs of 117 steps at 224 px and batch 64; a GPU is needed. Training stops early after 20
    epochs without a better balanced accuracy in validation, since the classes' sizes differ so much
    (the paper stops early, too, but does not say when or by which metric).
"""

from medmamba_jax import at_size, default_config


def get_config(size="full"):
    config = default_config()
    config.data.name = "fetal_planes_db"
    config.data.allow_overlap = True  # the paper's split is used unchanged
    config.train.patience = 20
    return at_size(config, size)
