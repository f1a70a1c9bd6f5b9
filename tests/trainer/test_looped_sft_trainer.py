"""Stage I of a looped model in TRL's SFT trainer, against sums over single tokens and loops."""

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

from tests.conftest import build_looped_model, build_model, build_tokenizer
from trl_fork.trainer.looped_sft_trainer import LoopedSFTTrainer


ROWS = [("ab", "cde"), ("b", "aab9"), ("abc", "d"), ("c", "bbbbbb")]


@pytest.fixture
def looped():
    model = build_looped_model(build_tokenizer())
    torch.manual_seed(1)
    torch.nn.init.normal_(model.model.early_exit_gate.weight, std=0.2)
    return model


def make_trainer(model, path, *, batch=4, accumulation=1, max_steps=1, **settings):
    tokenizer = build_tokenizer()
    dataset = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
            for q, a in ROWS
        ]
    )
    return LoopedSFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(path),
            max_steps=max_steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            learning_rate=0.5,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            completion_only_loss=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        **settings,
    )


def naive_loss(model, coefficient):
    """The mean over all answer tokens of all rows, its parts from models that have no more loops."""
    tokenizer = build_tokenizer()
    total, depth, losses_of_loops, count = 0.0, 0.0, [0.0] * 3, 0
    for question, answer in ROWS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(chat, return_dict=False)
        assert ids[: len(prompt)] == prompt
        inputs = torch.tensor([ids])
        logits = [model(input_ids=inputs, num_loops=t).logits[0].log_softmax(-1) for t in (1, 2, 3)]
        states = [model.model(input_ids=inputs, num_loops=t).last_hidden_state[0] for t in (1, 2, 3)]
        gates = [model.model.early_exit_gate(state)[:, 0].sigmoid() for state in states]
        for place in range(len(prompt), len(ids)):
            first, second = gates[0][place - 1], gates[1][place - 1]
            exits = [first, (1 - first) * second, (1 - first) * (1 - second)]
            losses = [-row[place - 1, ids[place]] for row in logits]
            entropy = -sum(p * p.log() for p in exits)
            total = total + sum(p * loss for p, loss in zip(exits, losses, strict=True)) - coefficient * entropy
            depth += sum((t + 1) * p.item() for t, p in enumerate(exits))
            losses_of_loops = [a + b.item() for a, b in zip(losses_of_loops, losses, strict=True)]
            count += 1
    return total / count, depth / count, [loss / count for loss in losses_of_loops]


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("coefficient", [0.1, 0.0])
def test_a_step_is_that_of_the_naive_loss(looped, tmp_path, batch, accumulation, coefficient):
    other = build_looped_model(build_tokenizer())
    other.load_state_dict(looped.state_dict())
    loss, depth, losses = naive_loss(other, coefficient)
    loss.backward()
    trainer = make_trainer(looped, tmp_path, batch=batch, accumulation=accumulation, exit_entropy_coef=coefficient)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), abs=2e-4)  # TRL rounds it
    if accumulation == 1:  # otherwise the mean over micro-batches of unequal length
        assert logged["loops/expected_depth"] == pytest.approx(depth, abs=1e-4)
        for number, expected in enumerate(losses, start=1):
            assert logged[f"loops/loss_{number}"] == pytest.approx(expected, abs=1e-4)
    moved = 0
    for (name, trained), parameter in zip(looped.named_parameters(), other.parameters(), strict=True):
        expected = parameter.detach() - 0.5 * parameter.grad
        torch.testing.assert_close(trained.detach(), expected, atol=2e-5, rtol=1e-4, msg=name)
        moved += bool(parameter.grad.abs().max() > 1e-4)
    assert moved == len([*looped.parameters()]), "the gate is trained too"


def test_evaluation_has_the_same_loss(looped, tmp_path):
    loss, depth, _ = naive_loss(looped, 0.1)
    metrics = make_trainer(looped, tmp_path, batch=2).evaluate()
    assert metrics["eval_loss"] == pytest.approx(loss.item(), abs=0.05)  # Trainer's mean over batches of rows
    assert metrics["eval_loops/expected_depth"] == pytest.approx(depth, abs=0.05)


def test_a_large_bonus_spreads_the_exits(looped, tmp_path):
    """Exits become uniform, whose expected depth is 2 of 3 loops."""
    torch.nn.init.constant_(looped.model.early_exit_gate.bias, 2.0)
    trainer = make_trainer(looped, tmp_path, max_steps=60, exit_entropy_coef=50.0)
    trainer.args.learning_rate = 0.01
    for parameter in looped.parameters():
        parameter.requires_grad = False
    for parameter in looped.model.early_exit_gate.parameters():
        parameter.requires_grad = True
    before = naive_loss(looped, 0.1)[1]
    trainer.train()
    assert before < 1.5 and abs(naive_loss(looped, 0.1)[1] - 2) < 0.1


@pytest.mark.parametrize("kind", ["plain", "negative"])
def test_what_cannot_be_trained_so_is_refused(kind, looped, tmp_path):
    if kind == "plain":
        with pytest.raises(ValueError, match=r"LoopedSFTTrainer needs a looped model, .* got a Qwen3ForCausalLM"):
            make_trainer(build_model(build_tokenizer()), tmp_path)
    else:
        with pytest.raises(ValueError, match=r"exit_entropy_coef must not be negative, got -0.1"):
            make_trainer(looped, tmp_path, exit_entropy_coef=-0.1)
