"""`python -m tensafe` is the `tensafe` command."""

from tensafe.cli import main

main()
