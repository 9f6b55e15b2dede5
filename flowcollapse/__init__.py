"""A laboratory for the gradient flow of neural collapse.

`__init__.pyi` lists the public names. Each module loads when one of its names is first used.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
