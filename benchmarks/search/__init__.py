"""Evidence for the default rule, which searches for the LR: hundreds of small trainings at once."""
