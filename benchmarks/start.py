"""Times the data of a run from its start to the first batch, in one or several checkouts.

    python -m benchmarks.start --path my_images
    python -m benchmarks.start --path my_images --checkouts . ../earlier --cache memory disk

Each start is a new process, and `first` has an empty cache folder. `second` starts again with the
same folder. The seconds do not include the imports, the model, and the compilation.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from benchmarks.timing import write_json

_PROGRAM = """
import json, sys, time
from medmamba_jax.data import DataConfig, Preprocessing, audit, build_dataset, train_batches

path, cache, folder = sys.argv[1:]
options = dict(image_size=224, cache=cache, cache_dir=folder, allow_overlap=True)
begun, used = time.perf_counter(), time.process_time()
try:
    from medmamba_jax.data.build import find, prepare
except ImportError:  # up to 7e4a3f5
    from medmamba_jax.data.reading.caching import cached, open_caches

    config = DataConfig(source="image_folder", root=path, **options)
    preprocessing = Preprocessing.from_config(config, 3)
    dataset = build_dataset(config)
    digests = {name: split.digest() for name, split in dataset.splits.items()}
    kept, _ = cached(dataset, preprocessing, config)
    audit(dataset, preprocessing, config, digests=digests, say=lambda line: None)
    open_caches(kept.splits.values())
    split = kept.splits["train"]
else:
    config = DataConfig(path=path, **options)
    preprocessing = config.preprocessing(3)
    ready = prepare(find(config), config, preprocessing)
    for split in ready.dataset.splits.values():
        split.digest()
    facts = ready.images, ready.facts, ready.duplicates
    audit(ready.dataset, *facts, config, made=ready.made, say=lambda line: None)
    split = ready.dataset.splits["train"]
with train_batches(split, preprocessing, "none", batch_size=64, seed=0) as batches:
    next(batches)
    seconds = {"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - used}
print(json.dumps(seconds))
"""


def start(checkout: str, path: str, cache: str, folder: str) -> dict[str, float]:
    """Returns the seconds of one start."""
    packages = os.environ.get("PYTHONPATH", "")
    printed = subprocess.run(
        [sys.executable, "-c", _PROGRAM, path, cache, folder],
        env=os.environ | {"PYTHONPATH": f"{os.path.abspath(checkout)}{os.pathsep}{packages}"},
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return json.loads(printed.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="as data.path")
    parser.add_argument("--checkouts", nargs="+", default=["."], help="folders of the package")
    parser.add_argument("--cache", nargs="+", default=["auto"], help="as data.cache")
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()
    rows = []
    for cache in args.cache:
        for checkout in args.checkouts:
            with tempfile.TemporaryDirectory() as folder:
                for name in ("first", "second"):
                    seconds = start(checkout, os.path.abspath(args.path), cache, folder)
                    rows.append({"checkout": checkout, "cache": cache, "start": name, **seconds})
                    print(rows[-1], flush=True)
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
