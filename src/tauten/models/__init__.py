"""Sources of models, their parts, the streaming walk, and what is saved and loaded."""
