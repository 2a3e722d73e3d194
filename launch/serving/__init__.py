"""What `hotpolicy serve` is made of: its options from command line and file, and the server they describe."""
