"""Small programs, one idea each. Run one from the repository's root: `python -m examples.first_run`."""
