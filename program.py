"""The first module of this package that a program imports.

It ends the program, with one line and status 2, where OpenEnv could not be imported.
"""

from ml_trainer_env.surroundings import require_http_client
from ml_trainer_env.variables import settings_explained

__all__ = ["settings_explained"]

with settings_explained():
    require_http_client()
