"""Bulk jobs and OpenAI's batches on the cluster: the CPU replicas work on them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from openai import OpenAI

from tests.cluster.models import MODELS
from tests.cluster.running import deploy, running_cluster
from tests.patience import PATIENCE_S


def test_a_batch_is_done(store_folder: Path, tmp_path: Path) -> None:
    """By the official client: a file in, its vectors out."""
    model = MODELS[3]
    lines = [
        {
            "custom_id": f"c{n}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": model.name, "input": f"w{n}"},
        }
        for n in range(20)
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with running_cluster() as port:
        deploy(store_folder, storage=f"file://{tmp_path}")
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client:
            file = client.files.create(file=("in.jsonl", data), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
            )
            until = time.monotonic() + PATIENCE_S
            while batch.status not in ("completed", "failed") and time.monotonic() < until:
                time.sleep(0.5)
                batch = client.batches.retrieve(batch.id)
            assert batch.status == "completed"
            assert batch.output_file_id is not None
            output = client.files.content(batch.output_file_id).text
    answers = {each["custom_id"]: each for each in map(json.loads, output.splitlines())}
    got = [answers[f"c{n}"]["response"]["body"]["data"][0]["embedding"] for n in range(20)]
    assert np.allclose(got, model.vectors([f"w{n}" for n in range(20)]), atol=1e-6)
