"""Images: data sets, preprocessing and batches.

`__init__.pyi` lists the public names. Each is imported when it is first used, so that worker
processes load only what reads images.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
