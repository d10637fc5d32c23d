#!/bin/sh
# In the images as dask-scheduler and dask-worker, which Dask's chart starts and distributed has no more.
exec dask "${0##*-}" "$@"
