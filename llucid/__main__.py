"""`python -m llucid` is `llucid`."""

from llucid.cli import main

main()
