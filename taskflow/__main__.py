"""`python -m taskflow` is the command `taskflow`."""

from taskflow.cli.main import main

main()
