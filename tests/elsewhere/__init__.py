"""A device that is not the CPU, in software, and what runs on it."""
