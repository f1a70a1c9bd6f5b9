"""Names of calls within a run, of which random numbers are a hash."""


class CallNames:
    """Names calls by the step they are made at, so that a resumed run has the same names; a count would not be."""

    def __init__(self):
        self._latest: dict[str, tuple[int, int]] = {}  # "train" or "eval": global step, calls made there before

    def next(self, mode: str, step: int) -> tuple[int, int, int]:
        """Name of the next call: whether it is of an evaluation, the global step, and calls made there before."""
        latest, made = self._latest.get(mode, (-1, 0))
        made = made + 1 if latest == step else 0
        self._latest[mode] = (step, made)
        return int(mode == "eval"), step, made
