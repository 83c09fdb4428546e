"""The mathematics of preference distillation: pure functions on tensors, one per equation."""
