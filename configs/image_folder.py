"""MedMamba-T on your own images (a folder, a table or an npz file), with our own recipe.

Claim: one command trains a classifier on `<path>/{train,val,test}/<class>/*`, or on
    `<path>/<class>/*`, which is split by a seed, and reports its metrics. docs/data.md has the
    other forms.
Command: python main.py --config=configs/image_folder.py --config.data.path=path/to/images
Expected: depends on the images. docs/results.md compares the recipe with the paper's on four sets.
    If a mirror image is as likely as the image, add --config.data.augmentation=strong_flip
Cost: MedMamba-T at 224 px and batch 64 needs a GPU, on which
    --config.model.compute_dtype=bfloat16 is faster. On a CPU start with
    --config.model.variant=medmamba_nano --config.data.image_size=64 --config.train.epochs=25
    The losses focal and ordinal also need --config.train.label_smoothing=0
"""

from medmamba_jax import at_size, default_config


def get_config(size="full"):
    config = default_config()
    config.data.augmentation = "strong"
    config.train.epochs = 60
    config.train.lr = 5e-4
    config.train.schedule = "cosine"
    config.train.warmup_epochs = 1.0
    config.train.weight_decay = 0.05
    config.train.decay = "weights"
    config.train.ema_decay = 0.99
    config.train.label_smoothing = 0.1
    return at_size(config, size)
