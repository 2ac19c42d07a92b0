// undici, Node's fetch, and two clients for event streams, each of which is cut off and goes on where it was.
import net from "node:net";

import { EventSource } from "eventsource";
import polyfill from "event-source-polyfill";
import { Agent, request } from "undici";

const base = process.argv[2];
const order = JSON.stringify({ user_id: 1, product_id: 2, quantity: 3 });
const post = { method: "POST", headers: { "content-type": "application/json" }, body: order };

function expect(holds, what) {
  if (!holds) throw new Error(what);
}

const dispatcher = new Agent({ connections: 4, pipelining: 4 });
await Promise.all(
  Array.from({ length: 300 }, async () => {
    const answer = await request(`${base}/orders`, { ...post, dispatcher });
    expect(answer.statusCode === 201, `undici: ${answer.statusCode}`);
    await answer.body.json();
  }),
);
for (let number = 0; number < 100; number++) {
  const answer = await fetch(`${base}/orders`, post);
  expect(answer.status === 201, `fetch: ${answer.status}`);
  await answer.json();
}

// A way to the API that is cut every two seconds: each client comes back, the polyfill with ?lastEventId=.
const { hostname, port } = new URL(base);
const way = net.createServer((client) => {
  const server = net.connect(port, hostname);
  for (const socket of [client, server]) socket.on("error", () => {});
  client.pipe(server).pipe(client);
  setTimeout(() => [client, server].forEach((socket) => socket.destroy()), 2_000);
});
await new Promise((resolve) => way.listen(0, "127.0.0.1", resolve));
const cut = `http://127.0.0.1:${way.address().port}`;

async function watch(source, name) {
  const seen = new Map();
  let opened = 0;
  let failure = null;
  source.addEventListener("open", () => opened++);
  source.addEventListener("error", (event) => {
    if (source.readyState === 2) failure = `${name} has given up: ${event.status ?? event.code}`;
  });
  source.addEventListener("order.created", (event) => {
    const id = JSON.parse(event.data).order_id;
    seen.set(id, (seen.get(id) ?? 0) + 1);
  });
  while (opened === 0 && !failure) await new Promise((resolve) => setTimeout(resolve, 20));
  const made = [];
  const until = Date.now() + 30_000;
  while (opened < 4 && !failure && Date.now() < until) {
    const answer = await fetch(`${base}/orders`, post);
    made.push((await answer.json()).ID);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await new Promise((resolve) => setTimeout(resolve, 3_000));
  source.close();
  expect(!failure, failure);
  expect(opened >= 4, `${name} was opened ${opened} times`);
  for (const id of made) expect(seen.get(id) === 1, `${name} has seen order ${id} ${seen.get(id) ?? 0} times`);
}

await watch(new EventSource(`${cut}/orders/events`), "eventsource");
await watch(new polyfill.EventSourcePolyfill(`${cut}/orders/events`), "event-source-polyfill");
console.log("well");
process.exit(0);
