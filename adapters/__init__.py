"""The libraries that train and judge agents: one file and one extra each."""
