"""Example handlers: copy one, change its events and tasks, and name it on the command line."""
