"""What the page on SmolLM2's forks is made of: models, responses, and how many of them."""

from pathlib import Path


HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
RESULTS = HERE / "results.json"
SEED = 0

# A supervised fine-tuning: LoRA on the shortest sixteen of the first 64 rows of GSM8K's training file
# (openai/grade-school-math, MIT licence)
SFT_DATA = HERE / "gsm8k_train.jsonl"
SFT_STEPS, SFT_SAVE_STEPS = 4, 2
SFT_BATCH_SIZE = 4
SFT_LEARNING_RATE = 1e-3

# What the fine-tuned model says to the first questions of GSM8K's test file
WORDS_DATA = HERE.parents[1] / "tests" / "files" / "gsm8k_test.jsonl"
WORDS_PROBLEMS, WORDS_LENGTH = 16, 96
WORDS_MIN_COUNT = 8  # of a token type that is listed; the paper's is 100, of a million tokens

# Reinforcement on forking tokens, and what the model says before and after it
RL_TASK = "chain_sum"
RL_STEPS, RL_SAVE_STEPS = 4, 2
RL_PROMPTS = 4  # a step, with 8 completions each
RL_LEARNING_RATE = 1e-4
RL_TEST = 4  # held-out problems, each four times, before and after
SUMS_PROBLEMS, SUMS_SAMPLES = 16, 3
SUMS_MIN_COUNT = 8

# Two decoding temperatures, the other one at 1: some of the paper's
TEMPERATURES = (0.0, 0.3, 1.0, 2.0)
TEMPERATURE_SAMPLES = 3
