"""Text from a model: prompts, sampling, answers, conversations."""
