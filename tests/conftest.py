"""Triton kernels run under its interpreter, which must be chosen before triton is imported anywhere; on a GPU where
LONGLOOM_TEST_DEVICE names one (`make gpu-check`)."""

import os

if "LONGLOOM_TEST_DEVICE" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"
