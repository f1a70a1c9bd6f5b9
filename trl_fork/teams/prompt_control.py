"""
Prompt control: roles with frozen models learn which of their prompts to use.

Each role has a few prompts and a policy over them. A round plays episodes, estimates the value of every prompt of
every role under the others' policies, and takes one mirror step for each role. No model is trained.
"""

from collections.abc import Mapping, Sequence, Set

import numpy as np

from ._game import as_array, as_distribution, check_count, check_positive, is_number, log_of, log_softmax
from ._solving import log_mirror_step


class PromptControl:
    """
    A policy over prompts for each role of a team, moved by mirror steps towards the quantal response equilibrium.

    The value of a prompt is the mean joint return when the role uses it and the others follow their policies. A prompt
    that a policy hardly plays would hardly be measured, and weights that make up for that would be large. A round
    therefore has a block of episodes for each prompt of each role: the role uses that prompt in all of them, and the
    others draw theirs from their policies. The mean return of the block is an estimate without bias, and every prompt
    has one in every round.

    Args:
        prompts (`dict[str, sequence of str]`): The prompts of each role.
        temperatures (`float` or `dict[str, float]`):
            Temperature of the roles, at least 0, in units of the return: see [`mirror_step`]. With 0 nothing keeps a
            policy at its magnet.
        step_size (`float`): Eta of the mirror steps, above 0.
        magnets (`dict[str, sequence of float]`, *optional*):
            Prior of some or all roles over their prompts, uniform by default. The policies start there.
            A prompt of prior 0 is never chosen, and one above 0 can always come back: policies are kept as logarithms.
        seed (`int`, *optional*, defaults to `0`): Seed of the choices, at least 0.

    Raises:
        `ValueError`: naming the role, for prompts that are missing or equal, or numbers that do not fit.

    Example:
        ```python
        >>> from trl_fork.teams import PromptControl
        >>> control = PromptControl({"a": ["Write words.", "Write digits."], "b": ["Read words.", "Read digits."]},
        ...                         temperatures=0.3, step_size=1.0)
        >>> for _ in range(10):
        ...     choices = control.sample(400)
        ...     returns = [float(a == b == 0) for a, b in zip(choices["a"], choices["b"])]
        ...     control.update(choices, returns)
        >>> bool(control.policies["a"][0] > 0.9)
        True
        ```
    """

    def __init__(
        self,
        prompts: Mapping[str, Sequence[str]],
        temperatures: float | Mapping[str, float],
        step_size: float,
        magnets: Mapping[str, Sequence[float]] | None = None,
        seed: int = 0,
    ):
        if not isinstance(prompts, Mapping) or not prompts:
            raise ValueError(f"prompts must be a dictionary with the prompts of each role, got {prompts!r}.")
        self.prompts = {role: _checked_prompts(role, texts) for role, texts in prompts.items()}
        if not isinstance(temperatures, Mapping):
            temperatures = dict.fromkeys(self.prompts, temperatures)
        self._check_roles(temperatures, "temperatures")
        for role, value in temperatures.items():
            if not is_number(value) or value < 0:
                raise ValueError(f"temperatures: role {role!r}: must be a finite number, at least 0, got {value!r}.")
        self.temperatures = {role: float(temperatures[role]) for role in self.prompts}
        self.step_size = check_positive(step_size, "step_size")
        magnets = {} if magnets is None else magnets
        self._check_roles(magnets, "magnets", all_of_them=False)
        self.magnets = {
            role: as_distribution(magnets[role], f"magnets: role {role!r}:", (len(texts),))
            if magnets.get(role) is not None
            else np.full(len(texts), 1.0 / len(texts))
            for role, texts in self.prompts.items()
        }
        self._masks = {role: magnet > 0 for role, magnet in self.magnets.items()}
        # Logarithms of the policies: a probability of 0 would stay so for ever. (Those of prompts left out are 0.)
        self._history = [{role: log_of(magnet) for role, magnet in self.magnets.items()}]
        self._generator = np.random.default_rng(check_count(seed, "seed", least=0))

    @property
    def policies(self) -> dict[str, np.ndarray]:
        """Probability of each prompt, by role."""
        return self._probabilities(self._history[-1])

    @property
    def history(self) -> list[dict[str, np.ndarray]]:
        """The policies at the start and after each step. [`contraction`] takes them as they are."""
        return [self._probabilities(log_policies) for log_policies in self._history]

    @property
    def num_blocks(self) -> int:
        """Blocks of a round: the prompts of all roles together. The number of episodes must be a multiple of it."""
        return sum(map(len, self.prompts.values()))

    def sample(self, num_episodes: int) -> dict[str, np.ndarray]:
        """
        Choose the prompts of a round of episodes.

        Args:
            num_episodes (`int`): Episodes, a multiple of `num_blocks`.

        Returns:
            `dict[str, np.ndarray]`: by role, the number of its prompt in each episode, counted from 0. The blocks
            follow each other in the order of the roles and their prompts.

        Raises:
            `ValueError`: for another number of episodes.
        """
        size = self._block_size(check_count(num_episodes, "num_episodes"), "num_episodes")
        choices = {
            role: self._generator.choice(len(policy), num_episodes, p=policy) for role, policy in self.policies.items()
        }
        for block, (role, prompt) in enumerate(self._blocks()):
            choices[role][block * size : (block + 1) * size] = prompt
        return choices

    def action_values(self, choices: Mapping[str, Sequence[int]], returns: Sequence[float]) -> dict[str, np.ndarray]:
        """
        Estimate the value of each prompt, by role: the mean return of its block.

        Args:
            choices (`dict[str, sequence of int]`): What [`sample`] gave, in its order.
            returns (`sequence of float`): Joint return of each episode.

        Returns:
            `dict[str, np.ndarray]`: one value per prompt.

        Raises:
            `ValueError`: naming role and row, for choices that are not those of a round, or returns that are not
                finite numbers, one per episode.
        """
        self._check_roles(choices, "choices")
        earned = as_array(returns, "returns")
        if earned.ndim != 1:
            raise ValueError(f"returns must have one number per episode, got the shape {earned.shape}.")
        size = self._block_size(len(earned), "returns")
        for role, texts in self.prompts.items():
            chosen = as_array(choices[role], f"choices: role {role!r}:")
            if chosen.shape != earned.shape:
                raise ValueError(
                    f"choices: role {role!r}: must have a prompt for each of the {len(earned)} returns, got the "
                    f"shape {chosen.shape}."
                )
            if len(wrong := np.flatnonzero(~np.isin(chosen, range(len(texts))))):
                raise ValueError(
                    f"choices: role {role!r}: row {wrong[0]}: {chosen[wrong[0]]:g} is not the number of a prompt, "
                    f"which are 0 to {len(texts) - 1}."
                )
            for block, (owner, prompt) in enumerate(self._blocks()):
                rows = chosen[block * size : (block + 1) * size]
                if owner == role and (rows != prompt).any():
                    row = block * size + int(np.flatnonzero(rows != prompt)[0])
                    raise ValueError(
                        f"choices: role {role!r}: row {row}: this episode measures prompt {prompt}, got "
                        f"{chosen[row]:g}. Pass the choices in the order in which `sample` gave them."
                    )
        means = iter((earned / size).reshape(-1, size).sum(1))  # a sum before the division could be infinite
        return {role: np.array([next(means) for _ in texts]) for role, texts in self.prompts.items()}

    def update(self, choices: Mapping[str, Sequence[int]], returns: Sequence[float]) -> None:
        """
        Take one mirror step for each role, with the values that a round of episodes has measured.

        Args:
            choices, returns: Arguments of [`action_values`].

        Raises:
            `ValueError`: as [`action_values`] does; the policies are then as before.
        """
        self.step(self.action_values(choices, returns))

    def step(self, values: Mapping[str, Sequence[float] | np.ndarray]) -> None:
        """
        Take one mirror step for each role, with values that are known.

        Args:
            values (`dict[str, sequence of float]`): By role, one value per prompt.

        Raises:
            `ValueError`: naming the role, for missing values or other numbers of them.
        """
        self._check_roles(values, "values")
        new = {}
        for role, log_policy in self._history[-1].items():
            own = as_array(values[role], f"values: role {role!r}:")
            if own.shape != log_policy.shape:
                raise ValueError(
                    f"values: role {role!r}: must have a value for each of its {len(log_policy)} prompts, got the "
                    f"shape {own.shape}."
                )
            log_magnet, mask = log_of(self.magnets[role]), self._masks[role]
            tau = self.temperatures[role]
            new[role] = log_mirror_step(log_policy, own, self.step_size, tau, log_magnet, mask)[1]
        self._history.append(new)

    def state_dict(self) -> dict:
        """
        What [`load_state_dict`] goes on from: numbers, lists and texts, which JSON keeps exactly.

        Its history has the logarithms of the policies, 0 for a prompt whose prior is 0.
        """
        return {
            "settings": self._settings(),
            "history": [{role: row.tolist() for role, row in rows.items()} for rows in self._history],
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """
        Go on where another one was, with the policies, their history and the random numbers.

        Args:
            state (`dict`): Result of [`state_dict`], of one with the same settings.

        Raises:
            `ValueError`: naming the setting that differs, or what is not the result of [`state_dict`]; nothing is
                changed then.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"state must be the result of `state_dict`, got {state!r}.")
        if missing := {"settings", "history", "generator"} - set(state):
            raise ValueError(f"state has no {sorted(missing)}. Pass the result of `state_dict`.")
        settings, steps = state["settings"], state["history"]
        if not isinstance(settings, Mapping):
            raise ValueError(f"settings must be a dictionary, got {settings!r}. Pass the result of `state_dict`.")
        for name, own in self._settings().items():
            if settings.get(name) != own:
                raise ValueError(
                    f"{name} was {settings.get(name)!r} when the state was saved, and is {own!r} now. Use the "
                    "settings of then, or start anew."
                )
        if not isinstance(steps, list | tuple) or not steps:
            raise ValueError(f"history must be a list, the policies after each step, got {steps!r}.")
        history = [self._checked_step(rows, f"history[{number}]") for number, rows in enumerate(steps)]
        self._generator = _generator_in(state["generator"])
        self._history = history

    def _checked_step(self, rows: Mapping, name: str) -> dict[str, np.ndarray]:
        self._check_roles(rows, name)
        checked = {}
        for role, mask in self._masks.items():
            row = as_array(rows[role], f"{name}: role {role!r}:")
            if row.shape != mask.shape:
                raise ValueError(f"{name}: role {role!r}: must have the shape {mask.shape}, got {row.shape}.")
            with np.errstate(over="ignore"):
                total = np.exp(row[mask]).sum()
            if not abs(total - 1) <= 1e-6:
                raise ValueError(
                    f"{name}: role {role!r}: must be the logarithms of probabilities that sum to 1, got a sum of "
                    f"{total}."
                )
            checked[role] = np.where(mask, row, 0.0)
        return checked

    def _probabilities(self, log_policies: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {role: log_softmax(row, self._masks[role])[0] for role, row in log_policies.items()}

    def _settings(self) -> dict:
        return {
            "prompts": {role: list(texts) for role, texts in self.prompts.items()},
            "temperatures": dict(self.temperatures),
            "step_size": self.step_size,
            "magnets": {role: magnet.tolist() for role, magnet in self.magnets.items()},
        }

    def _blocks(self) -> list[tuple[str, int]]:
        return [(role, number) for role, texts in self.prompts.items() for number in range(len(texts))]

    def _block_size(self, num_episodes: int, name: str) -> int:
        if not num_episodes or num_episodes % self.num_blocks:
            raise ValueError(
                f"{name}: the number of episodes must be a multiple of {self.num_blocks}, the number of prompts of "
                f"all roles together, got {num_episodes}."
            )
        return num_episodes // self.num_blocks

    def _check_roles(self, given: Mapping, name: str, *, all_of_them: bool = True) -> None:
        if not isinstance(given, Mapping):
            raise ValueError(f"{name} must be a dictionary by role, got {given!r}.")
        if all_of_them and (missing := [role for role in self.prompts if role not in given]):
            raise ValueError(f"{name}: role {missing[0]!r} is missing. The roles are {list(self.prompts)}.")
        if unknown := [role for role in given if role not in self.prompts]:
            raise ValueError(f"{name}: there is no role {unknown[0]!r}. The roles are {list(self.prompts)}.")


def _generator_in(state) -> np.random.Generator:
    """A generator of random numbers in the given state."""
    generator = np.random.default_rng(0)
    try:
        generator.bit_generator.state = state
        taken = generator.bit_generator.state == state
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        taken = False
    if not taken:
        raise ValueError(
            f"generator must be the state of numpy's PCG64, got {state!r}. Pass the result of `state_dict`."
        )
    return generator


def _checked_prompts(role: str, texts: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(role, str):
        raise ValueError(f"prompts: the name of a role must be a text, got {role!r}.")
    given = texts
    texts = () if isinstance(given, str | Mapping | Set) or not np.iterable(given) else tuple(given)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"prompts: role {role!r}: must be a list of texts, at least one, got {given!r}.")
    if twice := [text for number, text in enumerate(texts) if text in texts[:number]]:
        raise ValueError(f"prompts: role {role!r}: {twice[0]!r} occurs twice. Each prompt is a choice of its own.")
    return texts
