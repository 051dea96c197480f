"""MedMamba-T on FETAL_PLANES_DB, maternal-fetal ultrasound, with the paper's recipe.

Claim: the authors report accuracy 94.0 %, F1 93.0 % and AUC 0.993 on their own split, whose index
    lists are not public; this split has the same sizes (7446 / 1237 / 3717), by data.split_seed.
Command: python main.py --config=configs/fetal_planes_db.py
    The images (12,400) are downloaded, or taken from the archive or its extracted folder that you
    fetched yourself: --config.data.manual_dir=path/to/folder
    The paper's split is by image: one patient's images (1,792 patients) get into different parts,
    and the scores flatter, of which the run only warns, since this file sets data.allow_overlap.
    With --config.data.allow_overlap=False, split by patient: --config.data.splits=patient, or as
    the publisher does, with validation split off the training patients:
    --config.data.splits=official
Expected: not run here, neither the training nor the download; the builder was tested on a small
    archive of the same layout.
Cost: 150 epochs of 116 steps at 224 px and batch 64; wants a GPU. Early stopping after 20 epochs
    without a better balanced accuracy in validation, since the classes' sizes differ so much (the
    paper stops early, too, but does not say when or by what).
"""

from medmamba_jax import at_size, default_config


def get_config(size="full"):
    config = default_config()
    config.data.source = "tfds"
    config.data.name = "fetal_planes_db"
    config.data.allow_overlap = True  # the paper's split is taken as it is
    config.train.patience = 20
    return at_size(config, size)
