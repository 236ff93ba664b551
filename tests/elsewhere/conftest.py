"""What runs in a process of its own is not imported by other tests, which it would change."""

collect_ignore = ["device.py", "program.py"]
