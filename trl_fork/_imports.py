"""Import of a user's modules by name."""

import importlib
import os
import sys
from types import ModuleType


def import_module_of_user(name: str) -> ModuleType:
    """
    Import a module, also from the working directory, which is not on the path of a console script.

    The folder stays on the path, since a module may import its neighbours when it is first called.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)
