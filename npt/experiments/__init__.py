"""Experiments as data: a yaml is expanded into runs, the runs leave results, results make tables.

plan.py expands, runner.py runs, tables.py and figures.py report, gradients.py looks at one batch.
"""
