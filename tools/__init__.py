"""What a clone needs around the project: its environment, its locks, the demo. Standard library
only, so that it runs before anything is installed, on every system.
"""
