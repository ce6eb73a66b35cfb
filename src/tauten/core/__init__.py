"""The nouns: goals, techniques, recipes, measurements, and files that survive a kill."""
