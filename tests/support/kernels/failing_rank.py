"""`python -m tests.support.kernels.failing_rank`: a rank that does what its request asks: it fails, or never ends."""

import json
import os
import sys
import time

request = json.loads(sys.stdin.read())
if request[os.environ["RANK"]] == "fail":
    sys.exit("no room at this inn")
time.sleep(60)
