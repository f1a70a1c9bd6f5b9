"""The releases of other packages that all tests have run with. `constraints.txt` pins the same ones."""

LAST_TESTED = {"trl": "1.16.0", "transformers": "5.23.0"}
