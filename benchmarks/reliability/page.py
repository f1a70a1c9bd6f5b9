"""
Write docs/reliability.md from the file of results.

    python -m benchmarks.reliability.page
"""

from collections import Counter
from pathlib import Path

from .parts import PARTS
from .record import RESULTS, ROOT, load


PAGE = ROOT / "docs" / "reliability.md"
HEAD = """# Reliability

What a run survives, counted. Each number comes from a command, and this page from the file that the command writes,
`benchmarks/results/reliability.json`. What is drawn (moments, texts, failures) is drawn from a seed.

```bash
make reliability                                            # all parts: some hours on two cores
python -m benchmarks.reliability --part kills --seed 3      # one of them
python -m benchmarks.reliability --quick --part answers     # a few, which are not published
```

Everything runs on a CPU with tiny models. The part `kills` needs the extra `deepspeed`, `pages` needs `browser` and
Chromium; a part whose packages are missing says so and is left out. What is said here of processes is said of two on
one machine, over gloo: nothing here tests NCCL, a network or a file system that fails.
"""


def rows(heading: tuple[str, ...], lines: list[tuple], *, numbers: int) -> str:
    """A table whose last columns are numbers."""
    rule = ["---"] * (len(heading) - numbers) + ["---:"] * numbers
    text = [f"| {' | '.join(map(str, line))} |" for line in (heading, *lines)]
    return "\n".join([text[0], f"|{'|'.join(rule)}|", *text[1:]])


def render(results: dict) -> str:
    """The page. A part without results says so."""
    sections = [HEAD.strip(), overview(results)]
    for name, part in PARTS.items():
        text = SECTIONS[name](results[name]["found"]) if name in results else "Not measured."
        sections.append(f"## {part.title[0].upper()}{part.title[1:]}\n\n{text.strip()}")
    return "\n\n".join(sections) + "\n"


def overview(results: dict) -> str:
    lines = []
    for name in PARTS:
        if name not in results:
            lines.append((f"`{name}`", "not measured", "", "", ""))
            continue
        record = results[name]
        found = PARTS[name].module.summary(record["found"])
        if not record["complete"]:
            found = f"cut off: {found}"
        commit = (record["commit"] or "not recorded")[:7] + ("*" if record["changed_since"] else "")
        lines.append((f"`{name}`", found, record["seed"], commit, f"{record['seconds']:,.0f}"))
    versions = next(iter(results.values()), {}).get("versions", {})
    made = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    table = rows(("Part", "Found", "Seed", "Commit", "Seconds"), lines, numbers=3)
    return (
        f"{table}\n\nA star marks a commit whose files had been changed. The seconds are of two cores that were "
        f"shared "
        f"with other work, so that they say little. Versions: {made}."
    )


def configurations(found: dict) -> str:
    lines = [(kind, v["number"], v["refused"]) for kind, v in sorted(found["kinds"].items())]
    table = rows(("Kind of mistake", "Number", "Refused by name"), lines, numbers=2)
    left = "".join(
        f"\n- {record['kind']}, {', '.join(record['names'])}: {record['verdict']}." for record in found["not_refused"]
    )
    seconds = sorted(found["seconds_each"])
    process = found["process_seconds"]
    own = (
        f" In a process of their own, imports included, {len(process)} of them took {min(process):.0f} to "
        f"{max(process):.0f} s on the busy machine."
        if process
        else ""
    )
    return (
        "Each is one mistake in a run that would otherwise train, given to `trl-fork train` on its command line or in "
        "its YAML file. It counts as refused if the exit status is not 0, the message is no traceback, and it "
        "names the "
        "option, or what in it is wrong, and the nearest one where a name is misspelt. The model is a folder without "
        "weights, so that a refusal which comes after they are loaded does not count. Those of the first kinds are "
        "drawn from the table of all options; the others are written down in "
        "`benchmarks/reliability/bad_configurations.py`.\n\n"
        f"{table}\n\n"
        f"A refusal took {seconds[len(seconds) // 2]:.2f} s (median) and {seconds[-1]:.1f} s at most, beside the "
        f"imports.{own}" + (f"\n\nNot refused as they should be:\n{left}" if left else "")
    )


