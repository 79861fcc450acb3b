"""Maasdam: deploy, run and serve trained models, measured."""

__version__ = "0.1.0"
