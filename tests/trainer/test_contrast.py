"""Log-probabilities after a negative prompt, in real training: against the naive objective, and the refusals."""

import copy
import logging
import re

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from tests.conftest import (
    NUM_GENERATIONS,
    FixedRollouts,
    SpyTrainer,
    build_model,
    build_trainer,
    gradient,
    naive_view,
    relative_difference,
    train,
    weight_change,
)
from tests.naive_rules import contrast_score
from tests.oracles import Rollout, credit, informative_batch, log_probs_and_entropies, loss
from trl_fork import ForkingGRPOConfig
from trl_fork.trainer.callbacks import GenerationCallback


INSTRUCTION = "bewrong7"
CUTS = {"32x1": (32, 1), "8x4": (8, 4), "2x16": (2, 16)}
HERE, CONTRASTED = __name__, "tests.credit.own_rules.contrasted"


def alone(signals):
    return 0.25 - signals.contrast_log_probs


alone.needs, alone.sparse = {"contrast_log_probs"}, False


def negative_text(text: str) -> str:
    return f"{text}\n\n{INSTRUCTION}"


def naive_contrast(model, batch, negative_ids) -> dict[int, torch.Tensor]:
    """Log-probabilities of each row's completion after `negative_ids(rollout)`."""
    with torch.no_grad():
        return {
            r.row: log_probs_and_entropies(model, Rollout(negative_ids(r), r.completion, r.reward, r.group, r.row))[0]
            for r in batch
        }


# Configuration of the rules, and the same for the oracle.
RULES = {
    "own": (CONTRASTED, {"weight": "contrasted"}),
    "gcpo": ("gcpo", {"kind": "rank"}),
    "shift": (
        {"rank": {"score": "prompt_shift", "power": 1.0}},
        {"kind": "rank", "score": "prompt_shift", "power": 1.0},
    ),
    # At 0.2 rows with one prompt and one first token would tie.
    "top": (
        {"top_fraction": {"fraction": 0.3, "score": "prompt_contrast"}},
        {"fraction": 0.3, "score": "prompt_contrast"},
    ),
    "alone": (f"{HERE}.alone", {"weight": "alone"}),
}


def naive_weights(model, batch, negative_ids, rule="own"):
    """Weights of `(row, token)` pairs under a rule, by its name."""
    contrast = naive_contrast(model, batch, negative_ids)
    with torch.no_grad():
        plain = {r.row: log_probs_and_entropies(model, r)[0] for r in batch}
    pairs = {row: list(zip(plain[row].tolist(), contrast[row].tolist(), strict=True)) for row in plain}
    scores = {
        "contrasted": {row: (contrast[row] - plain[row]).clamp(-2, 2).exp().tolist() for row in plain},
        "alone": {row: (0.25 - contrast[row]).tolist() for row in plain},
        "prompt_contrast": {row: [contrast_score(*pair) for pair in pairs[row]] for row in plain},
        "prompt_shift": {row: [abs(b - a) for a, b in pairs[row]] for row in plain},
    }
    return credit(batch, [RULES[rule][1]], scores, [[r.row for r in batch]])


def naive_gradient(start, batch, weights):
    _, row_advantages = naive_view(start, batch)
    return gradient(start, loss(start, batch, row_advantages, weights, sum(weights.values())))


class Seen(GenerationCallback):
    """Keeps the batches that the trainer shows."""

    def __init__(self):
        self.batches = []

    def on_generation(self, trainer, batch):
        self.batches.append(batch)


def text_ids(rollouts, tokenizer):
    return lambda r: tokenizer(negative_text(rollouts.texts[r.group]))["input_ids"]


# ---------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("padding", [{}, {"pad_to_multiple_of": 8}, {"skip_inert_compute": False}], ids=str)
def test_padding_as_trl_makes_it(padding, tokenizer, tmp_path):
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts = FixedRollouts(tokenizer, truncate=True)
    train(
        model, tokenizer, rollouts, tmp_path, own_prompts=False, contrast_instruction=INSTRUCTION,
        token_credit=CONTRASTED, per_device_train_batch_size=8, gradient_accumulation_steps=4,
        mask_truncated_completions=True, **padding,
    )  # fmt: skip
    (batch,) = rollouts.generated
    assert not all(any(r.valid) for r in batch)
    weights = naive_weights(start, batch, text_ids(rollouts, tokenizer))
    assert relative_difference(weight_change(start, model), naive_gradient(start, batch, weights)) < 1e-5


