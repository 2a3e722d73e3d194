"""Arms over pyserial, cameras and teleoperation, and a virtual arm that speaks the same serial protocol."""
