"""Generated tasks, small enough to learn on a CPU in minutes."""
