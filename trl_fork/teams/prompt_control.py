"""
Prompt control: roles with frozen models learn which of their prompts to use.

Each role has a few prompts and a policy over them. A round plays episodes, estimates the value of every prompt of
every role under the others' policies, and takes one mirror step for each role. No model is trained.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ._game import as_array, as_distribution, check_count, check_positive, is_number
from .equilibrium import mirror_step


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
        seed (`int`, *optional*, defaults to `0`): Seed of the choices.

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
        self._check_roles({**dict.fromkeys(self.prompts), **magnets}, "magnets")
        self.magnets = {
            role: as_distribution(magnets[role], f"magnets: role {role!r}:", (len(texts),))
            if magnets.get(role) is not None
            else np.full(len(texts), 1.0 / len(texts))
            for role, texts in self.prompts.items()
        }
        self._history = [{role: magnet.copy() for role, magnet in self.magnets.items()}]
        self._generator = np.random.default_rng(seed)

    @property
    def policies(self) -> dict[str, np.ndarray]:
        """Probability of each prompt, by role."""
        return {role: policy.copy() for role, policy in self._history[-1].items()}

    @property
    def history(self) -> list[dict[str, np.ndarray]]:
        """The policies at the start and after each step. [`contraction`] takes them as they are."""
        return [{role: policy.copy() for role, policy in policies.items()} for policies in self._history]

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
            role: self._generator.choice(len(policy), num_episodes, p=policy)
            for role, policy in self._history[-1].items()
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
        means = iter(earned.reshape(-1, size).mean(1))
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
        for role, policy in self._history[-1].items():
            own = as_array(values[role], f"values: role {role!r}:")
            if own.shape != policy.shape:
                raise ValueError(
                    f"values: role {role!r}: must have a value for each of its {len(policy)} prompts, got the shape "
                    f"{own.shape}."
                )
            new[role] = mirror_step(policy, own, self.step_size, self.temperatures[role], self.magnets[role])
        self._history.append(new)

    def state_dict(self) -> dict:
        """What [`load_state_dict`] goes on from: numbers, lists and texts, which JSON keeps exactly."""
        return {
            "settings": self._settings(),
            "history": [{role: policy.tolist() for role, policy in policies.items()} for policies in self._history],
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """
        Go on where another one was, with the policies, their history and the random numbers.

        Args:
            state (`dict`): Result of [`state_dict`], of one with the same settings.

        Raises:
            `ValueError`: naming the setting that differs; nothing is changed then.
        """
        if missing := {"settings", "history", "generator"} - set(state):
            raise ValueError(f"state has no {sorted(missing)}. Pass the result of `state_dict`.")
        for name, own in self._settings().items():
            if state["settings"].get(name) != own:
                raise ValueError(
                    f"{name} was {state['settings'].get(name)!r} when the state was saved, and is {own!r} now. Use "
                    "the settings of then, or start anew."
                )
        history = []
        for policies in state["history"]:
            self._check_roles(policies, "history")
            for role, magnet in self.magnets.items():
                as_distribution(policies[role], f"history: role {role!r}:", magnet.shape)
            # To the last bit as they were: a policy that is divided by its sum again may not be.
            history.append({role: np.array(policies[role], dtype=np.float64) for role in self.prompts})
        self._generator.bit_generator.state = state["generator"]
        self._history = history

    def _settings(self) -> dict:
        return {
            "prompts": {role: list(texts) for role, texts in self.prompts.items()},
            "temperatures": self.temperatures,
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

    def _check_roles(self, given: Mapping, name: str) -> None:
        if not isinstance(given, Mapping):
            raise ValueError(f"{name} must be a dictionary by role, got {given!r}.")
        if missing := [role for role in self.prompts if role not in given]:
            raise ValueError(f"{name}: role {missing[0]!r} is missing. The roles are {list(self.prompts)}.")
        if unknown := [role for role in given if role not in self.prompts]:
            raise ValueError(f"{name}: there is no role {unknown[0]!r}. The roles are {list(self.prompts)}.")


def _checked_prompts(role: str, texts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"prompts: role {role!r}: must be a list of texts, at least one, got {texts!r}.")
    if twice := [text for number, text in enumerate(texts) if text in texts[:number]]:
        raise ValueError(f"prompts: role {role!r}: {twice[0]!r} occurs twice. Each prompt is a choice of its own.")
    return tuple(texts)
