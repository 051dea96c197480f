"""Trains a ResNet as `main.py` trains a MedMamba: the same flags, images, recipe and results.

    python -m benchmarks.train_resnet --config=configs/image_folder.py \
        --config.model.variant=resnet50 --config.data.path=my_images --workdir=runs/resnet50

Only the network differs from `main.py`. The order of the images, augmentation, loss, optimiser,
schedule, moving average, choice of the best epoch, and `results/*.json` with intervals are the
same. `medmamba summarize` reads such runs. Other commands would take the network for a MedMamba. To
evaluate again, use `python -m benchmarks.train_resnet --workdir=... --mode=evaluate`.

A run writes no report, because the report's text is about MedMamba.
"""

import sys

import benchmarks.resnet  # noqa: F401  (it adds the ResNets to the values of model.variant)
from medmamba_jax.cli.train import run

if __name__ == "__main__":
    sys.argv.append("--config.results.report=False")  # ml_collections reads this list itself
    sys.exit(run(sys.argv))
