"""What can go wrong once training has begun."""


class TrainingError(RuntimeError):
    """Training that cannot go on: what its folder held after the last epoch is left as it was."""
