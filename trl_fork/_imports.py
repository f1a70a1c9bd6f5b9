"""Modules of a user's own, by name."""

import importlib
import os
import sys
from types import ModuleType


def import_module_of_user(name: str) -> ModuleType:
    """
    Import a module, looked for in the working directory too: the console script does not look there by itself.

    The folder stays on the path, since a module may import its neighbours when it is first called.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)
