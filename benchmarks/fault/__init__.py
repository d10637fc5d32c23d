"""The faults of `make faults`: each is a function of an empty folder, which returns a row of the table."""
