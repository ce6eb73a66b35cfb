"""Quality, its certainty, and costs."""
