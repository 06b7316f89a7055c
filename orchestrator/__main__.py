"""`python -m orchestrator` is the command `holdfast`."""

from orchestrator.entry import main

main()
