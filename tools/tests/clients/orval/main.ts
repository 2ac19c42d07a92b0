// Talks to the API by a client of orval.

import { cancelOrder, createOrder, createOrders, readOrder, readTimeline } from "./client.js";

const [url, newer] = process.argv.slice(2);
const piece = (quantity: number) => ({ user_id: 7, product_id: 42, quantity });
let accepted = 0;

// The client asks for paths, as it would of the host that a page comes from.
let base = url;
const ask = globalThis.fetch;
globalThis.fetch = (path, init) => ask(new URL(String(path), base), init);

for (const quantity of [3, 0]) {
  const answer = await createOrder(piece(quantity));
  if (answer.status === 201) {
    const order = answer.data;
    console.log(`201 ${order.status} version ${order.version}, deleted: ${order.DeletedAt ?? "never"}`);
    accepted = order.ID;
  } else {
    const problem = answer.data;
    const fields = problem.errors?.map((error) => error.field).join(" ");
    console.log(`${problem.status} ${problem.type}: ${problem.detail} (${fields})`);
  }
}

await cancelOrder(accepted);
const conflict = await cancelOrder(accepted);
if (conflict.status !== 409) throw new Error(`it is answered ${conflict.status}`);
console.log(`${conflict.data.status} ${conflict.data.type}: ${conflict.data.detail}`);

const batch = await createOrders([piece(1), piece(0)]);
if (batch.status !== 200) throw new Error(batch.data.detail);
for (const result of batch.data.results) {
  console.log(`batch: ${result.status} ${result.order ? result.order.status : result.problem?.type}`);
}

const timeline = await readTimeline(accepted);
if (timeline.status !== 200) throw new Error(timeline.data.detail);
for (const change of timeline.data.changes) {
  console.log(`timeline: ${change.type} ${change.status}, offset: ${change.published.offset ?? "none"}`);
}

base = newer;
const later = await readOrder(1);
if (later.status !== 200) throw new Error(`it is answered ${later.status}`);
console.log(`newer: ${later.data.status}`);
