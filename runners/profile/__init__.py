"""What a spec costs to train, in memory and in time: predicted, and measured."""
