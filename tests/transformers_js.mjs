// Runs an ONNX export in Transformers.js, offline: node transformers_js.mjs REQUEST.json
import { readFileSync } from "node:fs";
import { AutoModelForSpeechSeq2Seq, env, pipeline, Tensor } from "@huggingface/transformers";

const request = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const floats = (path) => new Float32Array(new Uint8Array(readFileSync(path)).buffer);
env.allowRemoteModels = false;
env.localModelPath = request.directory;

const model = await AutoModelForSpeechSeq2Seq.from_pretrained(request.name, { dtype: request.dtype });
const tokens = [];
for (let row = 0; row < request.features.length; row++) {
  const inputs = new Tensor("float32", floats(request.features[row]), request.shape);
  const decoder_input_ids = [request.prompt];
  const output = await model.generate({ inputs, decoder_input_ids, max_new_tokens: request.max_new_tokens });
  tokens.push(output.tolist()[0].slice(request.prompt.length).map(Number));
}
const transcriber = await pipeline("automatic-speech-recognition", request.name, { dtype: request.dtype });
const texts = [];
for (const path of request.audio) texts.push((await transcriber(floats(path), request.options)).text);
console.log(JSON.stringify({ tokens, texts }));
