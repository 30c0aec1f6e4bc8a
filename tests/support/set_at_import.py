"""A module that reads the environment when it is imported, as Triton and DeepSpeed do."""

import os

VALUE = os.environ.get("READ_AT_IMPORT", "")
