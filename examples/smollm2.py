"""`trl-fork smollm2`, as a script of the checkout."""

from trl_fork.commands.dispatch import run_script


if __name__ == "__main__":
    run_script("smollm2")
