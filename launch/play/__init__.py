"""What `hotpolicy demo` is made of: its acts, who plays in them, what they measure, and the report afterwards."""
