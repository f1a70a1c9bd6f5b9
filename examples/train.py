"""`trl-fork train`, as a script of the checkout."""

from trl_fork.commands.train import main


if __name__ == "__main__":
    main()
