"""The laboratory for the gradient flow of neural collapse.

The public names stand in `__init__.pyi`; each module loads when one of its names is first asked for.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
