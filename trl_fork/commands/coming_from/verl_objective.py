"""verl's objective and rewards in TRL's terms."""

from collections.abc import Iterator

from .fates import CHANGED, DECIDE, DEFAULT, KEPT, NO_COUNTERPART, NOT_NEEDED, RENAMED, Fate, Source
from .verl_keys import ACTOR, KEYS, OVERLONG


_LOSS = f"{ACTOR}.policy_loss.loss_mode"
_AGGREGATION = f"{ACTOR}.loss_agg_mode"
# Of `loss_agg_mode` for the loss modes that read it.
_AGGREGATIONS = {
    "token-mean": ("dapo", ""),
    "seq-mean-token-mean": ("grpo", ""),
    "seq-mean-token-sum": (
        "dr_grpo",
        "TRL divides by max_completion_length as well: AdamW hardly sees such a constant, max_grad_norm does.",
    ),
    "seq-mean-token-sum-norm": ("dr_grpo", ""),
}
_ADVANTAGES = {
    "rloo": "Nearest is scale_rewards: none, whose advantages are (n - 1) / n of RLOO's.",
    "reinforce_plus_plus_baseline": "Nearest is scale_rewards: batch, with the deviation over completions.",
}


def objective(source: Source) -> Iterator[Fate]:
    """What becomes of the keys about the objective."""
    yield from _advantage(source)
    yield from _loss(source)
    yield from _clipping(source)
    yield from _kl(source)
    yield from _selection(source)


def _advantage(source: Source) -> Iterator[Fate]:
    key, by_std = "algorithm.adv_estimator", "algorithm.norm_adv_by_std_in_grpo"
    name = str(source.get(key))
    if name in ("grpo", "grpo_vectorized"):
        yield source.fate(key, KEPT, "It is what TRL computes.")
    else:
        nearest = _ADVANTAGES.get(name, "The recipe trains by GRPO, which is another method.")
        yield source.fate(key, NO_COUNTERPART, f"TRL's advantage is that of grpo. {nearest}")
    yield source.fate(by_std, CHANGED, scale_rewards="group" if source.get(by_std) else "none")


def loss_type(source: Source) -> tuple[str, str]:
    """`loss_type` and `importance_sampling_level`."""
    mode = source.get(_LOSS)
    if mode == "gspo":
        return "grpo", "sequence"
    if mode in ("sapo", "cispo"):
        return mode, "token"
    return _AGGREGATIONS.get(source.get(_AGGREGATION), ("dapo", ""))[0], "token"


def _loss(source: Source) -> Iterator[Fate]:
    mode, aggregation = source.get(_LOSS), source.get(_AGGREGATION)
    kind, level = loss_type(source)
    decided = {"loss_type": kind, "importance_sampling_level": level}
    if mode == "vanilla":
        yield source.fate(_LOSS, CHANGED, importance_sampling_level=level)
        if aggregation in _AGGREGATIONS:
            yield source.fate(_AGGREGATION, CHANGED, _AGGREGATIONS[aggregation][1], loss_type=kind)
        else:
            yield source.fate(_AGGREGATION, NO_COUNTERPART, "The recipe takes the mean over tokens.", loss_type=kind)
    elif mode in ("gspo", "sapo", "cispo"):
        why = "TRL clips the ratio from above only." if mode == "cispo" else ""
        yield source.fate(_LOSS, CHANGED, why, **decided)
        if source.has(_AGGREGATION):
            yield source.fate(_AGGREGATION, NOT_NEEDED, "The loss mode decides.")
    else:
        yield source.fate(_LOSS, NO_COUNTERPART, "The recipe has GRPO's clipped ratio, another loss.", **decided)
        yield source.fate(_AGGREGATION, NOT_NEEDED, "The loss mode decides.")
    for key, option in (("tau_pos", "sapo_temperature_pos"), ("tau_neg", "sapo_temperature_neg")):
        if mode == "sapo":
            yield source.fate(f"{ACTOR}.{key}", RENAMED, **{option: source.get(f"{ACTOR}.{key}")})
        elif source.has(f"{ACTOR}.{key}"):
            yield source.fate(f"{ACTOR}.{key}", NOT_NEEDED, "Of the loss mode sapo.")


def _clipping(source: Source) -> Iterator[Fate]:
    both, low, high, dual = (f"{ACTOR}.clip_ratio{end}" for end in ("", "_low", "_high", "_c"))
    kind, _ = loss_type(source)
    either = {key: source.get(both, 0.2) if source.get(key) is None else source.get(key) for key in (low, high)}
    if source.has(both):
        if (source.has(low) and source.has(high)) or source[both] == 0.2:
            yield source.fate(both, NOT_NEEDED, KEYS[both].why)
        else:
            why = (
                "verl 0.9 reads clip_ratio_low and clip_ratio_high, which are 0.2 if the file does not have them. If "
                "your version read this, it is epsilon and epsilon_high."
            )
            yield source.fate(both, DECIDE, why)
    if kind == "cispo":
        yield source.fate(low, NO_COUNTERPART, "TRL clips the ratio from above only.")
        yield source.fate(high, CHANGED, "TRL's is the limit of the ratio itself.", epsilon_high=1 + either[high])
    else:
        yield source.fate(low, RENAMED, epsilon=either[low])
        yield source.fate(high, RENAMED, epsilon_high=either[high])
    if kind in ("cispo", "sapo"):
        if source.has(dual):
            yield source.fate(dual, NOT_NEEDED, f"{kind} has no dual clip.")
    else:
        yield source.fate(dual, RENAMED, "The dual clip.", delta=float(source.get(dual)))


