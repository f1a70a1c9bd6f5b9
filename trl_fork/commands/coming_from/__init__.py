"""Recipes of other tools as recipes of `trl-fork train`, and what becomes of each of their keys."""
