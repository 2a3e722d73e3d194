"""The virtual arm: register-level servos on a pseudo-terminal, MuJoCo behind them, a camera without OpenGL."""
