"""Semantic search: which abstract answers a question that shares few words with it?

pip install openai numpy
"""

import sys

import numpy as np
from openai import OpenAI

URL = (sys.argv[1:] or ["http://127.0.0.1:7071"])[0]
MODEL = "all-MiniLM-L6-v2"

ABSTRACTS = [
    "Measurements of skin friction in the turbulent boundary layer of a flat plate at high speed.",
    "The flutter of thin panels in a supersonic stream, with the effect of edge support.",
    "Heat is carried to the nose of a blunt body re-entering the atmosphere; ablation is considered.",
    "Buckling of thin cylindrical shells under axial compression, with initial imperfections.",
    "The lift of a slender delta wing is increased by vortices that leave its leading edges.",
    "Noise of a round jet: how the power that is radiated grows with the exit speed.",
    "A shock wave thickens the boundary layer that it meets, and may separate the flow.",
    "The range of a helicopter is estimated from the power that its rotor takes in hover.",
]
QUESTIONS = [
    "When does a thin-walled tube crumple under its load?",
    "How hot does a space capsule get when it comes back?",
    "What makes aircraft engines so loud?",
]

client = OpenAI(base_url=f"{URL}/v1", api_key="none")


def embed(texts: list[str]) -> np.ndarray:
    """Rows of length one, so that a product is a cosine."""
    answer = client.embeddings.create(model=MODEL, input=texts)
    return np.array([each.embedding for each in answer.data], np.float32)


index = embed(ABSTRACTS)
for question, row in zip(QUESTIONS, embed(QUESTIONS), strict=True):
    scores = index @ row
    print(question)
    for at in np.argsort(-scores)[:2]:
        print(f"  {scores[at]:.2f}  {ABSTRACTS[at]}")

# Prints:
# When does a thin-walled tube crumple under its load?
#   0.44  Buckling of thin cylindrical shells under axial compression, with initial imperfections.
#   0.36  The flutter of thin panels in a supersonic stream, with the effect of edge support.
# How hot does a space capsule get when it comes back?
#   0.42  Heat is carried to the nose of a blunt body re-entering the atmosphere; ablation is considered.
#   0.23  Noise of a round jet: how the power that is radiated grows with the exit speed.
# What makes aircraft engines so loud?
#   0.46  Noise of a round jet: how the power that is radiated grows with the exit speed.
#   0.27  The flutter of thin panels in a supersonic stream, with the effect of edge support.
