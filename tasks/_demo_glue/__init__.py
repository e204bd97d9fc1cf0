"""Generators of the demo suite: one module a task, over one lexicon."""
