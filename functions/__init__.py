"""The apps: router, CPU backend, and the local runner that serves them on one machine."""

import os

# numpy's BLAS reads it when it is imported, and else starts a thread for each core, whose spinning is a
# tenth of a start. Engines have their threads already, and nothing here multiplies large matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
