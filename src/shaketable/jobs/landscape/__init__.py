"""The adversarial loss around weights, drawn: the verb `landscape`."""
