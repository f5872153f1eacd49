"""Experiments described by yaml files: their runs, results, tables and figures.

plan.py expands a yaml file into runs, runner.py executes them, estimate.py estimates their time,
tables.py and figures.py report their results, gradients.py studies the gradients of a few batches.
"""