@pytest.mark.parametrize(
    ("rule", "cut"),
    [(rule, cut) for rule in ("own", "gcpo") for cut in CUTS] + [("shift", "8x4"), ("top", "8x4"), ("alone", "8x4")],
)
def test_gradient_equals_naive_objective(rule, cut, tokenizer, tmp_path):
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts, seen = FixedRollouts(tokenizer), Seen()
    size, accumulation = CUTS[cut]
    trainer = train(
        model, tokenizer, rollouts, tmp_path, own_prompts=False, contrast_instruction=INSTRUCTION,
        token_credit=RULES[rule][0], per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
        callbacks=[seen],
    )  # fmt: skip
    (batch,) = rollouts.generated
    assert len({len(r.prompt) for r in batch}) > 2 and len({len(r.completion) for r in batch}) > 2
    negative_ids = text_ids(rollouts, tokenizer)
    weights = naive_weights(start, batch, negative_ids, rule)
    assert relative_difference(weight_change(start, model), naive_gradient(start, batch, weights)) < 1e-5
    # One pass for the negative prompts, and one for the prompts if the rule needs them: nothing else does
    assert trainer.scoring_passes == (1 if rule == "alone" else 2)
    assert trainer.state.log_history[0]["time/scoring"] > 0
    contrast = naive_contrast(start, batch, negative_ids)
    for r, found in zip(batch, seen.batches[0].contrast_log_probs, strict=True):
        assert torch.allclose(found[: len(r.completion)], contrast[r.row], atol=1e-5)
        assert not found[len(r.completion) :].any()


