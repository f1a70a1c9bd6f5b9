"""Names of a package that are imported at first use: `import trl_fork.analysis` must not load TRL."""

import importlib


def lazy_names(package: str, modules: dict[str, list[str]]):
    """
    `__getattr__`, `__dir__` and `__all__` of a package (PEP 562).

    Args:
        package (`str`): Its `__name__`.
        modules (`dict[str, list[str]]`): The public names that each of its modules holds.
    """
    places = {name: module for module, names in modules.items() for name in names}

    def getattribute(name: str):
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{places[name]}"), name)

    return getattribute, lambda: sorted(places), sorted(places)
