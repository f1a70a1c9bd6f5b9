"""One module per command; `trl-fork COMMAND` and `python -m trl_fork COMMAND` run them. Nothing imports these."""
