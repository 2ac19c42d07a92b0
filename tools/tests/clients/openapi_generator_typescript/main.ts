// Talks to the API by a client of openapi-generator for TypeScript.

import { Configuration, OrdersApi, ProblemFromJSON, ResponseError } from "./client/index.js";
import type { Problem } from "./client/index.js";

const [url, newer] = process.argv.slice(2);
const orders = new OrdersApi(new Configuration({ basePath: url }));
const piece = (quantity: number) => ({ userId: 7, productId: 42, quantity });
let accepted = 0;

async function refusal(call: Promise<unknown>): Promise<Problem> {
  try {
    await call;
  } catch (error) {
    if (error instanceof ResponseError) return ProblemFromJSON(await error.response.json());
    throw error;
  }
  throw new Error("it is not refused");
}

const order = await orders.createOrder({ newOrder: piece(3) });
console.log(`201 ${order.status} version ${order.version}, deleted: ${order.deletedAt ?? "never"}`);
accepted = order.iD;

const invalid = await refusal(orders.createOrder({ newOrder: piece(0) }));
const fields = invalid.errors?.map((error) => error.field).join(" ");
console.log(`${invalid.status} ${invalid.type}: ${invalid.detail} (${fields})`);

await orders.cancelOrder({ id: accepted });
const conflict = await refusal(orders.cancelOrder({ id: accepted }));
console.log(`${conflict.status} ${conflict.type}: ${conflict.detail}`);

for (const result of (await orders.createOrders({ newOrder: [piece(1), piece(0)] })).results) {
  console.log(`batch: ${result.status} ${result.order ? result.order.status : result.problem?.type}`);
}

for (const change of (await orders.readTimeline({ id: accepted })).changes) {
  console.log(`timeline: ${change.type} ${change.status}, offset: ${change.published.offset ?? "none"}`);
}

const later = await new OrdersApi(new Configuration({ basePath: newer })).readOrder({ id: 1 });
console.log(`newer: ${later.status}`);
