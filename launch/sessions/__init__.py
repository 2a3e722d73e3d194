"""What `hotpolicy session` is made of: its plan and state as data, and who demonstrates, tunes, tries and decides."""