def kills(found: dict) -> str:
    records = [record for life in found["lives"] for record in life["kills"]]
    if not records:
        return "No run has been killed yet."
    counted = Counter(record["activity"] for record in records)
    share = found["seconds_by_activity"]
    total = sum(share.values())
    names = [*share, *(name for name in counted if name not in share)]
    where = [(name, f"{share.get(name, 0) / total:.0%}", counted.get(name, 0)) for name in names]
    victims = Counter(record["victim"] for record in records)
    resumed = Counter(
        "none yet: killed again before" if record.get("resumed_from") is None else "the beginning"
        if record["resumed_from"] == "the beginning" else "a checkpoint"
        for record in records
    )  # fmt: skip
    half = sum(bool(record.get("skipped_half_written")) for record in records)
    runs = [
        (
            life["number"],
            len(life["kills"]),
            ", ".join(str(record["step"]) for record in life["kills"]),
            "equal" if life["equal"] else f"different ({', '.join(life['differences'][:3])})",
        )
        for life in found["lives"]
    ]
    rounds, fractions = found["sampling_rounds"], found["fractions"]
    ended = max((record["ended_after"] for record in records if record["victim"].startswith("the ")), default=0)
    return (
        f"A training of {found['steps']} steps by `trl-fork train` on two processes under ZeRO-3, all parameters "
        f"partitioned, with dynamic sampling ({min(rounds):.0f} to {max(rounds):.0f} rounds per batch), a scheduled "
        f"credit rule (its fraction goes from {fractions[0]} to {fractions[-1]}), two updates per batch, evaluations, "
        "and a checkpoint at every step of which two are kept. SIGKILL goes to one process or to all, at a "
        "moment that "
        "is drawn; the same command with `--resume_from_checkpoint true` goes on. A run is killed and resumed up to "
        "four times, then compared at its end with the run that was not killed: weights, logs, and all tensors and "
        "states of the last checkpoint (the optimizer's, the random numbers', the rollouts') must be equal to "
        "the bit. "
        "Left out are times, and the mean loss that transformers sums over the steps since the run was resumed.\n\n"
        f"{rows(('Activity of the killed process', 'Share of the time', 'Kills'), where, numbers=2)}\n\n"
        f"{rows(('Run', 'Kills', 'After steps', 'Compared at its end'), runs, numbers=0)}\n\n"
        f"Killed were {', '.join(f'{name} {n} times' for name, n in victims.most_common())}. Where one process of two "
        f"was killed, the launch ended within {ended:.0f} s. Resumed from: "
        f"{', '.join(f'{name} ({n})' for name, n in resumed.most_common())}. {half} times a half-written "
        f"checkpoint was "
        "skipped. A kill before the first step falls into a time that is as long as all steps, and is drawn for "
        "15 % of the launches."
    )


def answers(found: dict) -> str:
    batches, failures = found["seconds_of_batches"], found["failures"]
    slow = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in found.get("slowest_kinds", {}).items())
    return (
        f"Answers of {found['kinds']} kinds (`tests/hostile_answers.py`): powers of powers, thousands of brackets, "
        "megabytes of boxes, broken Unicode, and what is no text. They are graded against one gold answer in batches "
        f"of {found['batch']} by {found['workers']} worker processes, as in training. Limits are of CPU "
        "seconds, 5 for an answer and 0.1 once an allowance is used up; the seconds below are those of a clock on the "
        "busy machine.\n\n"
        + rows(
            ("", "Found"),
            [
                ("Answers", f"{found['answers']:,}"),
                ("Right", found["right"]),
                ("Honest answers graded wrongly after a batch", found["honest_wrong"]),
                ("Ended by a limit", ", ".join(f"{n:,} by {name}" for name, n in failures.items()) or 0),
                ("Seconds for one answer, most", found["seconds_of_answer"]["max"]),
                ("Seconds in workers, all answers", f"{found['seconds_of_answer']['total']:,}"),
                ("Seconds for a batch, most", max(batches)),
                ("Seconds for all batches", f"{sum(batches):,.0f}"),
            ],
            numbers=1,
        )
        + (f"\n\nOne by one, each with the whole limit, the slowest kinds were: {slow}." if slow else "")
    )


