"""Links in a folder of images that lead out of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from medmamba_jax.data.texts import printable


def note_links(root: Path, names: Sequence[str]) -> None:
    """Warns of image files that lie outside of their folder, because a link leads there.

    The program follows links, because many sets are folders of links. But the links in a folder
    from somebody else could lead to any file of this machine, so the user must know of them.

    Args:
        root: the folder.
        names: the paths of the image files below it. Absolute paths are left out, because the user
            has allowed them.
    """
    inside = os.path.realpath(root) + os.sep
    folders: dict[str, str] = {}  # folder below the root -> where it really is
    outside = []
    for name in names:
        if os.path.isabs(name):
            continue
        path = os.path.join(root, name)
        folder = os.path.dirname(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder) + os.sep
        if os.path.islink(path):
            real = os.path.realpath(path)
        elif folders[folder].startswith(inside):
            continue
        else:
            real = folders[folder] + os.path.basename(path)
        if not real.startswith(inside):
            outside.append((name, real))
    if outside:
        name, real = outside[0]
        logging.warning(
            "%d of the %d images lie outside of %s, because links lead there, such as from %s to"
            " %s; the program reads them all the same",
            len(outside),
            len(names),
            root,
            printable(name),
            printable(real),
        )