def test_conversations_and_trls_own_pass(tokenizer, tmp_path):
    """The last message of the user gets the instruction; TRL's old-log-probability pass is the positive one."""
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts = FixedRollouts(tokenizer)
    prompts = [[{"role": "user", "content": text}] for text in rollouts.texts]
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    steps = []

    class Stepwise(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(copy.deepcopy(model))

    trainer = train(
        model, tokenizer, rollouts, tmp_path, own_prompts=False, contrast_instruction=INSTRUCTION, max_steps=2,
        token_credit=CONTRASTED, train_dataset=Dataset.from_dict({"prompt": prompts}), callbacks=[Stepwise()],
        **settings,
    )  # fmt: skip
    (batch,) = rollouts.generated
    user, assistant = tokenizer.convert_tokens_to_ids(["<user>", "<assistant>"])

    def negative_ids(r):
        return [user, *tokenizer(negative_text(rollouts.texts[r.group]))["input_ids"], assistant]

    assert all(r.prompt[0] == user and r.prompt[-1] == assistant for r in batch)
    assert trainer.scoring_passes == 2  # TRL's own, and that of the negative prompts
    weights = naive_weights(start, batch, negative_ids)
    # The first step is on policy. It trains on half of the rows, but is divided by half of the total of all.
    rows = {row for micro_batch in trainer.rows_of_micro_batches(batch)[:2] for row in micro_batch}
    _, row_advantages = naive_view(start, batch)
    window = [r for r in batch if r.row in rows]
    expected = loss(start, window, row_advantages, weights, sum(weights.values()) / 2)
    assert relative_difference(weight_change(start, steps[0]), gradient(start, expected)) < 1e-5


@pytest.mark.parametrize("same", [False, True])
def test_column_of_the_data(same, tokenizer, tmp_path):
    """The column comes before the instruction; with the prompt itself in it, nothing is contrasted."""
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts, seen = FixedRollouts(tokenizer), Seen()
    column = rollouts.texts if same else [text[::-1] + "xyz" * n for n, text in enumerate(rollouts.texts)]
    train(
        model, tokenizer, rollouts, tmp_path, own_prompts=False, contrast_instruction=INSTRUCTION,
        token_credit="gcpo" if same else CONTRASTED, callbacks=[seen],
        train_dataset=rollouts.dataset.add_column("contrast_prompt", column),
    )  # fmt: skip
    (batch,) = rollouts.generated
    weights = naive_weights(start, batch, lambda r: tokenizer(column[r.group])["input_ids"])
    assert relative_difference(weight_change(start, model), naive_gradient(start, batch, weights)) < 1e-5
    shown = seen.batches[0]
    if same:
        assert torch.allclose(shown.contrast_log_probs, shown.log_probs, atol=1e-6)
        assert torch.allclose(shown.weights[shown.mask.bool()], torch.tensor(1.0), atol=1e-5)
    else:
        assert (shown.contrast_log_probs - shown.log_probs).abs().max() > 0.1


def test_dropout_of_an_adapter_is_off(tokenizer, tmp_path):
    """The negative pass is without dropout, with the adapter on."""
    adapter = LoraConfig(
        r=4, lora_alpha=16, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(build_model(tokenizer), adapter)
    start = copy.deepcopy(model).eval()
    rollouts, seen = FixedRollouts(tokenizer), Seen()
    column = [text + "no" for text in rollouts.texts]
    train(
        model, tokenizer, rollouts, tmp_path, own_prompts=False, token_credit=CONTRASTED, callbacks=[seen],
        train_dataset=rollouts.dataset.add_column("contrast_prompt", column),
    )  # fmt: skip
    (batch,) = rollouts.generated
    contrast = naive_contrast(start, batch, lambda r: tokenizer(column[r.group])["input_ids"])
    for r, found in zip(batch, seen.batches[0].contrast_log_probs, strict=True):
        assert torch.allclose(found[: len(r.completion)], contrast[r.row], atol=1e-5)
    assert any(module.training for module in model.modules())


def test_temperature(tokenizer, tmp_path):
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts, seen = FixedRollouts(tokenizer), Seen()
    train(
        model, tokenizer, rollouts, tmp_path, own_prompts=False, contrast_instruction=INSTRUCTION, temperature=1.7,
        token_credit=CONTRASTED, callbacks=[seen],
    )  # fmt: skip
    (batch,) = rollouts.generated
    negative_ids = text_ids(rollouts, tokenizer)
    with torch.no_grad():
        for r, found in zip(batch, seen.batches[0].contrast_log_probs, strict=True):
            negative = Rollout(negative_ids(r), r.completion, r.reward, r.group, r.row)
            expected, _ = log_probs_and_entropies(start, negative, temperature=1.7)
            assert torch.allclose(found[: len(r.completion)], expected, atol=1e-5)


# ---------------------------------------------------------------------- rows that move


def test_negative_prompts_stay_with_their_rows_in_dynamic_sampling(tokenizer, tmp_path):
    """Every prompt has another negative prompt; half of the first round is replaced by refills."""
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rewards = [[0.5] * 8 if n % 2 else [0.0, 1.0, 0.25, 0.75] * 2 for n in range(8)]
    rollouts, seen = FixedRollouts(tokenizer, rewards=rewards, prompts=8), Seen()
    column = [f"{n}" * (n + 1) + text for n, text in enumerate(rollouts.texts)]
    train(
        model, tokenizer, rollouts, tmp_path, own_prompts=False, dynamic_sampling=True,
        token_credit=CONTRASTED, callbacks=[seen], dynamic_sampling_max_rounds=30,
        train_dataset=rollouts.dataset.add_column("contrast_prompt", column), per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
    )  # fmt: skip
    assert len(rollouts.generated) > 1
    batch = informative_batch(rollouts.generated, NUM_GENERATIONS, 4)
    columns = {tuple(tokenizer(text)["input_ids"]): own for text, own in zip(rollouts.texts, column, strict=True)}

    def negative_ids(r):
        return tokenizer(columns[tuple(r.prompt)])["input_ids"]

    contrast = naive_contrast(start, batch, negative_ids)
    for r, found in zip(batch, seen.batches[0].contrast_log_probs, strict=True):
        assert torch.allclose(found[: len(r.completion)], contrast[r.row], atol=1e-5)
    weights = naive_weights(start, batch, negative_ids)
    assert relative_difference(weight_change(start, model), naive_gradient(start, batch, weights)) < 1e-5


def test_resumed_within_a_generation_batch(tokenizer, tmp_path):
    settings = {
        "own_prompts": False, "contrast_instruction": INSTRUCTION, "token_credit": CONTRASTED,
        "per_device_train_batch_size": 8, "steps_per_generation": 4, "gradient_accumulation_steps": 1,
        "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 1, "max_steps": 4,
    }  # fmt: skip

    class Resumed(SpyTrainer):
        def train(self):
            return super().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))

    models = []
    for trainer_class in (SpyTrainer, Resumed):
        models.append(build_model(tokenizer))
        trainer = train(models[-1], tokenizer, FixedRollouts(tokenizer), tmp_path, trainer_class, **settings)
    assert trainer.scoring_passes == 0, "the batch and its weights are from the checkpoint"
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def test_evaluation(tokenizer, tmp_path):
    """Weights of an evaluation are of its own batch, its own negative prompts, and the policy that is evaluated."""
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts = FixedRollouts(tokenizer)
    evaluated = rollouts.dataset.add_column("contrast_prompt", [text + "no" for text in rollouts.texts])
    found = []

    class Evaluated(SpyTrainer):
        def get_high_entropy_mask(self, entropies, mask, threshold):
            weights = super().get_high_entropy_mask(entropies, mask, threshold)
            found.append((self.model.training, weights[mask.bool()].cpu(), list(self.rollouts.latest)))
            return weights

    trainer = train(
        model, tokenizer, rollouts, tmp_path, Evaluated, own_prompts=False, contrast_instruction=INSTRUCTION,
        token_credit=CONTRASTED, eval_dataset=evaluated, eval_strategy="steps", eval_steps=1,
        eval_on_start=True, per_device_eval_batch_size=32,
    )  # fmt: skip
    assert [training for training, _, _ in found] == [False, True, False]
    _, weights, batch = found[0]
    naive = naive_weights(start, batch, lambda r: tokenizer(rollouts.texts[r.group] + "no")["input_ids"])
    expected = torch.tensor([naive[r.row, t] for r in batch for t in range(len(r.completion))])
    assert torch.allclose(weights, expected * len(expected) / expected.sum(), rtol=1e-4)
    assert not torch.equal(found[2][1], weights), "the second evaluation is of another policy"
    assert any("eval_credit/effective_fraction" in entry for entry in trainer.state.log_history)


