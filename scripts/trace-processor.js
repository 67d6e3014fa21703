// trace-processor.js DIST TRACE: reads a trace into Perfetto's own trace
// processor and prints, for each line of SQL on standard input, one line of
// JSON: {"columns": […], "rows": [[…], …]} or {"error": "…"}. Integers come as
// strings, as they may not fit a double.
//
// DIST is the folder of a build of Perfetto's UI (scripts/trace-processor.sh
// fetches one). Its engine_bundle.js is a web worker around the trace processor
// as WebAssembly, which takes and gives messages of
// protos/perfetto/trace_processor/trace_processor.proto.
'use strict';
const fs = require('fs');
const path = require('path');
const vm = require('vm');

const [dist, trace] = process.argv.slice(2);

// Protocol buffers, as far as these messages need them.
function varint(n) {
  const out = [];
  let v = BigInt(n);
  for (; v > 127n; v >>= 7n) out.push(Number(v & 127n) | 128);
  out.push(Number(v));
  return Buffer.from(out);
}
const field = (id, bytes) => Buffer.concat([varint((id << 3) | 2), varint(bytes.length), bytes]);
const number = (id, n) => Buffer.concat([varint(id << 3), varint(n)]);

function* varints(buf) {
  for (let at = 0; at < buf.length;) {
    let v = 0n, shift = 0n, b;
    do {
      b = buf[at++];
      v |= BigInt(b & 127) << shift;
      shift += 7n;
    } while (b & 128);
    yield [BigInt.asIntN(64, v), at];
  }
}

// fields gives the pairs of a message: id, and a BigInt or the bytes.
function* fields(buf) {
  for (let at = 0; at < buf.length;) {
    const next = () => {
      const [v, n] = varints(buf.subarray(at)).next().value;
      at += n;
      return v;
    };
    const key = Number(next());
    const size = { 0: 0, 1: 8, 2: 0, 5: 4 }[key & 7];
    if (size === undefined) throw new Error(`wire type ${key & 7}`);
    if ((key & 7) === 0) {
      yield [key >> 3, next()];
      continue;
    }
    const length = size || Number(next());
    yield [key >> 3, buf.subarray(at, at + length)];
    at += length;
  }
}

// Methods and fields of TraceProcessorRpc.
const append = 1, finalize = 2, query = 3;
const data = 101, args = 103, appended = 201, result = 203, fatal = 5;

const text = (b) => Buffer.from(b).toString('utf8');

// errorIn is the text of a field that holds an error; '' if it is not there.
function errorIn(buf, id) {
  for (const [f, v] of fields(buf)) if (f === id) return text(v);
  return '';
}

class Table {
  columns = [];
  cells = [];
  error = '';

  // take adds a QueryResult.
  take(buf) {
    for (const [id, v] of fields(buf)) {
      if (id === 1) this.columns.push(text(v));
      else if (id === 2) this.error = text(v);
      else if (id === 3) this.batch(v);
    }
  }

  batch(buf) {
    const kinds = [], ints = [], floats = [], blobs = [];
    let strings = [];
    for (const [id, v] of fields(buf)) {
      if (id === 1) kinds.push(...v);
      else if (id === 2) for (const [n] of varints(v)) ints.push(n.toString());
      else if (id === 3) for (let i = 0; i < v.length; i += 8) floats.push(Buffer.from(v).readDoubleLE(i));
      else if (id === 4) blobs.push(Buffer.from(v).toString('hex'));
      else if (id === 5) strings = text(v).split('\0');
    }
    for (const kind of kinds) {
      this.cells.push([undefined, () => null, () => ints.shift(), () => floats.shift(), () => strings.shift(), () => blobs.shift()][kind]());
    }
  }

  print() {
    if (this.error) return console.log(JSON.stringify({ error: this.error }));
    const rows = [];
    for (let i = 0; i < this.cells.length; i += this.columns.length) rows.push(this.cells.slice(i, i + this.columns.length));
    console.log(JSON.stringify({ columns: this.columns, rows }));
  }
}

// The worker's surroundings.
class WorkerGlobalScope {}
const base = 'http://localhost/';
const self = { location: { href: base } };
const context = vm.createContext({
  self, WorkerGlobalScope, URL, TextDecoder, TextEncoder, setTimeout, performance, location: self.location,
  console: { log: console.error, warn: console.error, error: console.error },
  XMLHttpRequest: class {
    open(method, name) {
      this.name = name;
    }

    send() {
      this.response = fs.readFileSync(path.join(dist, path.basename(this.name)));
    }
  },
});
let reply;
const port = {
  postMessage(bytes) {
    for (const [, rpc] of fields(bytes)) {
      for (const [id, v] of fields(rpc)) {
        if (id === fatal) throw new Error(text(v));
        if (reply) reply(id, v);
      }
    }
  },
};
let sequence = 0;
function send(method, ...rest) {
  const rpc = Buffer.concat([number(1, sequence++), number(2, method), ...rest]);
  // The other side of the worker wants an array of its own kind.
  context.bytes = field(1, rpc);
  port.onmessage({ data: vm.runInContext('Uint8Array.from(bytes)', context) });
}

async function main() {
  vm.runInContext(fs.readFileSync(path.join(dist, 'engine_bundle.js'), 'utf8'), context);
  self.onmessage({ data: port });
  await new Promise((done) => setImmediate(done)); // it starts in a promise of its own
  let failed = '';
  reply = (id, v) => {
    if (id === appended) failed = errorIn(v, 2);
  };
  const file = fs.openSync(trace);
  const chunk = Buffer.alloc(1 << 20);
  for (let n; (n = fs.readSync(file, chunk)) > 0 && !failed;) send(append, field(data, chunk.subarray(0, n)));
  if (!failed) send(finalize);
  if (failed) throw new Error(failed);
  for (const sql of fs.readFileSync(0, 'utf8').split('\n')) {
    if (!sql.trim()) continue;
    const table = new Table();
    reply = (id, v) => {
      if (id === result) table.take(v);
    };
    send(query, field(args, field(1, Buffer.from(sql))));
    table.print();
  }
}

main().then(() => process.exit(0), (err) => {
  console.error(`trace-processor: ${trace}: ${err.message}`);
  process.exit(1);
});
