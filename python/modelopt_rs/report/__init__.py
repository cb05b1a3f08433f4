"""What an operation reports: figures, and their JSON."""
