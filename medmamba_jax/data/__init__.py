"""Images: data sets, preprocessing and batches.

`__init__.pyi` lists the public names. Python imports each of them at its first use, so that worker
processes load only the modules that read images.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
