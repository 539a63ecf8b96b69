"""Near duplicates: tickets that say the same in other words are put together.

pip install openai numpy
"""

import sys

import numpy as np
from openai import OpenAI

URL = (sys.argv[1:] or ["http://127.0.0.1:7071"])[0]
SAME = 0.7  # a cosine; look at some pairs of your own before you trust it

TICKETS = [
    "I cannot log in to my account",
    "The invoice has the wrong address",
    "Logging in to my account does not work",
    "How do I export my data to Excel?",
    "My address is wrong on the invoice",
    "Unable to log in to the account",
    "The app crashes when I open the camera",
]

client = OpenAI(base_url=f"{URL}/v1", api_key="none")
answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=TICKETS)
rows = np.array([each.embedding for each in answer.data])
cosines = rows @ rows.T

group = list(range(len(TICKETS)))  # of each ticket, the first ticket of its group
for one, other in np.argwhere(np.triu(cosines >= SAME, k=1)):
    first, second = sorted((group[one], group[other]))
    group = [first if each == second else each for each in group]

for first in dict.fromkeys(group):
    members = [at for at, each in enumerate(group) if each == first]
    print(f"{len(members)} x {TICKETS[first]}")
    for at in members[1:]:
        print(f"    {cosines[first, at]:.2f}  {TICKETS[at]}")

# Prints:
# 3 x I cannot log in to my account
#     0.91  Logging in to my account does not work
#     0.95  Unable to log in to the account
# 2 x The invoice has the wrong address
#     0.93  My address is wrong on the invoice
# 1 x How do I export my data to Excel?
# 1 x The app crashes when I open the camera
