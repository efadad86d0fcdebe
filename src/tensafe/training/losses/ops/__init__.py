"""Numerics shared by losses: pure functions of tensors, annotated with the shapes that the tests check."""
