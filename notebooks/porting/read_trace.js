// Reads a folder that `numpygpt trace -o folder/` wrote: raw float32 tensors and index.json.
// node read_trace.js folder      prints name, shape and sum of each tensor.
// In a browser, fetch() gives the same bytes: new Float32Array(await response.arrayBuffer()).
const fs = require("fs");
const path = require("path");

function readTrace(folder) {
  const index = JSON.parse(fs.readFileSync(path.join(folder, "index.json"), "utf8"));
  const tensors = {};
  for (const [name, { file, shape }] of Object.entries(index.tensors)) {
    const bytes = fs.readFileSync(path.join(folder, file));
    const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
    if (bytes.length !== 4 * data.length) throw new Error(`${file} does not have its shape`);
    for (let i = 0; i < data.length; i++) data[i] = bytes.readFloatLE(4 * i);
    tensors[name] = { shape, data };
  }
  return tensors;
}

if (require.main === module) {
  for (const [name, { shape, data }] of Object.entries(readTrace(process.argv[2] || "."))) {
    let sum = 0;
    for (const x of data) if (x > -1e30) sum += x; // not the mask, which is -Infinity
    console.log([name, ...shape, sum].join(" "));
  }
}

module.exports = { readTrace };
