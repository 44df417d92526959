"""Settings of the Jupyter that start.sh starts. The password comes by the environment and leaves it here: only its
salted hash stays in memory, and notebooks and terminals do not inherit it.
"""

import os

from jupyter_server.auth import passwd

c = get_config()  # noqa: F821 - Jupyter puts it here
c.ServerApp.ip = "0.0.0.0"
c.ServerApp.port = 8888
c.ServerApp.open_browser = False
c.ServerApp.allow_root = True
c.ServerApp.allow_remote_access = True
c.IdentityProvider.token = ""
c.PasswordIdentityProvider.hashed_password = passwd(os.environ.pop("JUPYTER_PASSWORD"))
