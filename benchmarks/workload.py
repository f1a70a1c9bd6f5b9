"""Models of random weights, lengths of completions, and rollouts that are the same for all that `step.py` compares."""

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


RHO, GENERATIONS = 0.2, 8
# Every completion ends in an answer: the last 20 tokens, or the last half of a shorter one, begin with this word.
ANSWER, ANSWER_ID, ANSWER_LENGTH = "Answer:", 2, 20
FIRST_WORD = 3  # ids from here on are words without a meaning
PROMPT_LENGTH = 24
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, head dimension, vocabulary
    "tiny": (128, 384, 4, 4, 2, 32, 4096),
    "small": (512, 1536, 8, 8, 4, 64, 32768),
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128, 151936),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 128, 151936),
    "qwen3-4b": (2560, 9728, 36, 32, 8, 128, 151936),
}
WORKLOADS = {  # lengths, share of inert groups
    "long tail, 40 % inert": ("lognormal", 0.4),
    "long tail": ("lognormal", 0.0),
    "equal lengths": ("equal", 0.0),
    "geometric, 40 % inert": ("geometric", 0.4),
    "geometric": ("geometric", 0.0),
}
# Of the longest completion: a mean of 59 tokens where it has 384
GEOMETRIC_MEAN = 59 / 384
SHORTEST = 4  # tokens of a completion


def build_model(shape, device, *, lora=False):
    hidden, intermediate, layers, heads, key_values, head_dim, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        head_dim=head_dim,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        initializer_range=0.1 if shape == "tiny" else 0.02,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config)
        if shape != "tiny":
            # Entropies of freshly initialised large models are all alike; this spreads them
            torch.nn.init.normal_(model.get_input_embeddings().weight, std=4 / hidden**0.5)
    model = model.to(torch.float32 if device == "cpu" else torch.bfloat16)
    if lora:
        # Random in both factors: a zero in the second would make the first one's gradient zero
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, config)
        model.enable_input_require_grads()
    return model


def build_tokenizer(vocabulary):
    # Texts matter to rules that look for the answer. Of the other words the ids are used; the words have to exist.
    ids = {"<pad>": 0, "<eos>": 1, ANSWER: ANSWER_ID, **{f"w{i}": i for i in range(FIRST_WORD, vocabulary)}}
    words = Tokenizer(models.WordLevel(ids, f"w{FIRST_WORD}"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def sample_lengths(rows, longest, kind, generator=None):
    """
    Completion lengths in tokens, the end token included.

    Lognormal ones have a median of an eighth of the longest and a sigma of 0.8: most are short, a few are cut off. At
    least one row has the full length, unless lengths are geometric.
    """
    generator = generator or torch.Generator().manual_seed(0)
    if kind == "equal":
        return [longest // 3] * rows
    if kind == "geometric":
        drawn = torch.empty(rows).geometric_(min(1 / (longest * GEOMETRIC_MEAN), 1), generator=generator)
        return [min(max(int(length), SHORTEST), longest) for length in drawn]
    normal = torch.randn(rows, generator=generator)
    lengths = [min(max(int(longest / 8 * (0.8 * z).exp()), SHORTEST), longest) for z in normal]
    lengths[0] = longest
    return lengths


def completion(words, size):
    """`size` tokens: all the words, and the first of the answer and an end among them."""
    start = size - min(ANSWER_LENGTH, size // 2)
    return [*words[:start], ANSWER_ID, *words[start:], 1]


class Rollouts:
    """The same completions and rewards for every variant."""

    def __init__(self, options, lengths, inert):
        generator = torch.Generator().manual_seed(0)
        vocabulary, max_length = SHAPES[options.shape][6], options.max_length
        rows = options.groups * GENERATIONS
        sizes = sample_lengths(rows, max_length, lengths, generator)

        def words(number):
            return torch.randint(FIRST_WORD, vocabulary, (number,), generator=generator).tolist()

        self.prompts = [words(PROMPT_LENGTH) for _ in range(options.groups)]
        self.completions = [completion(words(size - 2), size) for size in sizes]
        live = options.groups - round(options.groups * inert)
        self.rewards = [float(row % 2) if row // GENERATIONS < live else 0.0 for row in range(rows)]
        self.is_live = [row // GENERATIONS < live for row in range(rows)]
        self.num_tokens = sum(sizes)
        self.num_all_tokens = self.num_tokens + rows * PROMPT_LENGTH

    def __call__(self, prompts, trainer):
        return {
            "prompt_ids": [self.prompts[row // GENERATIONS] for row in range(len(prompts))],
            "completion_ids": self.completions,
            "logprobs": None,
        }

    def reward(self, completions, **kwargs):
        return self.rewards
