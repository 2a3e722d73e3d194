"""What a running server is made of: who receives, who is computed next, who answers, and who may come in."""
