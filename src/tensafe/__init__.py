"""tensafe: typed, validated, pluggable loss functions for training language models in PyTorch."""

__version__ = "0.1.0"
