"""The logger of the package: its level is set with transformers' verbosity, as TRL's is."""

from transformers.utils import logging


logger = logging.get_logger("trl_fork")
