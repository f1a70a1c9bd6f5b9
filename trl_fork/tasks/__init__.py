"""Tasks that are generated: small enough to learn on a CPU in minutes, and never seen by a model before."""
