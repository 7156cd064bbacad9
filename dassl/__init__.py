"""A toolbox for supervised few-shot learning, with the names and behavior of Dassl.pytorch."""
