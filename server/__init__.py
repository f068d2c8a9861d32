"""The server. Under either of its names, `server` and `ml_trainer_env.server`, it begins here."""

from ml_trainer_env import program  # noqa: F401 - before OpenEnv, which the modules below import
