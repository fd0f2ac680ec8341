"""What flatness goes with, over many models: the verb `study flatness`."""
