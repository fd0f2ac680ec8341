"""How flat the robust loss is around a model's weights: the verb `flatness`."""
