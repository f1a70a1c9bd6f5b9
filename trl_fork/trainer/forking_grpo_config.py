"""Settings of forking-token GRPO."""

import copy
from argparse import ArgumentTypeError
from dataclasses import dataclass, field

from trl import GRPOConfig

from ..credit import POOLS, TOKEN_SELECTIONS, Chain, Random, TopFraction, build_credit
from ..credit.presets import preset_instruction
from ..data.yaml_values import json_value
from ..looped.credit import EXIT, LOOP_CREDITS
from .credit_checks import (
    LOSS_DENOMINATORS,
    check_contrast_instruction,
    check_credit,
    check_selection,
    check_windows,
)
from .loop_checks import check_loop_credit
from .objective_checks import BALANCE_REWARDS, OBJECTIVE_NAMES, PARTITIONS, check_objective
from .range_checks import check_ranges
from .setting_checks import check_dynamic_sampling_settings, check_passes, check_precision, check_scoring_graph


EXAMPLE = '{"top_fraction": {"fraction": 0.2}}'  # a value of `token_credit` on a command line
SCALES = ("group", "batch", "none")  # TRL's values of `scale_rewards`


@dataclass
class ForkingGRPOConfig(GRPOConfig):
    r"""
    Configuration of [`ForkingGRPOTrainer`]: all of [`~trl.GRPOConfig`], and the tokens of the policy gradient.

    Source of the method: "Beyond the 80/20 Rule" (https://huggingface.co/papers/2506.01939), section 5.

    Parameters:
        > Parameters that select the tokens

        top_entropy_quantile (`float`, *optional*, defaults to `0.2`):
            $\rho$ of the paper, in (0, 1]: fraction of the valid completion tokens that form the forking set,
            `ceil(rho * N)` of `N`. `1.0` selects every token: GRPO with this configuration's other defaults. With
            `epsilon_high=None`, `skip_inert_compute=False` and `compact_generation=False` too it is
            [`~trl.GRPOTrainer`], bit for bit.
        token_selection (`str`, *optional*, defaults to `"high_entropy"`):
            `"high_entropy"`: train on the forking set. `"low_entropy"`: on its complement (the paper's bottom 80 %).
            `"random"`: on as many tokens drawn uniformly, the control arm.
        token_credit (`str` or `dict`, *optional*):
            Credit rules, which say what weight each token has and when. They replace `top_entropy_quantile` and
            `token_selection`. The value is the name of a preset such as `"temporal_forking"`, a chain of rules such as
            `{"top_fraction": {"fraction": 0.2, "score": "position"}}` (JSON on a command line), or the dotted path of
            a rule of yours. See [`~credit.build_credit`] and the page "Token credit" of the documentation.
        contrast_instruction (`str`, *optional*):
            Instruction that makes the negative prompts of GCPO (https://huggingface.co/papers/2605.29198), such as
            `"Note: Intentionally generate an incorrect answer."`. A copy of the prompt has it at its end, in a
            conversation at the end of the last message of the user, after a blank line. Where the data have a column
            `contrast_prompt`, that is the negative prompt. Credit rules that need `contrast_log_probs` read the
            log-probabilities of a completion after it; without such a rule the instruction is refused. The preset
            `"gcpo"` sets it.
        entropy_threshold_scope (`str`, *optional*, defaults to `"batch"`):
            Pool over which the top fraction is taken. `"batch"`: all ranks and accumulation steps of one generation
            batch, by the entropies of the policy that starts it. `"micro_batch"`: the current micro-batch over all
            ranks, by the current policy's (TRL's scope). `"local"`: the current micro-batch of one rank (the paper's
            released code). `"sequence"`: each completion by itself, by the entropies of the policy that starts the
            generation batch.
        loss_denominator (`str`, *optional*, defaults to `"selected"`):
            Divisor of the policy loss: the number of `"selected"` tokens (the paper's v2, Eq. 6, and its code) or of
            `"all"` valid tokens (v1, and TRL), about `1 / rho` times as many. `"selected"` is defined for
            the losses that count tokens: `"dapo"`, `"bnpo"`, `"cispo"` and `"vespo"`.
        epsilon_high (`float`, *optional*, defaults to `0.28`):
            Upper clipping bound (DAPO's clip-higher, as in the paper's section 5.2). `None` uses `epsilon`.

        > Parameters of the objective

        objective (`str`, *optional*, defaults to `"policy_gradient"`):
            `"policy_gradient"`: TRL's loss. `"trajectory_balance"`: match the distribution
            `pi_ref(y) exp(reward / beta) / Z` in place of maximising the reward, so that several ways to a reward are
            kept (FlowRL, https://huggingface.co/papers/2509.15207; DISA, https://huggingface.co/papers/2605.17295).
            The loss is the mean over completions of `w * (log Z + log(pi / pi_ref) - reward / beta) ** 2`. `beta` is
            TRL's, the KL coefficient, and has to be above 0: FlowRL's 15 is `beta=0.0667`. Credit rules multiply the
            gradient of each token's log-probability, never the residual, so `loss_denominator` has to be `"all"`
            beside them. `loss_type`, `epsilon` and `epsilon_high` are not read. A group with one reward is trained on
            as well: its completions move to the shares that they have under the reference. With `dynamic_sampling`
            such groups are replaced.
        partition (`str`, *optional*, defaults to `"group"`):
            Estimate of `log Z`. `"group"`: the mean of `reward / beta - log(pi / pi_ref)` over the completions of a
            group, by the policy that starts the generation batch. `"offline"`: the column `log_partition` of the data,
            as `trl-fork partition` writes it.
        length_normalized (`bool`, *optional*, defaults to `True`):
            Whether `log(pi / pi_ref)` is a mean over the tokens of a completion (FlowRL), or their sum. The mean moves
            the target: it is `pi_ref(y) exp(|y| (reward / beta - c))`, with `c` in the place of `log Z`.
        balance_reward (`str`, *optional*, defaults to `"advantage"`):
            The reward of that loss. `"advantage"`: TRL's advantage (FlowRL). `"reward"`: the weighted sum of the
            reward functions, for which `scale_rewards` is not read. `partition="offline"` needs it. A completion that
            no function could score is left out.
        max_importance_ratio (`float`, *optional*, defaults to `10.0`):
            Largest `w`, the probability of a completion by the policy over that by the policy that wrote it; at
            least 1.
        mirror_step_size (`float`, *optional*):
            Step size `eta` of mirror steps, above 0, in units of one over the reward: in the place of `pi_ref`, the
            reference of that loss is `pi_start ** (1 / (1 + eta * beta)) * pi_ref ** (eta * beta / (1 + eta * beta))`,
            where `pi_start` is the policy that starts the generation batch, and in the place of `beta` stands
            `beta + 1 / eta`. A generation batch is then a step of magnetic mirror descent
            (https://huggingface.co/papers/2206.05825) with `pi_ref` as its magnet, in the spirit of DICE
            (https://huggingface.co/papers/2606.08068). The steps end at the target of that loss without them; the
            smaller `eta`, the shorter the way of each. `length_normalized` has to be `False`. `None`: no mirror steps.

        > Parameters of looped language models

        loop_credit (`str`, *optional*):
            RLTT (https://huggingface.co/papers/2602.10520), for a looped model such as Ouro
            ([`~looped.OuroForCausalLM`]): the log-probability of a token in the policy loss is
            `sum_t omega_t log P_t`, where `P_t` is read after loop `t`. `"uniform"`: the weights are 1 / R each.
            `"progressive"`: `t ** loop_credit_power / sum`. `"exit"`: for each token the probabilities of the exit
            gate, which is trained through them. `None`, or `none` on a command line: the last loop's, GRPO.
            Completions are sampled from the last loop, so that for `t < R` this is supervision weighted by the
            advantage, and no policy gradient of `P_t`. RLTT has neither ratio nor clipping: there is one update per
            generation batch, and TRL's ratio is 1. `beta` has to be 0. Entropies, which select the tokens, are those
            of the last loop.
        loop_credit_power (`float`, *optional*, defaults to `1.0`):
            Power of `"progressive"`, at least 0: the larger, the more weight is on the last loops.

        > Parameters that control the work

        skip_inert_compute (`bool`, *optional*, defaults to `True`):
            Leave out work whose gradient is exactly zero: padding beyond a micro-batch's own longest row,
            completions without gradient, the LM head of tokens outside the selection. The completions of a group with
            one reward get an advantage of exactly 0, where TRL's rounding leaves about 6e-4. A saving that would not
            be exact is off, and the log says why, see [`~trainer.savings.plan_savings`].
        padding_free (`bool`, *optional*, defaults to `True`):
            Run the model, in scoring and training, on rows that stand one after the other, without padding between
            them. Where rows may move within an optimizer step they are packed to `max_tokens_per_forward` and spread
            evenly over the processes. It needs `attn_implementation` to be `"sdpa"`, `"flex_attention"` or one of
            flash attention, and a model that keeps packed rows apart: the trainer tries its own rows, and where their
            scores differ it pads.
        max_tokens_per_forward (`int`, *optional*):
            Tokens of prompts and completions in a packed forward pass of one process. By default those of a
            micro-batch padded to the longest prompt and completion of the generation batch,
            `per_device_train_batch_size * (prompt + completion)`, so that no pass takes more memory than TRL's; on a
            CPU at most 1,024.
        reuse_scoring_graph (`bool`, *optional*, defaults to `False`):
            With one update per generation batch, make it from the graph of the pass that scores the batch, which is
            one forward pass less. On one process, without dropout. The graph of all completions with an advantage is
            in memory at once: with gradient checkpointing `layers * hidden_size` numbers for each of their tokens.
        compact_generation (`bool`, *optional*, defaults to `True`):
            Where completions are generated by `generate` of transformers (without vLLM and continuous batching), use
            this package's decoding loop: each prompt is read once for all of its completions, completions that have
            ended leave the batch, dropout is off, and each draws from random numbers of its own, so that it does not
            depend on the others. The distribution is that of `generate`, which stands in, with a warning, where the
            loop does not know a setting or the model, see [`~generation.decoding.DecodingLoop`].
        dynamic_sampling (`bool`, *optional*, defaults to `False`):
            DAPO's dynamic sampling: groups without an advantage are dropped, and fresh prompts generated until the
            batch is full of groups that carry a signal. The batch keeps its shape and the run its number of steps.
        dynamic_sampling_max_rounds (`int`, *optional*, defaults to `10`):
            Generation rounds per batch, the first one included, before it is topped up with other groups.
        dynamic_sampling_reward (`str`, *optional*):
            Name of the reward function whose spread makes a group informative; the weighted sum if not set. The
            paper's authors use accuracy, so that a length penalty does not make an unsolved problem informative.

    Raises:
        `ValueError`: for a value out of range, or a combination that cannot be right.
    """

    top_entropy_quantile: float = field(
        default=0.2,
        metadata={
            "help": "Rho of Beyond the 80/20 Rule, in (0, 1]: fraction of the valid completion tokens, those of "
            "highest entropy, that form the forking set. 1.0 selects every token."
        },
    )
    token_selection: str = field(
        default="high_entropy",
        metadata={
            "help": "Tokens to train on: 'high_entropy' (the forking set), 'low_entropy' (its complement) or 'random' "
            "(as many tokens drawn uniformly, the control arm).",
            "choices": list(TOKEN_SELECTIONS),
        },
    )
    token_credit: dict | str | None = field(
        default=None,
        metadata={
            "help": "Credit rules in the place of top_entropy_quantile and token_selection: a preset, a chain "
            "'{rule: {parameter: value}}' as JSON, or the dotted path of a rule."
        },
    )
    contrast_instruction: str | None = field(
        default=None,
        metadata={
            "help": "Instruction that turns a prompt into GCPO's negative prompt, such as 'Note: Intentionally "
            "generate an incorrect answer.'; for credit rules that need contrast_log_probs."
        },
    )
    entropy_threshold_scope: str = field(
        default="batch",
        metadata={
            "help": "Pool over which the top fraction is taken: 'batch' (the generation batch over all ranks), "
            "'micro_batch' (the current micro-batch over all ranks, as TRL), 'local' (the current micro-batch of one "
            "rank, as the paper's code) or 'sequence' (each completion).",
            "choices": list(POOLS),
        },
    )
    loss_denominator: str = field(
        default="selected",
        metadata={
            "help": "What the policy loss is divided by: the 'selected' tokens (the paper's v2 and its code) or 'all' "
            "valid tokens (v1 and TRL).",
            "choices": list(LOSS_DENOMINATORS),
        },
    )
    epsilon_high: float | None = field(
        default=0.28,
        metadata={"help": "Upper clipping bound (DAPO's clip-higher). None uses the value of epsilon."},
    )
    objective: str = field(
        default="policy_gradient",
        metadata={
            "help": "'policy_gradient' (TRL's loss) or 'trajectory_balance' (FlowRL, DISA: match the distribution of "
            "the reference times exp(reward / beta)).",
            "choices": list(OBJECTIVE_NAMES),
        },
    )
    partition: str = field(
        default="group",
        metadata={
            "help": "Trajectory balance: log Z from the 'group' of a completion, or 'offline' from the column "
            "log_partition of the data, as `trl-fork partition` writes it.",
            "choices": list(PARTITIONS),
        },
    )
    length_normalized: bool = field(
        default=True,
        metadata={"help": "Trajectory balance: the log-ratio to the reference is a mean over tokens, not their sum."},
    )
    balance_reward: str = field(
        default="advantage",
        metadata={
            "help": "Trajectory balance: the 'advantage' of a completion is its reward, or the weighted sum of its "
            "rewards ('reward', which partition 'offline' needs).",
            "choices": list(BALANCE_REWARDS),
        },
    )
    max_importance_ratio: float = field(
        default=10.0,
        metadata={
            "help": "Trajectory balance: largest weight of a completion, its probability by the policy over that by "
            "the policy that wrote it."
        },
    )
    mirror_step_size: float | None = field(
        default=None,
        metadata={
            "help": "Trajectory balance: step size of mirror steps, in which the reference is mixed with the policy "
            "that starts the generation batch. By default the reference is fixed."
        },
    )
    loop_credit: str | None = field(
        default=None,
        metadata={
            "help": "Looped models, RLTT: weights of the loops in the policy loss, 'uniform', 'progressive' or 'exit' "
            "(the exit gate's probabilities). By default the last loop alone.",
            "choices": [*LOOP_CREDITS, "none"],
        },
    )
    loop_credit_power: float = field(
        default=1.0,
        metadata={"help": "Looped models: the weight of loop t is t ** loop_credit_power with 'progressive'."},
    )
    skip_inert_compute: bool = field(
        default=True,
        metadata={"help": "Leave out work whose gradient is exactly zero."},
    )
    padding_free: bool = field(
        default=True,
        metadata={"help": "Run the model on rows that stand one after the other, without padding between them."},
    )
    max_tokens_per_forward: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of prompts and completions in a packed forward pass of one process. By default those of a "
            "padded micro-batch, on a CPU at most 1,024."
        },
    )
    reuse_scoring_graph: bool = field(
        default=False,
        metadata={
            "help": "Make the update from the graph of the scoring pass, for memory: with gradient checkpointing "
            "layers x hidden size numbers for each token with an advantage. One process, one update per batch."
        },
    )
    compact_generation: bool = field(
        default=True,
        metadata={
            "help": "In place of transformers' generate, a loop that reads each prompt once and in which completions "
            "leave the batch as they end. Their distribution is the same."
        },
    )
    dynamic_sampling: bool = field(
        default=False,
        metadata={
            "help": "DAPO's dynamic sampling: replace groups whose rewards are all equal by freshly generated ones."
        },
    )
    dynamic_sampling_max_rounds: int = field(
        default=10,
        metadata={"help": "Generation rounds per batch before it is topped up with other groups."},
    )
    dynamic_sampling_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of the reward function whose spread makes a group informative; the weighted sum if not set."
        },
    )

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "token_credit"]

    @property
    def credit(self) -> Chain | None:
        """The credit rules of the run; `None` where every token has weight 1, which is GRPO's objective."""
        if self.token_credit is not None:
            return build_credit(self.token_credit)
        if self.top_entropy_quantile == 1.0:
            return None
        if self.token_selection == "random":
            return Chain((Random(self.top_entropy_quantile),))
        return Chain((TopFraction(self.top_entropy_quantile, complement=self.token_selection == "low_entropy"),))

    def __post_init__(self):
        if isinstance(self.token_credit, str) and self.token_credit.lstrip()[:1] in ("{", "["):
            try:
                self.token_credit = json_value(self.token_credit, EXAMPLE)
            except ArgumentTypeError as error:
                raise ValueError(f"token_credit: {error}.") from None
        if self.num_generations is None:  # TRL's type allows it, and its code divides by it
            raise ValueError(
                "num_generations must be a whole number of at least 2, got None: it is the size of a group. Leave it "
                "out for its default, 8."
            )
        if isinstance(self.token_credit, str) and self.token_credit.lower() in ("none", "null"):
            self.token_credit = None
        if isinstance(self.loop_credit, str) and self.loop_credit.lower() in ("none", "null"):
            self.loop_credit = None
        if isinstance(self.token_credit, str) and self.contrast_instruction is None:
            self.contrast_instruction = preset_instruction(self.token_credit)
        check_ranges(self)
        check_selection(self)
        check_credit(self, self.credit)
        if self.token_credit is not None:  # otherwise the trainer may be given rules as `token_credit_func`
            check_contrast_instruction(self, self.credit)
        check_passes(self)
        check_dynamic_sampling_settings(self)
        check_precision(self)
        super().__post_init__()
        if self.scale_rewards not in SCALES:  # TRL checks this only after the first generation
            raise ValueError(
                f"scale_rewards must be one of {list(SCALES)}, or True ('group') or False ('none'), got "
                f"{self.scale_rewards!r}."
            )
        check_windows(self, self.credit)
        check_scoring_graph(self)
        check_objective(self, self.credit)
        check_loop_credit(self, self.credit)
        if self.loop_credit == EXIT:  # transformers searches where there is an adapter, or no checkpointing
            self.ddp_find_unused_parameters = False

    def __getstate__(self):
        # `training_args.bin` is this object, pickled. It lies in every checkpoint and is pushed to the Hub.
        return {name: None if name.endswith("_token") else value for name, value in self.__dict__.items()}

    def __deepcopy__(self, memo):
        # The default would go through `__getstate__`; a copy within the process keeps its token.
        memo[id(self)] = copied = object.__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied
