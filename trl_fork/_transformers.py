"""What versions of transformers name differently."""

import inspect

from transformers import GenerationMixin


# The argument of models that takes the cache, and the field of their outputs that has it: 5.24 calls both `cache`.
_TAKEN = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _TAKEN else "past_key_values"
