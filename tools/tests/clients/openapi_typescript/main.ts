// Talks to the API by openapi-fetch, with the types of openapi-typescript.

import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Problem = components["schemas"]["Problem"];

const [url, newer] = process.argv.slice(2);
let accepted = 0;

// guide: from here
const client = createClient<paths>({ baseUrl: url });
for (const quantity of [3, 0]) {
  const { data: order, error: problem, response } = await client.POST("/orders", {
    body: { user_id: 7, product_id: 42, quantity },
  });
  if (order) {
    console.log(`${response.status} ${order.status} version ${order.version}, deleted: ${order.DeletedAt ?? "never"}`);
    accepted = order.ID;
  } else {
    const fields = problem.errors?.map((error) => error.field).join(" ");
    console.log(`${problem.status} ${problem.type}: ${problem.detail} (${fields})`);
  }
}
// guide: to here

const id = { params: { path: { id: accepted } } };
await client.POST("/orders/{id}/cancel", id);
const { error } = await client.POST("/orders/{id}/cancel", id);
const problem: Problem = error!;
console.log(`${problem.status} ${problem.type}: ${problem.detail}`);

const batch = [1, 0].map((quantity) => ({ user_id: 7, product_id: 42, quantity }));
const { data: results } = await client.POST("/orders/batch", { body: batch });
for (const result of results!.results) {
  console.log(`batch: ${result.status} ${result.order ? result.order.status : result.problem?.type}`);
}

const { data: timeline } = await client.GET("/orders/{id}/timeline", id);
for (const change of timeline!.changes) {
  console.log(`timeline: ${change.type} ${change.status}, offset: ${change.published.offset ?? "none"}`);
}

const { data: later } = await createClient<paths>({ baseUrl: newer }).GET("/orders/{id}", id);
console.log(`newer: ${later!.status}`);
