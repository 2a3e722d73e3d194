"""What can be wrong with a machine that runs robots, looked at piece by piece. Nothing here changes anything.

Each look is a function that gives findings; what it needs of the machine is a parameter, so that a test can hand it
another machine. Every finding that is not fine says the one thing that mends it.
"""