def steps(found: dict) -> str:
    if not found["steps"]:
        return f"No result: exit status {found['exit_status']}."
    lines = [(kind, number) for kind, number in sorted(found["kinds"].items())]
    return (
        "Two processes (DDP) train on rollouts of a kind that is drawn for each step: one process has no valid token "
        "(`empty`), tokens of another number than the other (`unequal`: 1 and 16 per completion), or groups of equal "
        "rewards (`inert`); or both have.\n\n"
        f"{rows(('Kind of step', 'Steps'), lines, numbers=1)}\n\n"
        f"{summary_of('steps', found)}."
    )


def pushes(found: dict) -> str:
    pairs: Counter = Counter()
    through: Counter = Counter()
    for push in found["pushes"]:
        for place, (answer, count) in push["failures"].items():
            pairs[place, str(answer), count] += 1
            through[place, str(answer), count] += push["pushed"]
    lines = [
        (f"`{place}`", f"{answer}, {count} times", number, through[place, answer, count])
        for (place, answer, count), number in sorted(pairs.items())
    ]
    table = rows(("Request that fails", "Answer", "Pushes", "Got through by themselves"), lines, numbers=2)
    return (
        "A trained model is pushed to a local server that speaks the Hub's protocol, in which one or two requests of "
        "each push fail so many times. A push that does not get through must say so and leave all files in place, and "
        "the command that it names, or the next push where there is no repository yet, must bring every file there, "
        "with the same content.\n\n"
        f"{table}\n\n{summary_of('pushes', found)}."
    )


def pages(found: dict) -> str:
    kinds = {"page": "pages of forks", "card": "model cards", "console": "tables of a console"}
    lines = [(kinds[kind], found[kind]["number"], found[kind]["texts"], len(found[kind]["wrong"])) for kind in kinds]
    wrong = "".join(f"\n- {record['what']}" for kind in kinds for record in found[kind]["wrong"])
    return (
        "Texts of pieces that open tags, end scripts, leave attributes, fill templates or command a terminal stand in "
        "every place of a page, a card and a table: titles, prompts, tokens, alternatives, names, settings. "
        "Pages, and "
        "cards as a renderer shows them that lets all HTML through, are opened in a headless Chromium: no script may "
        "run, nothing may be requested, and a token must show its text. A table may hold no control character.\n\n"
        f"{rows(('Kind', 'Number', 'Texts', 'Wrong'), lines, numbers=3)}" + (f"\n{wrong}" if wrong else "")
    )


def secrets(found: dict) -> str:
    lines = [(f"`{kind}`", number) for kind, number in sorted(found["kinds"].items(), key=lambda item: -item[1])]
    leaked = "".join(f"\n- {text}" for text in found["leaks"])
    return (
        f"A training that publishes its checkpoints, an evaluation and an analysis run with {found['secrets']} tokens "
        "in the environment (of the Hub, Weights & Biases, OpenAI, AWS, Comet, MLflow and GitHub), and the "
        "Hub's as an "
        "option as well. All files that they write, what the Hub received and what was printed are searched for them: "
        "plain, quoted, backwards, in hexadecimal, in base64, in archives and in the packed data of pages.\n\n"
        f"{summary_of('secrets', found)}.{leaked}\n\n{rows(('Files', 'Number'), lines, numbers=1)}"
    )


def summary_of(name: str, found: dict) -> str:
    text = PARTS[name].module.summary(found)
    return text[0].upper() + text[1:]


SECTIONS = {
    function.__name__: function for function in (configurations, kills, answers, steps, pushes, pages, secrets)
}


def write(path: Path = PAGE) -> None:
    path.write_text(render(load(RESULTS)))


if __name__ == "__main__":
    write()
