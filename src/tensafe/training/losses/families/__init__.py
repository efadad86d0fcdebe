"""Base classes that the losses of a family share: their common tensors and kwargs."""
