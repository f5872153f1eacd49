"""Experiments described by yaml files: their runs, results, tables, figures and reports.

reading.py reads a yaml file, plan.py expands it into runs, running/ executes them, and reproduce.py
does so for the tables of the paper. state.py says what a folder has on record. estimate.py and
forecast.py say how long it takes. frame.py, found.py and collect.py read the results back; report/
has the pages with the paper's tables and figures, tables.py and figures.py those of an experiment
of one's own. gradients.py studies the gradients of a few batches.
"""
