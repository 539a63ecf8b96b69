// Clients of npm embed and rerank. Prints {case: what it made of the answer}.
import { createCohere } from "@ai-sdk/cohere";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { InferenceClient } from "@huggingface/inference";
import { embed, embedMany, rerank } from "ai";
import { CohereClient, CohereClientV2 } from "cohere-ai";
import { Ollama } from "ollama";
import OpenAI, { AzureOpenAI } from "openai";
import { VoyageAIClient } from "voyageai";

const [URL, MODEL, QUERY, ...TEXTS] = process.argv.slice(2);
const apiKey = "any";
const openai = new OpenAI({ baseURL: `${URL}/v1`, apiKey, maxRetries: 0 });
const azure = new AzureOpenAI({ endpoint: URL, apiKey, apiVersion: "2024-10-21", deployment: MODEL });
const cohere2 = new CohereClientV2({ environment: URL, token: apiKey });
const cohere1 = new CohereClient({ environment: URL, token: apiKey });
const ollama = new Ollama({ host: URL });
const voyage = new VoyageAIClient({ environment: `${URL}/v1`, apiKey });
const huggingFace = new InferenceClient(apiKey, { endpointUrl: URL });
const aiOpenAI = createOpenAI({ baseURL: `${URL}/v1`, apiKey });
const aiCompatible = createOpenAICompatible({ name: "blitz", baseURL: `${URL}/v1` });
const aiCohere = createCohere({ baseURL: `${URL}/v2`, apiKey });

const rows = (answer) => answer.data.map((each) => each.embedding);
const ranks = (results) => results.map((each) => [each.index, each.relevanceScore]);
const messageOf = (call) => call.catch((error) => error.message);
const asked = { model: MODEL, query: QUERY, documents: TEXTS };
const short = { outputDimension: 64 };

const results = {
  "openai embeddings": rows(await openai.embeddings.create({ model: MODEL, input: TEXTS })),
  "openai embeddings dimensions": rows(
    await openai.embeddings.create({ model: MODEL, input: TEXTS, dimensions: 64, encoding_format: "float" }),
  ),
  "openai by an unknown model": await messageOf(openai.embeddings.create({ model: "nope", input: TEXTS })),
  "openai models": (await openai.models.list()).data.map((each) => each.id),
  "openai AzureOpenAI": rows(await azure.embeddings.create({ model: MODEL, input: TEXTS })),
  "cohere-ai embed": (
    await cohere2.embed({ model: MODEL, texts: TEXTS, inputType: "search_document", embeddingTypes: ["float"] })
  ).embeddings.float,
  "cohere-ai embed int8": (
    await cohere2.embed({
      model: MODEL, texts: TEXTS, inputType: "search_document", embeddingTypes: ["int8"], ...short,
    })
  ).embeddings.int8,
  "cohere-ai rerank": ranks((await cohere2.rerank({ ...asked, topN: 2 })).results),
  "cohere-ai embed v1": (
    await cohere1.embed({ model: MODEL, texts: TEXTS, inputType: "search_document" })
  ).embeddings,
  "cohere-ai rerank v1": ranks((await cohere1.rerank({ ...asked, topN: 2 })).results),
  "ollama embed": (await ollama.embed({ model: MODEL, input: TEXTS })).embeddings,
  "ollama embed dimensions": (await ollama.embed({ model: MODEL, input: TEXTS, dimensions: 64 })).embeddings,
  "ollama embeddings": (await ollama.embeddings({ model: MODEL, prompt: TEXTS[0] })).embedding,
  "ollama list": (await ollama.list()).models.map((each) => each.model),
  "ollama by an unknown model": await messageOf(ollama.embed({ model: "nope", input: TEXTS })),
  "voyageai embed": rows(await voyage.embed({ model: MODEL, input: TEXTS, inputType: "document" })),
  "voyageai embed int8": rows(
    await voyage.embed({ model: MODEL, input: TEXTS, outputDtype: "int8", ...short }),
  ),
  "voyageai rerank": ranks((await voyage.rerank({ ...asked, topK: 2 })).data),
  "@huggingface/inference featureExtraction": await huggingFace.featureExtraction({ inputs: TEXTS }),
  "@ai-sdk/openai embedMany": (
    await embedMany({ model: aiOpenAI.embedding(MODEL), values: TEXTS })
  ).embeddings,
  "@ai-sdk/openai by an unknown model": await messageOf(
    embed({ model: aiOpenAI.embedding("nope"), value: QUERY, maxRetries: 0 }),
  ),
  "@ai-sdk/openai-compatible embedMany dimensions": (
    await embedMany({
      model: aiCompatible.embeddingModel(MODEL),
      values: TEXTS,
      providerOptions: { blitz: { dimensions: 64 } },
    })
  ).embeddings,
  "@ai-sdk/cohere embedMany": (
    await embedMany({ model: aiCohere.embedding(MODEL), values: TEXTS })
  ).embeddings,
  "@ai-sdk/cohere rerank": (
    await rerank({ model: aiCohere.reranking(MODEL), query: QUERY, documents: TEXTS, topN: 2 })
  ).ranking.map((each) => [each.originalIndex, each.score]),
};
console.log(JSON.stringify(results));
