"""Names of version 0.1 that moved or changed: each works for one more release and says the new one.

Written by hand, like `__init__`: aliases explain nothing that a notebook would have to show.
"""

import functools
import importlib
import importlib.abc
import importlib.util
import sys
import warnings

MODULES = {
    "advinterp.engine": "advinterp.jobs",
    "advinterp.items": "advinterp.papers.common",
    "advinterp.optim": "advinterp.train",
    "advinterp.paper_a": "advinterp.papers.a",
    "advinterp.paper_b": "advinterp.papers.b",
    "advinterp.paper_c": "advinterp.papers.c",
    "advinterp.paper_d": "advinterp.papers.d",
    "advinterp.reproduce": "advinterp.papers.reproduce",
    "advinterp.scorecard": "advinterp.papers.scorecard",
}


def _warn(old, new, stacklevel=3):
    message = f"{old} is now {new}; the old name goes with the next release"
    warnings.warn(message, FutureWarning, stacklevel=stacklevel)


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import a module under the name that it had before."""

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in MODULES else None

    def exec_module(self, module):
        new = MODULES[module.__name__]
        _warn(module.__name__, new)
        target = importlib.import_module(new)
        module.__getattr__ = functools.partial(getattr, target)
        module.__all__ = target.__all__


def moved_names(module, **names):
    """A module's `__getattr__` for names that left it: old name -> 'module.name' of today."""

    def __getattr__(name):
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = names[name]
        _warn(f"{module}.{name}", new)
        home, _, attribute = new.rpartition(".")
        return getattr(importlib.import_module(home), attribute)

    return __getattr__


def renamed_arguments(**names):
    """Decorator for a function whose keyword arguments have new names: old name -> new name."""

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            for old, new in names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(
                        f"{function.__qualname__}: got {old}= and {new}=, which are one argument "
                        f"under two names; keep {new}="
                    )
                _warn(f"{function.__qualname__}: argument {old}=", f"{new}=")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def dropped_arguments(**reasons):
    """Decorator for a function that no longer takes some keyword arguments: name -> what instead.

    They are ignored with a warning for one more release.
    """

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            for name, instead in reasons.items():
                if name in kwargs:
                    message = f"{function.__qualname__}: argument {name}= is ignored: {instead}"
                    warnings.warn(message, FutureWarning, stacklevel=2)
                    del kwargs[name]
            return function(*args, **kwargs)

        return call

    return decorate


def install():
    """Make the old module names importable."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
