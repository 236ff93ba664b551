"""What is counted, outside of the process: in files, and in messages to other processes.

``descriptions`` says what a state is of, ``packing`` names its tensors; ``files`` writes both down,
``messages`` sends them, and ``dictionaries`` keeps what dictionary learning has learned.
"""
