"""The logger of the package: its level is set with transformers' verbosity, as TRL's is."""

from functools import cached_property

from transformers.utils import logging


logger = logging.get_logger("trl_fork")


class WarnsOnce:
    """Gives each warning once in the life of the object."""

    @cached_property
    def _warned_of(self) -> set[str]:
        return set()

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned_of:
            self._warned_of.add(what)
            logger.warning(message)
