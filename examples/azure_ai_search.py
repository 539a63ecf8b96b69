"""Azure AI Search: an index with a vectorizer, and a skillset, that both call this service.

Prints the JSON to PUT to /indexes/notes and /skillsets/notes, and asks the service as Search would.
pip install httpx
"""

import json
import sys

import httpx

URL = (sys.argv[1:] or ["http://127.0.0.1:7071"])[0]
PUBLIC = "https://YOUR-ROUTER.azurewebsites.net"  # what Search can reach; ?code= or api-key is your key
SKILL = f"{PUBLIC}/azure-search?model=all-MiniLM-L6-v2"

index = {
    "name": "notes",
    "fields": [
        {"name": "id", "type": "Edm.String", "key": True},
        {"name": "text", "type": "Edm.String", "searchable": True},
        {"name": "vector", "type": "Collection(Edm.Single)", "searchable": True}
        | {"dimensions": 384, "vectorSearchProfile": "blitz"},
    ],
    "vectorSearch": {
        "algorithms": [{"name": "hnsw", "kind": "hnsw", "hnswParameters": {"metric": "cosine"}}],
        "profiles": [{"name": "blitz", "algorithm": "hnsw", "vectorizer": "blitz"}],
        "vectorizers": [
            {
                "name": "blitz",
                "kind": "customWebApi",
                "customWebApiParameters": {"uri": f"{SKILL}&input_type=query", "httpMethod": "POST"},
            }
        ],
    },
}
skill = {
    "@odata.type": "#Microsoft.Skills.Custom.WebApiSkill",
    "context": "/document",
    "uri": f"{SKILL}&input_type=document",
    "batchSize": 100,
    "inputs": [{"name": "text", "source": "/document/text"}],
    "outputs": [{"name": "vector", "targetName": "vector"}],
}
for name, definition in (("indexes", index), ("skillsets", {"name": "notes", "skills": [skill]})):
    print(f"PUT /{name}/notes, {len(json.dumps(definition))} bytes: {', '.join(definition)}")

records = [{"recordId": str(n), "data": {"text": text}} for n, text in enumerate(["a note", "another"])]
answer = (
    httpx.post(skill["uri"].replace(PUBLIC, URL), json={"values": records}).raise_for_status().json()
)
for value in answer["values"]:
    print(value["recordId"], len(value["data"]["vector"]), value["errors"], value["warnings"])

# Prints:
# PUT /indexes/notes, 661 bytes: name, fields, vectorSearch
# PUT /skillsets/notes, 347 bytes: name, skills
# 0 384 None [{'message': 'input_type has no effect: all-MiniLM-L6-v2 has no prompts'}]
# 1 384 None [{'message': 'input_type has no effect: all-MiniLM-L6-v2 has no prompts'}]
