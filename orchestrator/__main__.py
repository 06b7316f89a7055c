"""`python -m orchestrator` is the command `holdfast`."""

from orchestrator.cli import main

main()
