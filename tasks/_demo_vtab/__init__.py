"""Generators of the demo images: one module a kind of task, over one canvas."""
