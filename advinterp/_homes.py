"""Names that a module hands on from a later page, such as `penalty.MapPenalty` from `priors`.

A page imports only what stands before it, so such a name is looked up when somebody asks for it.
Written by hand, like `__init__`: it explains nothing that a notebook would have to show.
"""

import importlib


def handed_on(module, otherwise=None, **homes):
    """A module's `__getattr__`: module of this package -> its names, in one string.

    All other names go to `otherwise`, another such function.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def __getattr__(name):
        if name in home_of:
            return getattr(importlib.import_module(f"advinterp.{home_of[name]}"), name)
        if otherwise is not None:
            return otherwise(name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__
