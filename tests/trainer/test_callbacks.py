"""Page and trackers of a real run, against entropies and forks computed naively; and the run that is unchanged."""

import copy
import logging
import math
import re
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from rich.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

import trl_fork.trainer.callbacks as callbacks
from tests.conftest import FixedRollouts, SpyTrainer, build_model, naive_view, train
from tests.oracles import gap_at_threshold, log_probs_and_entropies, select
from tests.report.test_report_page import read
from tests.trainer.test_checkpoints import run as train_with_sampling
from tests.trainer.test_checkpoints import weights
from trl_fork.report.marks import highlight_tokens, token_texts
from trl_fork.trainer.callbacks import ForkReportCallback


def check_page(path, rollouts, model, tokenizer, temperature=1.0):
    """Compare a page with the naive view of the rollouts it names; return its data and the rows shown."""
    data, responses = read(path)
    rows = []
    for entry, names, probabilities, entropies in responses:
        rows.append(int(re.match(r"row (\d+), reward", entry["label"])[1]))
        (rollout,) = [r for r in rollouts if r.row == rows[-1]]
        assert entry["label"] == f"row {rollout.row}, reward {rollout.reward:.3g}"
        assert entry["prompt"] == tokenizer.decode(rollout.prompt)
        assert names[0] == [tokenizer.decode([token]) for token in rollout.completion]
        with torch.no_grad():
            log_probs, expected = log_probs_and_entropies(model, rollout, temperature)
            ids = torch.tensor([rollout.prompt + rollout.completion])
            logits = model(input_ids=ids).logits[0, len(rollout.prompt) - 1 : -1] / temperature
        for t, written in enumerate(rollout.valid):
            if not written:
                assert (entropies[t], probabilities[0][t], names[1][t]) == (0, 1, None)
                continue
            assert entropies[t] == pytest.approx(expected[t].item(), abs=1e-4)
            assert probabilities[0][t] == pytest.approx(log_probs[t].exp().item(), rel=1e-3)
            best = logits[t].softmax(-1).topk(5)
            assert [column[t] for column in names[1:]] == [tokenizer.decode([i]) for i in best.indices]
            assert [column[t] for column in probabilities[1:]] == pytest.approx(best.values.tolist(), rel=1e-3)
    return data, rows


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "entropy_threshold_scope": "micro_batch",
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 2,
        },
        {"token_selection": "random"},
        {"top_entropy_quantile": 1.0},
        {"token_selection": "low_entropy", "temperature": 0.7},
        {"skip_inert_compute": False, "entropy_threshold_scope": "sequence"},
    ],
    ids=str,
)
def test_page_shows_the_policy_that_starts_the_batch(settings, model, start, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)
    callback = ForkReportCallback(1, 5)
    trainer = train(model, tokenizer, rollouts, tmp_path, callbacks=[callback], **settings)
    folder = tmp_path / "run" / "fork_report"
    assert sorted(path.name for path in folder.iterdir()) == ["latest.html", "step-0.html"]
    assert (folder / "latest.html").read_bytes() == (folder / "step-0.html").read_bytes()
    batch, temperature = rollouts.generated[0], trainer.args.temperature
    data, rows = check_page(folder / "step-0.html", batch, start, tokenizer, temperature)
    assert rows == [0, 6, 12, 19, 25]
    entropies = {r.row: log_probs_and_entropies(start, r, temperature)[1].tolist() for r in batch}
    forks = select(batch, entropies, 0.2, "high_entropy", [list(entropies)])
    assert data["threshold"] == pytest.approx(min(entropies[row][t] for row, t in forks), abs=1e-4)
    assert all(entry["correct"] is None for entry in data["responses"]), "nothing says which are right"


def test_tokens_of_the_environment_do_not_fork(model, start, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer, env_mask=True)
    train(model, tokenizer, rollouts, tmp_path, callbacks=[ForkReportCallback(1, 32)])
    assert any(0 in rollout.valid for rollout in rollouts.generated[0])
    check_page(tmp_path / "run" / "fork_report" / "latest.html", rollouts.generated[0], start, tokenizer)


def test_truncated_completions_are_left_out_where_they_are_masked(model, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer, truncate=True)
    callback = ForkReportCallback(1, 32, max_response_tokens=4)
    train(model, tokenizer, rollouts, tmp_path, callbacks=[callback], mask_truncated_completions=True)
    _, responses = read(tmp_path / "run" / "fork_report" / "latest.html")
    whole = [r for r in rollouts.generated[0] if r.completion[-1] == tokenizer.eos_token_id]
    assert [entry["length"] for entry, *_ in responses] == [min(len(r.completion), 4) for r in whole]