def _kl(source: Source) -> Iterator[Fate]:
    switch, coefficient, kind = (f"{ACTOR}.{name}" for name in ("use_kl_loss", "kl_loss_coef", "kl_loss_type"))
    if source.get(switch):
        yield source.fate(switch, CHANGED, "The coefficient is beta.")
        yield source.fate(coefficient, RENAMED, beta=float(source.get(coefficient)))
        if source.get(kind) in ("low_var_kl", "k3"):
            yield source.fate(kind, KEPT, "It is TRL's.")
        else:
            yield source.fate(kind, NO_COUNTERPART, "TRL's estimator is low_var_kl.")
    else:
        yield source.fate(switch, CHANGED, beta=0.0)
        yield from (source.fate(key, NOT_NEEDED, "Not read.") for key in (coefficient, kind) if source.has(key))
    switch, coefficient = "algorithm.use_kl_in_reward", "algorithm.kl_ctrl.kl_coef"
    if source.get(switch) and source.get(coefficient):
        why = "TRL has a KL term in the loss alone: `beta`, after a trial, in place of kl_ctrl.kl_coef."
        yield source.fate(switch, NO_COUNTERPART, why)
    elif source.has(switch):
        yield source.fate(switch, NOT_NEEDED, "There is no KL term in the reward.")
    if source.has(coefficient):
        yield source.fate(coefficient, NOT_NEEDED, "Read with use_kl_in_reward only.")


def _selection(source: Source) -> Iterator[Fate]:
    key = f"{ACTOR}.entropy_top_ratio"
    ratio, (kind, _) = source.get(key), loss_type(source)
    if ratio is None:
        why = "verl trains on all tokens. 0.2 trains on forking tokens."
        yield source.fate(key, CHANGED, why, top_entropy_quantile=1.0)
    elif kind in ("dapo", "cispo"):
        yield source.fate(key, RENAMED, KEYS[key].why, top_entropy_quantile=float(ratio))
    else:
        why = f"{kind} does not divide by a number of tokens, so there is none of selected ones. {KEYS[key].why}"
        yield source.fate(key, CHANGED, why, top_entropy_quantile=float(ratio), loss_denominator="all")


def rewards(source: Source) -> Iterator[Fate]:
    """What becomes of the keys about rewards and dynamic sampling."""
    overlong = bool(source.get(f"{OVERLONG}.enable"))
    names = ["accuracy_reward", *(["soft_overlong_punishment"] if overlong else [])]
    manager, limit = "reward.reward_manager.name", "reward.reward_kwargs.max_resp_len"
    yield source.fate(manager, CHANGED, KEYS[manager].why, reward_funcs=names)
    keys = [f"{OVERLONG}.{name}" for name in ("enable", "len", "penalty_factor")]
    if overlong:
        if not source.get(keys[1]):
            raise ValueError(f"{source.written[keys[0]]} is true, but there is no len beside it: the penalty's length")
        yield source.fate(keys[0], CHANGED, "soft_overlong_punishment is a reward beside the others.")
        yield source.fate(keys[1], RENAMED, soft_overlong_punish_cache=source.get(keys[1]))
        weight = "The penalty's weight, with accuracies of 1 or 0; where verl's are +1 or -1, [2.0, this]."
        yield source.fate(keys[2], CHANGED, weight, reward_weights=[1.0, float(source.get(keys[2]))])
        longest = source.get(limit) or source.get("data.max_response_length")
        yield source.fate(
            limit if source.has(limit) else "data.max_response_length",
            RENAMED,
            soft_overlong_max_completion_len=longest,
        )
    else:
        yield from (source.fate(key, NOT_NEEDED, "There is no penalty.") for key in [*keys, limit] if source.has(key))
    yield from _filter(source)


def _filter(source: Source) -> Iterator[Fate]:
    switch, metric, rounds = (
        f"algorithm.filter_groups.{name}" for name in ("enable", "metric", "max_num_gen_batches")
    )
    yield source.fate(switch, RENAMED, dynamic_sampling=bool(source.get(switch)))
    if not source.get(switch):
        yield from (
            source.fate(key, NOT_NEEDED, "Groups are not filtered.") for key in (metric, rounds) if source.has(key)
        )
        return
    name = source.get(metric)
    if name == "acc":
        why = "A penalty on length makes no group informative."
        yield source.fate(metric, CHANGED, why, dynamic_sampling_reward="accuracy_reward")
    elif name in (None, "reward", "seq_reward", "seq_final_reward", "score"):
        yield source.fate(metric, DEFAULT, "The weighted sum of the rewards.")
    else:
        yield source.fate(metric, DECIDE, "dynamic_sampling_reward takes the name of one of the reward_funcs.")
    limit = source.get(rounds)
    if limit and limit > 0:
        why = "verl ends the run after so many; here the batch is then topped up with other groups."
        yield source.fate(rounds, RENAMED, why, dynamic_sampling_max_rounds=limit)
    else:
        why = "verl generates without limit; here the default is a limit of 10."
        yield source.fate(rounds, CHANGED, why, dynamic_sampling_max_rounds=10)
