"""`python -m modelium`: the command line."""

from modelium.cli import main

main()