def test_correctness_is_what_the_named_reward_says(model, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)
    callback = ForkReportCallback(1, 32, output_dir=tmp_path / "pages", correctness_reward="fixed_reward")
    train(model, tokenizer, rollouts, tmp_path, callbacks=[callback])
    data, _ = read(tmp_path / "pages" / "latest.html")
    expected = [rollout.reward == 1 for rollout in rollouts.generated[0]]
    assert [entry["correct"] for entry in data["responses"]] == expected and len(set(expected)) == 2


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 5}, [0, 2, 4]),
        # Generation at steps 0, 3 and 6: the first one at or after 2, 4 and 6
        ({"max_steps": 7, "steps_per_generation": 3, "per_device_train_batch_size": 8}, [0, 3, 6]),
    ],
    ids=["every step", "every third step"],
)
def test_pages_every_n_steps(settings, steps, model, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer, prompts=4)
    settings = {"learning_rate": 0.01, **settings}
    train(model, tokenizer, rollouts, tmp_path, callbacks=[ForkReportCallback(2, 1)], **settings)
    pages = (tmp_path / "run" / "fork_report").glob("step-*.html")
    assert sorted(int(page.stem.split("-")[1]) for page in pages) == steps


@pytest.mark.parametrize("settings", [{}, {"token_selection": "random"}, {"dynamic_sampling": True}], ids=str)
def test_run_is_the_same_bit_for_bit(settings, tokenizer, tmp_path):
    """Real sampling, so that a random number drawn by the report would show; and from a checkpoint on."""

    class Reporting(SpyTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(ForkReportCallback(1, 3))

    plain = train_with_sampling(tokenizer, tmp_path / "plain", **settings)
    shown = train_with_sampling(tokenizer, tmp_path / "shown", Reporting, **settings)
    assert (tmp_path / "shown" / "fork_report" / "step-10.html").exists()
    assert torch.equal(weights(shown), weights(plain))
    resumed = train_with_sampling(
        tokenizer, tmp_path / "shown", Reporting, resume=str(tmp_path / "shown" / "checkpoint-3"), **settings
    )
    assert torch.equal(weights(resumed), weights(plain))


# ---------------------------------------------------------------------- trackers


def test_tensorboard_gets_histogram_and_table(model, start, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    rollouts = FixedRollouts(tokenizer)
    train(model, tokenizer, rollouts, tmp_path, callbacks=[ForkReportCallback(1, 1)], report_to="tensorboard")
    board = EventAccumulator(str(tmp_path / "board"), size_guidance={"histograms": 0, "tensors": 0}).Reload()

    batch = rollouts.generated[0]
    entropies, _ = naive_view(start, batch)
    forks = select(batch, entropies, 0.2, "high_entropy", [list(entropies)])
    assert gap_at_threshold(batch, entropies, 0.2, [list(entropies)]) > 1e-4
    values = torch.tensor([value for row in entropies.values() for value in row])
    (event,) = board.Histograms("forking/entropies")
    assert event.step == 0
    histogram = event.histogram_value
    assert histogram.num == len(values)
    edges = torch.linspace(0, math.log(len(tokenizer)), 129)[1:]
    certain = [edge for edge in edges if (values - edge).abs().min() > 1e-4]  # whose two sides rounding cannot swap
    assert len(certain) > 100
    for edge in certain:
        buckets = zip(histogram.bucket_limit, histogram.bucket, strict=True)
        assert sum(count for limit, count in buckets if limit <= edge + 1e-4) == (values <= edge).sum()

    (event,) = board.Tensors("forking/frequent_tokens/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    ids = {rollout.row: rollout.completion for rollout in batch}
    times = Counter(tokenizer.decode([ids[row][t]]) for row, t in forks)
    everywhere = Counter(tokenizer.decode([token]) for row in ids.values() for token in row)
    assert [line.split(" | ")[1] for line in lines[2:]] == [str(count) for _, count in times.most_common(20)]
    for line in lines[2:]:
        token, forked, total, mean = line.strip("| ").split(" | ")
        token = token.replace("&#x27;", "").replace("&lt;", "<").replace("&gt;", ">")
        assert (int(forked), int(total)) == (times[token], everywhere[token])
        expected = [entropies[row][t] for row in ids for t, i in enumerate(ids[row]) if tokenizer.decode([i]) == token]
        assert float(mean) == pytest.approx(sum(expected) / len(expected), abs=1e-3)


def test_table_cells_are_neither_markdown_nor_html():
    lines = callbacks._markdown(["token"], [["'<b>|`*\\n'"], [0.12345]]).splitlines()
    assert lines[2] == "| &#x27;&lt;b&gt;&#124;&#96;&#42;&#92;n&#x27; |"
    assert lines[3] == "| 0.123 |"


# ---------------------------------------------------------------------- console


def highlighted(text: str) -> list[str]:
    """Characters that the terminal shows on a coloured background, row by row of the table."""
    found = []
    for line in text.splitlines():
        parsed = Text.from_ansi(line)
        for span in parsed.spans:
            if span.style.bgcolor is not None:
                found += parsed.plain[span.start : span.end]
    return found


@pytest.mark.parametrize("shown", [None, 3])
def test_log_completions_marks_what_is_trained_on(shown, model, tokenizer, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    rollouts = FixedRollouts(tokenizer)
    settings = {"log_completions": True, "num_completions_to_print": shown}
    trainer = train(model, tokenizer, rollouts, tmp_path, skip_inert_compute=False, **settings)
    # TRL prints at every log, and once more at the end of training.
    _, output, _ = capfd.readouterr().out.split("Step 1: tokens trained on are marked")
    rows = trainer.micro_batches[0]
    expected = Counter()
    for row, weights_of_row in zip(rows, trainer.weights[0], strict=True):
        for token, weight in zip(rollouts.generated[0][row].completion, weights_of_row.tolist(), strict=False):
            expected[tokenizer.decode([token])] += weight != 0
    del expected["<eos>"]
    if shown is None:
        assert Counter(highlighted(output)) == +expected
    else:
        assert not Counter(highlighted(output)) - expected
        assert output.count("Advantage") == 1


def test_log_completions_in_evaluation_and_unknown_selections(model, tokenizer, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    rollouts = FixedRollouts(tokenizer)
    settings = {"log_completions": True, "entropy_threshold_scope": "micro_batch", "max_steps": 2, "eval_steps": 1}
    settings |= {"eval_strategy": "steps", "eval_dataset": rollouts.dataset, "learning_rate": 0.01}
    train(model, tokenizer, rollouts, tmp_path, **settings)
    output = capfd.readouterr().out
    assert "fixed_reward" in output
    assert highlighted(output) == [] and "are marked" not in output


def test_sentencepiece_tokens_keep_their_space():
    vocabulary = {"<unk>": 0, "\u2581so": 1, "\u2581it": 2, "s": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert tokenizer.decode([1]) == "so", "the reason for all this"
    assert token_texts(tokenizer, [1, 2, 3]) == [" so", " it", "s"]
    assert highlight_tokens(tokenizer, [1, 2, 3], [False] * 3).plain == " so its"


# ---------------------------------------------------------------------- what it refuses, and what it survives


def test_values_that_mean_nothing_are_refused():
    for name in ("every_n_steps", "num_responses", "max_response_tokens"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            ForkReportCallback(**{name: 0})


def test_another_trainer_is_refused(model, tokenizer, tmp_path):
    with pytest.raises(TypeError, match="needs a ForkingGRPOTrainer, got one with GRPOConfig"):
        train(
            model,
            tokenizer,
            FixedRollouts(tokenizer),
            tmp_path,
            GRPOTrainer,
            GRPOConfig,
            callbacks=[ForkReportCallback()],
        )


def test_a_page_that_cannot_be_written_ends_no_run(model, tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    (tmp_path / "pages").write_text("a file")
    callback = ForkReportCallback(1, output_dir=tmp_path / "pages")
    with caplog.at_level(logging.WARNING):
        trainer = train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, callbacks=[callback])
    assert trainer.state.global_step == 1
    assert "Step 0: no fork report was written to" in caplog.text


def test_page_shows_the_adapter(model, tokenizer, tmp_path):
    class Before(SpyTrainer):
        def train(self):
            weights = get_peft_model_state_dict(self.model)
            self.start = {name: value.detach().clone() for name, value in weights.items()}
            return super().train()

    rollouts = FixedRollouts(tokenizer)
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    trainer = train(
        model, tokenizer, rollouts, tmp_path, Before, peft_config=adapter, callbacks=[ForkReportCallback(1)]
    )
    page = tmp_path / "run" / "fork_report" / "step-0.html"
    start = get_peft_model(build_model(tokenizer), adapter)
    set_peft_model_state_dict(start, trainer.start)
    check_page(page, rollouts.generated[0], start, tokenizer)
    with pytest.raises(AssertionError), start.disable_adapter():
        check_page(page, rollouts.generated[0], start, tokenizer)


def test_model_stays_in_its_mode(tokenizer, tmp_path):
    modes = []

    class Watching(SpyTrainer):
        def compute_loss(self, model, *args, **kwargs):
            modes.append(model.training)
            return super().compute_loss(model, *args, **kwargs)

    model = build_model(tokenizer, attention_dropout=0.5)
    start = copy.deepcopy(model).eval()
    rollouts = FixedRollouts(tokenizer)
    train(model, tokenizer, rollouts, tmp_path, Watching, callbacks=[ForkReportCallback(1)])
    assert modes == [True]
    check_page(tmp_path / "run" / "fork_report" / "step-0.html", rollouts.generated[0], start, tokenizer)
