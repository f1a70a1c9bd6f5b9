"""Episodes of a team as rows of a GRPO group: a rollout function."""

from collections.abc import Callable, Sequence

from .._logging import WarnsOnce
from .checks import check_run, refuse_system, temperatures_off_policy
from .episodes import Episode
from .roles import Role, check_roles
from .sampling import complete, texts_of, tokenize, tokenize_more


class TeamRollout(WarnsOnce):
    """
    The argument `rollout_func` of a trainer: a team of roles answers each prompt, one turn after another.

    A row of the batch is one turn, with a prompt of its own. `num_generations` rows are
    `num_generations / rows_per_episode` episodes; the rows of an episode are adjacent, in the order of its turns, so
    that row `i` of a process is turn `i % rows_per_episode`. With rewards of [`joint_reward`], which are the same for
    all rows of an episode, the advantage of GRPO compares whole episodes.

    Args:
        roles (`Sequence[Role]`):
            The roles, in the order in which they speak.
        rounds (`int`, *optional*, defaults to `1`):
            How often each of them speaks.
        generate (`Callable`, *optional*):
            Called as `generate(prompt_ids, role, trainer)` in place of the trainer's engine, once per turn, with the
            prompts of all episodes of the process and a [`Role`]. It returns the token ids of one completion per
            prompt, and their log-probabilities or `None`.

    Raises:
        `TypeError`, `ValueError`: for roles that cannot play together, see [`~teams.roles.check_roles`].

    Attributes:
        rows_per_episode (`int`): Turns of an episode.

    Example:
        ```python
        from trl_fork.teams import Role, TeamRollout, joint_reward

        team = TeamRollout(
            [
                Role("solver", "{prompt}\\nSolve the problem step by step."),
                Role("checker", "{prompt}\\nA colleague wrote:\\n{messages[solver]}\\nCheck it, and give the answer."),
            ]
        )
        ```
    """

    def __init__(self, roles: Sequence[Role], rounds: int = 1, generate: Callable | None = None):
        if isinstance(roles, Role):
            raise TypeError(f"roles must be a list of roles, got the role {roles.name!r}. Put it into a list.")
        self.roles, self.rounds, self.generate = tuple(roles), rounds, generate
        check_roles(self.roles, rounds)
        self.rows_per_episode = len(self.roles) * rounds

    def __call__(self, prompts: list, trainer) -> dict:
        """
        Play the episodes of a process.

        Args:
            prompts (`list`): Prompts of the rows, each as often as it has rows.
            trainer ([`~trl.GRPOTrainer`]):
                Trainer whose engine generates. A [`ForkingGRPOTrainer`] also has the other columns of the rows.

        Returns:
            `dict`: `prompt_ids`, `completion_ids` and `logprobs` of TRL, and for rewards, one value per row: `role`,
            the name of the role; `turn`, its number in the episode; `transcript`, all messages of the episode; and
            `role_beta`, the KL coefficient, if a role has one.

        Raises:
            `ValueError`: naming role, row, value, rule and remedy.
        """
        for what, warning in temperatures_off_policy(self.roles, trainer.args).items():
            if trainer.accelerator.is_main_process:
                self._warn_once(what, warning)
        episodes = self._episodes(prompts, trainer)
        turns = [
            self._turn(self.roles[turn % len(self.roles)], episodes, trainer) for turn in range(self.rows_per_episode)
        ]
        rows = [turn[episode] for episode in range(len(episodes)) for turn in turns]
        output: dict = {name: [row[name] for row in rows] for name in ("prompt_ids", "completion_ids", "logprobs")}
        missing = [logprobs is None for logprobs in output["logprobs"]]
        if all(missing):
            output["logprobs"] = None
        elif any(missing):
            raise ValueError(
                f"generate gave log-probabilities to some turns and None to that of role "
                f"{rows[missing.index(True)]['role']!r}, row {missing.index(True)}: a batch has them for all rows or "
                "for none. Return None for every role, or log-probabilities for every role."
            )
        output["role"] = [row["role"] for row in rows]
        output["turn"] = [row % self.rows_per_episode for row in range(len(rows))]
        output["transcript"] = [episode.transcript for episode in episodes for _ in turns]
        if any(role.beta is not None for role in self.roles):
            betas = {role.name: trainer.args.beta if role.beta is None else role.beta for role in self.roles}
            output["role_beta"] = [betas[name] for name in output["role"]]
        return output

    def check_run(self, args, reward_funcs, train_dataset, eval_dataset) -> None:
        """Check data, rewards and settings of a run before a model is loaded, see [`~teams.checks.check_run`]."""
        check_run(self.roles, args, reward_funcs, train_dataset, eval_dataset)
        if args.process_index == 0:
            for what, warning in temperatures_off_policy(self.roles, args).items():
                self._warn_once(what, warning)

    def _episodes(self, prompts: list, trainer) -> list[Episode]:
        here = f"process {trainer.accelerator.process_index}"
        if len(prompts) % self.rows_per_episode:
            raise ValueError(
                f"{len(prompts)} rows on {here} are not a multiple of {self.rows_per_episode}, the turns of an "
                f"episode ({len(self.roles)} roles x {self.rounds} rounds): an episode would be cut. Set "
                "num_generations and the rows per process of a batch (per_device_train_batch_size x "
                "steps_per_generation, and per_device_eval_batch_size) to multiples of it."
            )
        examples = getattr(trainer, "rollout_examples", None)
        episodes = []
        for row in range(0, len(prompts), self.rows_per_episode):
            place = f"row {row} on {here}"
            if any(other != prompts[row] for other in prompts[row : row + self.rows_per_episode]):
                raise ValueError(
                    f"{place}: rows {row} to {row + self.rows_per_episode - 1} are one episode and have different "
                    "prompts. Set num_generations (and num_generations_eval) to a multiple of "
                    f"{self.rows_per_episode}."
                )
            columns = {
                name: self._column(role, argument, name, examples, row, place)
                for role in self.roles
                for name, argument in role.columns.items()
            }
            episode = Episode(prompts[row], columns, place)
            for role in self.roles if not episode.conversational else ():
                refuse_system(role, place)
            episodes.append(episode)
        return episodes

    def _column(self, role: Role, argument: str, name: str, examples, row: int, place: str):
        field = f"Role {role.name!r}: {argument} has the field {{{name}}}"
        if examples is None:
            raise ValueError(
                f"{field}, a column of the data set, and {place} has the prompt alone: a rollout function of TRL gets "
                "nothing else. Train with ForkingGRPOTrainer, which also has the rows, or take the field out."
            )
        if name not in examples[row]:
            raise ValueError(
                f"{field}, and {place} has no such column; it has {sorted(examples[row])}. Name one of these, or "
                f"double the braces, {{{{{name}}}}}, if it is a text."
            )
        return examples[row][name]

    def _turn(self, role: Role, episodes: list[Episode], trainer) -> list[dict]:
        """Let a role speak in every episode; one row for each."""
        told = [episode.tell(role) for episode in episodes]
        before = [episode.read_before(role) for episode in episodes]
        if episodes[0].conversational or not before[0]:
            prompt_ids = tokenize(trainer, told)
        else:
            more = tokenize_more(trainer, told)
            prompt_ids = [[*ids, *new] for ids, new in zip(before, more, strict=True)]
        completion_ids, logprobs = complete(role, prompt_ids, trainer, self.generate)
        texts = texts_of(trainer, completion_ids)
        rows = []
        for number, (episode, ids, completion, text) in enumerate(
            zip(episodes, prompt_ids, completion_ids, texts, strict=True)
        ):
            episode.take(role, ids, completion, text)
            rows.append(
                {
                    "prompt_ids": ids,
                    "completion_ids": completion,
                    "logprobs": None if logprobs is None else logprobs[number],
                    "role": role.name,
                }
            )
        return rows
