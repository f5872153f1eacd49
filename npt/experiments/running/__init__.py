"""Carries out runs: one.py a single one, pool.py many on this machine, console.py for a person."""
