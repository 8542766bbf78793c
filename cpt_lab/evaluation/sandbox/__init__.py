"""The sandbox: programs that a model wrote, run against tests that they cannot see, reach or answer for. See docs/sandbox.md."""
