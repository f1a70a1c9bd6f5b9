"""A tiny real model and real trainers with fixed rollouts. No download, no GPU."""

import os


# Before anything imports the Hub client or TRL: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tests.oracles import Rollout, advantages, log_probs_and_entropies
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.looped import OuroConfig, OuroForCausalLM


# Tensors are tiny: more threads only wait for each other, several times as long on a busy machine.
torch.set_num_threads(1)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
NUM_GENERATIONS = 8


def build_tokenizer():
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<user>", "<assistant>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        padding_side="left",
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


def tiny_sizes(tokenizer) -> dict:
    """Settings of a decoder's configuration, for any architecture."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build_model(tokenizer, seed=0, **overrides):
    torch.manual_seed(seed)
    config = Qwen3Config(
        **{
            **tiny_sizes(tokenizer),
            "head_dim": 8,
            "max_position_embeddings": 128,
            # Large enough that entropies spread from near 0 to near log(vocabulary)
            "initializer_range": 0.3,
            "tie_word_embeddings": False,
            **overrides,
        }
    )
    return Qwen3ForCausalLM(config)


def build_looped_model(tokenizer, seed=0, **overrides):
    """A tiny Ouro: 2 layers, run 3 times."""
    torch.manual_seed(seed)
    settings = {
        **tiny_sizes(tokenizer),
        "max_position_embeddings": 128,
        # At 0.3, float32 and float64 differ in the sixth place of a gradient; the norms make loops sensitive.
        "initializer_range": 0.2,
        "total_ut_steps": 3,
        **overrides,
    }
    return OuroForCausalLM(OuroConfig(**settings))


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def model(tokenizer):
    return build_model(tokenizer)


class FixedRollouts:
    """
    A `rollout_func` that always gives the same completions for a prompt, and the naive view of what it gave.

    Four prompts of different lengths, eight completions each, three to twelve tokens long; completion `i` of a prompt
    has reward `rewards[prompt][i]`. With `truncate` the completions of every third row lack their end token.
    """

    def __init__(self, tokenizer, seed=1, truncate=False, env_mask=False, rewards=None, prompts=4):
        generator = torch.Generator().manual_seed(seed)

        def draw(low, high, size=(1,)):
            return torch.randint(low, high, size, generator=generator).tolist()

        self.tokenizer = tokenizer
        self.texts = ["".join(LETTERS[i] for i in draw(0, 26, (3 + 2 * n,))) for n in range(prompts)]
        self.completions, self.masks, self.rewards = {}, {}, {}
        for n, text in enumerate(self.texts):
            for i in range(NUM_GENERATIONS):
                length = draw(3, 13)[0]
                ids = draw(4, 4 + len(LETTERS), (length,))
                if not (truncate and (n * NUM_GENERATIONS + i) % 3 == 0):
                    ids[-1] = tokenizer.eos_token_id
                self.completions[text, i] = ids
                self.masks[text, i] = [int(b > 0) for b in draw(0, 4, (length,))] if env_mask else [1] * length
                self.rewards[text, i] = draw(0, 4)[0] / 3 if rewards is None else rewards[n][i]
        self.env_mask, self.truncate = env_mask, truncate
        self.generated: list[list[Rollout]] = []  # one list per generation batch, in generation order

    @property
    def dataset(self):
        return Dataset.from_dict({"prompt": self.texts})

    def __call__(self, prompts, trainer):
        # This rank generates `len(prompts)` of the rows of all processes, from this one on. Its first group may have
        # begun on the rank before.
        first = trainer.accelerator.process_index * len(prompts)
        occurrences = list(self._occurrences(prompts, first % trainer.num_generations))
        batch = []
        for row, (text, i) in enumerate(occurrences, start=first):
            ids = self.completions[text, i]
            truncated = ids[-1] != self.tokenizer.eos_token_id
            valid = [m * (not (truncated and trainer.mask_truncated_completions)) for m in self.masks[text, i]]
            batch.append(
                Rollout(
                    self.tokenizer(text)["input_ids"],
                    list(ids),
                    self.rewards[text, i],
                    self.texts.index(text),
                    row,
                    valid,
                )
            )
        self.generated.append(batch)
        self.latest = batch
        output = {
            "prompt_ids": [r.prompt for r in batch],
            "completion_ids": [r.completion for r in batch],
            "logprobs": None,
            "fixed_reward": [r.reward for r in batch],
        }
        if self.env_mask:
            output["env_mask"] = [self.masks[key] for key in occurrences]
        return output

    def generate(self, prompt_ids, trainer):
        """The completions for prompts that the trainer has tokenized, in the place of a model's."""
        letters = set(LETTERS)
        texts = ["".join(t for t in self.tokenizer.convert_ids_to_tokens(ids) if t in letters) for ids in prompt_ids]
        output = self(texts, trainer)
        for rollout, ids in zip(self.latest, prompt_ids, strict=True):
            rollout.prompt = list(ids)
        return output["completion_ids"], None

    def reward(self, completions, **kwargs):
        """The rewards of what `generate` has given last."""
        return [rollout.reward for rollout in self.latest]

    @staticmethod
    def _occurrences(prompts, before):
        """Which completion of its prompt each row is, where `before` of the first prompt came earlier."""
        seen = {prompts[0]: before - 1}
        for text in prompts:
            seen[text] = seen.get(text, -1) + 1
            yield text, seen[text] % NUM_GENERATIONS


