"""What the phone path is made of: runner, its build, the runtime, the link, the phone's facts, the session."""
