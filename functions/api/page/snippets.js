// A request as code that can be pasted: the very same one. The key never stands in it.

const text = (value) => JSON.stringify(value); // a string or a list is the same in Python and JavaScript
const shell = (value) => `'${value.replaceAll("'", "'\\''")}'`;

export const KINDS = [["curl", curl], ["OpenAI", openai], ["LangChain", langchain], ["JavaScript", javascript]];

function curl(base, request, hasKey) {
  return [
    `curl -s ${base}v1/embeddings`,
    "-H 'Content-Type: application/json'",
    ...(hasKey ? ['-H "Authorization: Bearer $BLITZ_KEY"'] : []),
    `-d ${shell(JSON.stringify(request))}`,
  ].join(" \\\n  ");
}

function openai(base, request, hasKey) {
  const { dimensions, prompt_name: prompt } = request;
  return `${hasKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${text(`${base}v1`)}, api_key=${keyOf(hasKey)})
answer = client.embeddings.create(
    model=${text(request.model)},
    input=${list(request.input)},${dimensions ? `\n    dimensions=${dimensions},` : ""}${prompt == null ? "" : `\n    extra_body={"prompt_name": ${text(prompt)}},`}
)
print(len(answer.data), len(answer.data[0].embedding))
`;
}

function langchain(base, request, hasKey) {
  const { dimensions, prompt_name: prompt } = request;
  return `${hasKey ? "import os\n\n" : ""}from langchain_openai import OpenAIEmbeddings

embeddings = OpenAIEmbeddings(
    model=${text(request.model)},
    base_url=${text(`${base}v1`)},
    api_key=${keyOf(hasKey)},
    check_embedding_ctx_length=False,  # send texts, not ids of OpenAI's vocabulary${dimensions ? `\n    dimensions=${dimensions},` : ""}${prompt == null ? "" : `\n    model_kwargs={"extra_body": {"prompt_name": ${text(prompt)}}},`}
)
vectors = embeddings.embed_documents(
    ${list(request.input)}
)
print(len(vectors), len(vectors[0]))
`;
}

function javascript(base, request, hasKey) {
  const key = hasKey ? '\n    authorization: `Bearer ${process.env.BLITZ_KEY}`,' : "";
  return `const response = await fetch(${text(`${base}v1/embeddings`)}, {
  method: "POST",
  headers: {
    "content-type": "application/json",${key}
  },
  body: JSON.stringify(${JSON.stringify(request, null, 2).replaceAll("\n", "\n  ")}),
});
const { data } = await response.json();
console.log(data.length, data[0].embedding.length);
`;
}

const keyOf = (hasKey) => (hasKey ? 'os.environ["BLITZ_KEY"]' : '"none"');
const list = (input) => `[\n${input.map((each) => `        ${text(each)},`).join("\n")}\n    ]`;
