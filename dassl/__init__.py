"""A toolbox for supervised few-shot learning, with the names and behaviour of Dassl.pytorch."""