def fixed_reward(completions, fixed_reward, **kwargs):
    return fixed_reward


class SpyTrainer(ForkingGRPOTrainer):
    """
    Records the rows of every micro-batch, none of one that is skipped, the weights it was given, and the
    log-probability passes. With `rollouts` it makes prompts and batches as without a rollout function; only the tokens
    that a model would sample are fixed.
    """

    rollouts: FixedRollouts | None = None

    def __init__(self, *args, **kwargs):
        self.micro_batches, self.weights, self.scoring_passes = [], [], 0
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        rows = len(output["advantages"])
        first = self.accelerator.process_index * rows
        output["row"] = torch.arange(first, first + rows)  # travels with its row
        return output

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if self.rollouts is None:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        return self.rollouts.generate(prompt_ids, self)

    def training_step(self, *args, **kwargs):
        before = len(self.micro_batches)
        loss = super().training_step(*args, **kwargs)
        if len(self.micro_batches) == before:  # its rows were packed into later ones
            self.micro_batches.append([])
        return loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.model.training:
            # A row without any token makes the number of rows equal on all processes.
            self.micro_batches.append(inputs["row"][inputs["prompt_mask"].any(1).cpu()].tolist())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def get_high_entropy_mask(self, entropies, mask, threshold):
        weights = super().get_high_entropy_mask(entropies, mask, threshold)
        self.weights.append(weights)
        return weights

    def _get_per_token_logps_and_entropies(self, model, input_ids, *args, **kwargs):
        self.scoring_passes += not torch.is_grad_enabled()
        return super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)

    def rows_of_micro_batches(self, batch: list[Rollout]) -> list[list[int]]:
        """Row numbers, in the generation order of all processes, of every micro-batch so far."""
        return [[batch[row].row for row in rows] for rows in self.micro_batches]


def one_step(tmp_path, **settings) -> dict:
    """Arguments of a run of plain SGD on the CPU: one step of the whole batch, unless `settings` say otherwise."""
    return {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 1,
        "per_device_train_batch_size": 32,
        "num_generations": NUM_GENERATIONS,
        "max_completion_length": 16,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **settings,
    }


def build_trainer(
    model,
    tokenizer,
    rollouts,
    tmp_path,
    trainer_class=SpyTrainer,
    config_class=ForkingGRPOConfig,
    own_prompts=True,
    **settings,
):
    """
    A trainer with plain SGD on fixed rollouts. One step of the whole batch by default. With `own_prompts` the rollouts
    are a rollout function, which makes its prompts itself; without, a [`SpyTrainer`] makes them from the data.
    """
    trainer_arguments = {
        key: settings.pop(key)
        for key in ("peft_config", "train_dataset", "eval_dataset", "callbacks", "token_credit_func")
        if key in settings
    }
    trainer = trainer_class(
        model=model,
        reward_funcs=fixed_reward if own_prompts else rollouts.reward,
        args=config_class(**one_step(tmp_path, **settings)),
        processing_class=tokenizer,
        **{"train_dataset": rollouts.dataset, "rollout_func": rollouts if own_prompts else None} | trainer_arguments,
    )
    if not own_prompts:
        trainer.rollouts = rollouts
    return trainer


def train(*arguments, **settings):
    """Train what [`build_trainer`] builds, and return the trainer."""
    trainer = build_trainer(*arguments, **settings)
    trainer.train()
    return trainer


def weight_change(before, after) -> torch.Tensor:
    """The gradient of one SGD step with learning rate 1, over all trainable parameters, as one vector."""
    after = dict(after.named_parameters())
    return torch.cat(
        [(p.detach() - after[name].detach()).flatten() for name, p in before.named_parameters() if p.requires_grad]
    )


def gradient(model, value) -> torch.Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
    )


def relative_difference(actual, expected) -> float:
    assert expected.norm() > 0, "the comparison would hold for two zeros"
    return ((actual - expected).norm() / expected.norm()).item()


def naive_view(model, batch):
    """Entropies by row (of `model` as it is), and advantages by row."""
    with torch.no_grad():
        entropies = {r.row: log_probs_and_entropies(model, r)[1].tolist() for r in batch}
    return entropies, {r.row: a for r, a in zip(batch, advantages(batch), strict=True)}


@pytest.fixture
def start(model):
    """An untouched copy of the model, for the oracle."""
    return copy.deepcopy(model)


PACKAGED = ("configs", "trl_fork", "LICENSE", "README.md", "pyproject.toml", "setup.cfg", "setup.py")


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A copy of what the package is built from: a build leaves folders beside the sources."""
    root, copied = Path(__file__).parents[1], tmp_path_factory.mktemp("sources")
    files = subprocess.run(
        ["git", "ls-files", *PACKAGED], cwd=root, capture_output=True, text=True
    ).stdout.splitlines()
    if not files:
        pytest.skip("not a checkout")
    for name in files:
        if (root / name).is_file():
            (copied / name).parent.mkdir(parents=True, exist_ok=True)
            (copied / name).write_bytes((root / name).read_bytes())
    return copied


def build_wheel(sources: Path, directory: Path) -> Path:
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(directory), str(sources)]
    subprocess.run(command, check=True)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def wheel(sources, tmp_path_factory) -> Path:
    return build_wheel(sources, tmp_path_factory.mktemp("wheel"))
