"""A Parquet file becomes vectors by a bulk job, and those become rows for a database.

Its second argument is the bulk folder of the service. The file that comes out is plain Parquet too:
    pandas.read_parquet(out)
    duckdb.sql(f"SELECT id, text, vector FROM '{out}'")
pip install pyarrow numpy
"""

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path((sys.argv[2:] or [".blitz/bulk"])[0])
MODEL = "all-MiniLM-L6-v2"
NOTES = ["Water the plants on Monday.", "The plants need water.", "Pay the rent.", "Call the dentist."]

notes = pa.table({"id": [f"note-{n}" for n in range(len(NOTES))], "text": NOTES})
inbox = FOLDER / "bulk-in" / MODEL
inbox.mkdir(parents=True, exist_ok=True)
pq.write_table(notes, inbox / "notes.parquet")

out = FOLDER / "bulk-out" / MODEL / "notes.parquet.parquet"
while not out.exists():
    time.sleep(0.2)
table = pq.read_table(out)
print(table.num_rows, "rows:", ", ".join(table.column_names))

vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False))
cosines = vectors @ vectors.T
print(vectors.shape, f"cosine of the first two notes: {cosines[0, 1]:.2f}")

# As pgvector takes them: cursor.executemany("INSERT INTO notes VALUES (%s, %s)", rows)
rows = [
    (name, "[" + ",".join(f"{x:.6f}" for x in vector) + "]")
    for name, vector in zip(table["id"].to_pylist(), vectors, strict=True)
]
print(len(rows), "rows; the first vector has", rows[0][1].count(",") + 1, "numbers")

# Prints:
# 4 rows: row, id, text, tokens, truncated, vector
# (4, 384) cosine of the first two notes: 0.72
# 4 rows; the first vector has 384 numbers