# ---------------------------------------------------------------------- refusals


def refusal(settings, message, tokenizer, tmp_path, error=ValueError):
    settings = {"own_prompts": False, "token_credit": CONTRASTED} | settings
    rollouts = settings.pop("rollouts", None) or FixedRollouts(tokenizer)
    with pytest.raises(error, match=message):
        build_trainer(build_model(tokenizer), tokenizer, rollouts, tmp_path, **settings)


def with_column(rollouts, values):
    return rollouts.dataset.add_column("contrast_prompt", values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrast_instruction": " "}, r"contrast_instruction must be a text.* got ' '"),
        ({"contrast_instruction": 3}, r"contrast_instruction must be a text.* got 3"),
        ({"contrast_instruction": INSTRUCTION, "token_credit": "random"}, "is set, but nothing reads"),
        (
            {"contrast_instruction": INSTRUCTION, "entropy_threshold_scope": "micro_batch"},
            r"entropy_threshold_scope='micro_batch' does not go with|cannot be used with",
        ),
        (
            {
                "token_credit": {"top_fraction": {"fraction": 0.2}, CONTRASTED: {}},
                "entropy_threshold_scope": "local",
            },
            r"cannot be used with|does not go with",
        ),
    ],
    ids=str,
)
def test_refused_settings(settings, message, tmp_path):
    settings = {"token_credit": CONTRASTED} | settings
    with pytest.raises(ValueError, match=message):
        ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


def at_the_loss(signals):
    return torch.ones_like(signals.mask)


at_the_loss.needs, at_the_loss.mass = {"contrast_log_probs"}, "from_masks"


def test_refused_at_the_loss(tmp_path):
    with pytest.raises(ValueError, match=r"entropy_threshold_scope='local' does not go with the credit rules \["):
        ForkingGRPOConfig(
            str(tmp_path), use_cpu=True, bf16=False, token_credit=f"{HERE}.at_the_loss",
            entropy_threshold_scope="local",
        )  # fmt: skip


