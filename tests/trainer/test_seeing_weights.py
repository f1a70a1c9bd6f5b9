"""What a person sees of soft weights of a real run: the page, the console, the curves and the training line."""

import base64
import math
import zlib
from collections import Counter

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from tests.conftest import FixedRollouts, build_model, build_tokenizer, train
from tests.report.test_report_page import read
from trl_fork.report.curves import plot_training
from trl_fork.report.marks import highlight_tokens
from trl_fork.trainer.callbacks import ForkReportCallback
from trl_fork.trainer.telemetry import summary_line


# Weights between 0.1 and 4 or so in rows of positive advantage, near 1 elsewhere, and a schedule of their strength.
SOFT = {
    "proportional": {
        "score": "local_entropy",
        "window": 5,
        "temperature": 0.1,
        "strength": {"linear": [1.0, 0.5, 1.0]},
    }
}


@pytest.fixture(scope="module")
def soft_run(tmp_path_factory):
    """Two steps; the trainer, its rollouts, what the console showed of the first step, and its folder."""
    tokenizer, path, printed = build_tokenizer(), tmp_path_factory.mktemp("soft"), []
    rollouts = FixedRollouts(tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        patch.setenv("COLUMNS", "200")
        show = Console.print

        def spy(self, *values, **keywords):
            with self.capture() as captured:
                show(self, *values, **keywords)
            printed.append(captured.get())

        patch.setattr(Console, "print", spy)
        trainer = train(
            build_model(tokenizer), tokenizer, rollouts, path, token_credit=SOFT, skip_inert_compute=False,
            max_steps=2, learning_rate=0.01, log_completions=True, callbacks=[ForkReportCallback(1, 32)],
        )  # fmt: skip
    return trainer, rollouts, printed[0], path / "run"


def weights_by_row(trainer, rollouts, step=0):
    """The weights that the loss of a step was given."""
    batch = rollouts.generated[step]
    return {
        row: weights.tolist()[: len(batch[row].completion)]
        for row, weights in zip(trainer.micro_batches[step], trainer.weights[step], strict=True)
    }


def test_page_of_the_training(soft_run):
    trainer, rollouts, _, folder = soft_run
    expected = weights_by_row(trainer, rollouts)
    data, responses = read(folder / "fork_report" / "step-0.html")
    weights = np.frombuffer(zlib.decompress(base64.b64decode(data["weights"])), "<f4")
    assert len(responses) == len(expected) == 32
    for row, (*_, entropies) in enumerate(responses):
        own, weights = weights[: len(entropies)], weights[len(entropies) :]
        assert own.tolist() == pytest.approx(expected[row], rel=1e-6)
        assert row != 0 or len(set(own.tolist())) > 1
    assert len(weights) == 0


def test_a_selection_keeps_the_page_of_forks(model, tokenizer, tmp_path):
    train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, callbacks=[ForkReportCallback(1, 2)])
    assert read(tmp_path / "run" / "fork_report" / "latest.html")[0]["weights"] is None


def steps_of(text: str) -> dict[str, Counter]:
    """Characters of a table by how the terminal shows them: `filled`, `underlined` or `coloured`."""
    found = {name: Counter() for name in ("filled", "underlined", "coloured")}
    for line in text.splitlines():
        parsed = Text.from_ansi(line)
        for span in parsed.spans:
            style = span.style
            assert bool(style.bold and style.bgcolor) == bool(style.bgcolor), "bold is what is left without colour"
            if style.bgcolor or style.color:
                name = "filled" if style.bgcolor else "underlined" if style.underline else "coloured"
                found[name] += Counter(parsed.plain[span.start : span.end])
    return found


def test_console_has_three_steps_of_weight(soft_run):
    trainer, rollouts, output, _ = soft_run
    weights = weights_by_row(trainer, rollouts)
    largest = max(map(max, weights.values()))
    expected = {name: Counter() for name in ("filled", "underlined", "coloured")}
    for row, own in weights.items():
        for token, weight in zip(rollouts.generated[0][row].completion, own, strict=True):
            share = weight / largest
            name = "filled" if share >= 2 / 3 else "underlined" if share >= 1 / 3 else "coloured" if share else "plain"
            text = trainer.processing_class.decode([token])
            if name != "plain" and text != "<eos>":
                expected[name] += Counter(text)
    assert min(map(len, expected.values())) > 0, "all steps are there"
    assert steps_of(output) == expected
    title = "Step 1: tokens trained on are marked by weight, filled from two thirds of the largest on, underlined from"
    assert title in output


def test_steps_of_one_completion(tokenizer):
    ids = tokenizer("abcdef")["input_ids"]
    shown = highlight_tokens(tokenizer, ids, [3.0, 2.0, 1.0, 0.5, 0.0, 1e-9])
    assert [str(span.style).split(" on ")[0] for span in shown.spans] == [
        "bold black", "bold black", "underline #B07A00", "#B07A00", "#B07A00",
    ]  # fmt: skip
    assert highlight_tokens(tokenizer, ids, [0.0] * 6).spans == []
    compared = highlight_tokens(tokenizer, ids, [1.0] + [0.0] * 5, largest=2.0)
    assert [str(span.style) for span in compared.spans] == ["underline #B07A00"]


def test_curves_and_training_line(soft_run, tmp_path, monkeypatch):
    trainer, rollouts, *_ = soft_run
    history = trainer.state.log_history
    drawn = {}
    save = Figure.savefig

    def spy(self, *arguments, **keywords):
        drawn[self.get_suptitle()] = {axes.get_title("left"): list(axes.lines[0].get_ydata()) for axes in self.axes}
        return save(self, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", spy)
    plot_training(history, tmp_path / "training.png")
    ((title, panels),) = drawn.items()
    assert title == "Reinforcement learning with token credit"
    assert panels["Scheduled strength"] == [1.0, 0.75]
    assert panels["Tokens trained on"] == [1.0, 1.0]
    for step, effective in enumerate(panels["Effective fraction of tokens"]):
        values = [weight for row in weights_by_row(trainer, rollouts, step).values() for weight in row]
        expected = math.fsum(values) ** 2 / len(values) / math.fsum(w * w for w in values)
        assert effective == pytest.approx(expected, rel=1e-4) and effective < 0.99
        line = summary_line(history[step], step + 1, 2)
        assert (
            f"  trained on 100%, effectively {effective:.0%}  strength {panels['Scheduled strength'][step]:g}  "
            in line
        )
