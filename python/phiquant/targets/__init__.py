"""What a checkpoint can be turned into: one file a target, each making its part of a plan."""