def test_refused_before_a_model_is_loaded(tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)
    prompts = [[{"role": "user", "content": text}] for text in rollouts.texts]
    conversations = Dataset.from_dict({"prompt": prompts})
    without_user = Dataset.from_dict({"prompt": [[{"role": "system", "content": "a"}]] * 4})
    instructed = {"contrast_instruction": INSTRUCTION}
    missing = [rollouts.texts[0], rollouts.texts[1], None, ""]
    chat = Dataset.from_dict({"prompt": ["<|im_start|>user\nabc<|im_end|>"] * 4})
    special = Dataset.from_dict({"prompt": ["abc", "a<user>b", "c", "d"]})
    other_form = conversations.add_column("contrast_prompt", rollouts.texts)
    no_instruction = {"eval_dataset": rollouts.dataset, "train_dataset": with_column(rollouts, rollouts.texts)}
    cases = [
        ({}, r"train_dataset \(columns \['prompt'\]\): a credit rule needs contrast_log_probs.*contrast_instruction"),
        ({"train_dataset": rollouts.dataset.to_iterable_dataset()}, "train_dataset .*needs contrast_log_probs"),
        (no_instruction | {"eval_strategy": "steps"}, r"eval_dataset \(columns \['prompt'\]\)"),
        (
            no_instruction | {"eval_dataset": {"own": rollouts.dataset}, "eval_strategy": "steps"},
            r"own \(columns \['prompt'\]\)",
        ),
        (
            {"train_dataset": with_column(rollouts, missing)},
            "train_dataset: row 2, column 'contrast_prompt': contrast_prompt is None",
        ),
        (
            {"train_dataset": with_column(rollouts, ["a", " ", "b", "c"])},
            "train_dataset: row 1, column 'contrast_prompt': contrast_prompt is ' '",
        ),
        ({"train_dataset": other_form}, "row 0, .* prompt is a conversation and contrast_prompt a text"),
        (
            {"train_dataset": with_column(rollouts, rollouts.texts), "remove_unused_columns": True},
            "remove_unused_columns is set, and would take 'contrast_prompt' out of train_dataset",
        ),
        (instructed | {"train_dataset": chat}, r"row 0, column 'prompt': contrast_instruction belongs after the que"),
        (instructed | {"train_dataset": special}, r"row 1, column 'prompt': .* holds the special token '<user>'"),
        (instructed | {"train_dataset": without_user}, "row 0, column 'prompt': .* last message of the user"),
        (
            instructed | {"token_credit": None},
            r"contrast_instruction='bewrong7' is set, but nothing reads",
        ),
        (
            instructed | {"token_credit": None, "top_entropy_quantile": 1.0},
            "nothing reads .* all tokens have one weight",
        ),
        (
            instructed | {"token_credit": None, "token_credit_func": lambda signals: signals.log_probs},
            "is set, but nothing reads",
        ),
    ]
    for settings, message in cases:
        refusal(settings, message, tokenizer, tmp_path)
    pictures = conversations.add_column("image", [None] * 4)
    refusal(
        instructed | {"train_dataset": pictures}, r"train_dataset has the columns \['image'\]", tokenizer, tmp_path,
        NotImplementedError,
    )  # fmt: skip


def test_a_stream_is_looked_at_row_by_row(tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)
    stream = with_column(rollouts, [*rollouts.texts[:3], None]).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"step 0, a row of the batch: contrast_prompt is None"):
        train(
            build_model(tokenizer), tokenizer, rollouts, tmp_path, own_prompts=False,
            token_credit=CONTRASTED, train_dataset=stream,
        )  # fmt: skip


def test_a_negative_prompt_beyond_the_positions_is_warned_of(tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    train(
        build_model(tokenizer, max_position_embeddings=30), tokenizer, FixedRollouts(tokenizer), tmp_path,
        own_prompts=False, contrast_instruction=INSTRUCTION * 3, token_credit=CONTRASTED,
    )  # fmt: skip
    assert re.search(r"Step 0: a negative prompt .* have \d\d tokens, and the model 30 positions", caplog.text)
