"""Other runtimes beside Tauten, each in an environment and a process of its own."""
