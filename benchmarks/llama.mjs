// llama.cpp for benchmarks/peers.py: node llama.mjs MODEL SEQUENCES CONTEXT
//
// For each line {"prompts": [[ids], ...], "tokens": n} on standard input, it continues all prompts
// at once, greedily, and prints the new ids of each.
import { createInterface } from "node:readline";
import { getLlama } from "node-llama-cpp";

const [path, sequences, contextSize] = process.argv.slice(2);
const threads = Number(process.env.THREADS);
const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: threads,
});
const model = await llama.loadModel({ modelPath: path });
const context = await model.createContext({
    contextSize: Number(contextSize), sequences: Number(sequences), threads,
});
const rows = Array.from({ length: Number(sequences) }, () => context.getSequence());

async function continued(row, prompt, tokens) {
    const ids = [];
    await row.clearHistory();
    for await (const id of row.evaluate(prompt, { temperature: 0 })) {
        ids.push(id);
        if (ids.length === tokens) break;
    }
    return ids;
}

for await (const line of createInterface({ input: process.stdin })) {
    const { prompts, tokens } = JSON.parse(line);
    const texts = prompts.map((prompt, i) => continued(rows[i], prompt, tokens));
    console.log(JSON.stringify(await Promise.all(texts)));
}
process.exit(0);
