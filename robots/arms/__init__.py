"""Arms as tables of data, one file for each make."""
