"""Arguments of `trl-fork train` beside TRL's own: data, rewards and reports."""

from dataclasses import dataclass, field

from trl import ScriptArguments


@dataclass
class ForkingScriptArguments(ScriptArguments):
    """
    Data, rewards and reports of a run.

    Args:
        dataset_name (`str`):
            `dapo-math-17k`, `dapo-math-17k-processed`, `guru-math` or `gsm8k` for these data sets as the paper uses
            them; or a Hub name, a folder of `save_to_disk`, or a JSON, JSONL, Parquet or CSV file.
        eval_dataset_name (`str`, *optional*):
            Data set of the evaluation problems, or short name of a benchmark (`aime24`, `math500`, `gsm8k`, ...); by
            default the split `dataset_test_split` of `dataset_name`. The rows that are trained on are refused.
        prompt_column, solution_column (`str`, *optional*):
            Columns of question and answer; found by their usual names if not given. Only rewards that take `solution`
            need answers. Other columns stay, for rewards of your own.
        instruction (`str`, *optional*):
            Text of the user message, for models with a chat template; `{question}` stands for the question. By default
            the question alone, and a request for `\\boxed{}` with the data sets above.
        prompt_template (`str`, *optional*):
            Prompt as plain text, for base models; `{question}` stands for the question. `paper` is the paper's.
        deduplicate (`bool`, *optional*):
            Whether to train on each problem once; by default only where a data set above repeats them.
        reward_funcs (`list[str]`, *optional*, defaults to `["accuracy_reward"]`):
            Names of TRL rewards or `brier_reward`, or dotted paths of your own.
        soft_overlong_max_completion_len (`int`, *optional*):
            Length in tokens at which the reward `soft_overlong_punishment` reaches -1; by default
            `max_completion_length`.
        soft_overlong_punish_cache (`int`, *optional*):
            Number of tokens before it over which that reward falls from 0.
        team (`str` or `list[dict]`, *optional*):
            Team that answers in place of the model alone: the name of one that comes with the package, a YAML file, or
            a list of roles, see [`~teams.load_team`]. The rewards score its episodes.
        team_rounds (`int`, *optional*, defaults to `1`):
            How often each role of the team speaks.
        text_only (`bool`, *optional*, defaults to `False`):
            Train an image-text model on text alone, with its tokenizer in place of its processor.
        fork_report_steps (`int`, *optional*, defaults to `0`):
            Steps between two pages that show where responses fork, in `fork_report` of the output directory; 0 for
            none.
    """

    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Evaluation data or benchmark; the test split of dataset_name if not given."},
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the question; prompt, question or problem if not given."}
    )
    solution_column: str | None = field(
        default=None, metadata={"help": "Column of the answer; ground_truth, answer or solution if not given."}
    )
    instruction: str | None = field(
        default=None, metadata={"help": "Text of the user message; {question} stands for the question."}
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "Prompt as plain text with {question} in it, for base models; or 'paper' for the paper's."},
    )
    deduplicate: bool | None = field(
        default=None,
        metadata={"help": "Train on each problem once; by default only where a known data set repeats them."},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy_reward"],
        metadata={"help": "TRL rewards or brier_reward by name, or dotted paths of your own."},
    )
    soft_overlong_max_completion_len: int | None = field(
        default=None,
        metadata={"help": "Tokens at which soft_overlong_punishment reaches -1; max_completion_length if not given."},
    )
    soft_overlong_punish_cache: int | None = field(
        default=None,
        metadata={"help": "Tokens before that over which soft_overlong_punishment falls from 0."},
    )
    team: list | str | None = field(
        default=None,
        metadata={
            "help": "Team that answers: one of the package by name, or a YAML file; in a recipe a list of roles."
        },
    )
    team_rounds: int = field(default=1, metadata={"help": "How often each role of the team speaks."})
    text_only: bool = field(
        default=False,
        metadata={"help": "Train an image-text model on text alone, with its tokenizer in place of its processor."},
    )
    fork_report_steps: int = field(
        default=0,
        metadata={
            "help": "Steps between two pages that show where responses fork (fork_report/latest.html); 0: none."
        },
    )


# The help has four hundred options: those that a run is likely to set come first.
COMMON_OPTIONS = (
    *("model_name_or_path", "output_dir", "max_steps", "num_train_epochs", "learning_rate", "num_generations"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length", "temperature"),
    *("use_vllm", "use_peft", "lora_r", "bf16", "use_cpu", "eval_strategy", "logging_steps", "save_steps"),
    *("report_to", "resume_from_checkpoint", "seed"),
)
