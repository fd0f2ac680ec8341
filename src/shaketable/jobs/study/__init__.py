"""A recipe's trainings, compared over seeds: the verb `study`."""
