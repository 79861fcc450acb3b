"""`python -m maasdam` is `maasdam`."""

from maasdam.cli import main

main()
