"""`python -m greedylr_integrations.cli` is the command `greedylr`; see `runs.cli`."""

from greedylr_integrations.runs.cli import cli, main

__all__ = ["cli", "main"]

if __name__ == "__main__":
    main()
